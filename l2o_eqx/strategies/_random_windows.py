import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from .._checks import check_sizes
from .._errors import ArgumentError
from ..estimators import AbstractEstimator, Auto
from ._base import AbstractUpdateStrategy
from ._windows import AbstractWindowStrategy, EveryWindow, check_fits


class RandomWindows(AbstractWindowStrategy):
    """`EveryWindow` with windows and super epochs whose lengths differ from super epoch to super epoch.

    Lengths are the given ones times a factor a + (1 − a)·E with E exponentially distributed, so that they are
    right on the average, never much shorter, and sometimes much longer: an optimizer sees short runs and long
    ones, and no horizon to rely on.

    Every length is a compiled program of its own. There are `sizes` of them per family: each stands for an
    equally probable part of the distribution, by its mean. Sizes of windows and of super epochs are drawn
    together, short windows with middling super epochs and so on, so that there are no more programs.

    **Arguments:**

    - `window`: T ≥ 2; of `RandomWindows`, that on the average.
    - `estimator`, `include_final_loss`, `random_phase`: as in `EveryWindow`.
    - `sizes`: how many different lengths there are.
    - `least`: a, the shortest length in units of the mean one, at least 0 and below 1.

    **Raises:** `ValueError` as `EveryWindow`, for `sizes` below 1, or another `least`.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813), with
    windows of 10 + Exp(20) steps, that is a = 1/3.
    """

    window: int = eqx.field(static=True, default=20)
    estimator: AbstractEstimator = Auto()
    include_final_loss: bool = eqx.field(static=True, default=False)
    random_phase: bool = eqx.field(static=True, default=True)
    sizes: int = eqx.field(static=True, default=3)
    least: float = eqx.field(static=True, default=0.3)

    def __check_init__(self):
        check_sizes("RandomWindows", sizes=self.sizes)
        if not 0 <= self.least < 1:
            raise ArgumentError(
                f"`RandomWindows(least=...)` must be at least 0 and below 1. Got least={self.least}.",
                argument="least",
                given=self.least,
            )
        self._every(self.window)

    def num_updates(self, num_steps: int) -> int:
        """On the average."""
        check_fits("RandomWindows", self.window, self._shortest, num_steps)
        counts = [strategy.num_updates(steps) for strategy, steps in self.programs(num_steps)]
        return max(1, round(float(np.mean(counts))))

    def begins_anywhere(self) -> bool:
        return self.random_phase

    def coordinates_apart(self) -> bool:
        return self.estimator.coordinates_apart()

    def programs(self, num_steps: int) -> list[tuple[EveryWindow, int]]:
        """The strategies, and the lengths of super epochs, that one of `num_steps` on the average is among.

        All are equally probable.
        """
        found = []
        for size in range(self.sizes):
            window = max(self._shortest, round(self.window * self._factor(size)))
            # Not the same rank: length and number of windows should not be one thing.
            longer = self._factor((size + self.sizes // 2) % self.sizes)
            count = max(1, round(num_steps * longer / window)) + self.random_phase
            found.append((self._every(window), count * window))
        return found

    def chosen(
        self, num_steps: Sequence[int], *, key: PRNGKeyArray
    ) -> list[tuple[AbstractUpdateStrategy, int]]:
        def draw(number):
            return jr.randint(jr.fold_in(key, number), (), 0, self.sizes)

        known = {steps: self.programs(steps) for steps in set(num_steps)}
        draws = jax.vmap(draw)(np.arange(len(num_steps))).tolist()
        return [known[steps][number] for steps, number in zip(num_steps, draws, strict=True)]

    def windows(self, num_steps: int) -> dict[str, Any]:
        """Of a super epoch by itself: the lengths are those on the average."""
        return self._every(self.window).windows(num_steps)

    @property
    def _shortest(self):
        return 1 if self.include_final_loss else 2

    def _every(self, window):
        return EveryWindow(
            window,
            self.estimator,
            include_final_loss=self.include_final_loss,
            random_phase=self.random_phase,
        )

    def _factor(self, size):
        return self.least + (1 - self.least) * _mean_of_part(size, self.sizes)


def _mean_of_part(part: int, parts: int) -> float:
    """The mean of an exponentially distributed number of mean 1, in one of equally probable parts."""

    def below(x):
        # The integral of t·exp(−t) from 0 to x.
        return 1.0 if math.isinf(x) else 1 - (1 + x) * math.exp(-x)

    def quantile(share):
        return math.inf if share == 1 else -math.log1p(-share)

    low, high = quantile(part / parts), quantile((part + 1) / parts)
    return (below(high) - below(low)) * parts
