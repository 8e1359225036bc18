"""The optimizers that learned ones are compared with: all of them optax's own, and what is tuned of each."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._errors import ArgumentError
from ._random_search import RandomSearch
from .objectives import AbstractObjectiveFamily
from .objectives._batch import params_shapes
from .optimizers import AbstractOptimizer

# A learning rate, and perhaps other settings -> the optimizer with them, e.g. `optax.adam`.
MakeOptimizer = Callable[..., optax.GradientTransformation]

# Four values per factor of ten, 1e-4 to 100.
LEARNING_RATES: tuple[float, ...] = tuple(float(f"{10**e:.3g}") for e in np.linspace(-4, 2, 25))


def _warm_up_cosine(num_steps: int) -> optax.Schedule:
    warm_up = num_steps // 10
    if warm_up == 0:
        return optax.cosine_decay_schedule(1.0, num_steps)
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, num_steps)


SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda num_steps: optax.constant_schedule(1.0),
    "cosine": lambda num_steps: optax.cosine_decay_schedule(1.0, num_steps),
    "warm-up cosine": _warm_up_cosine,
}
"""By name, the number of steps -> the factor of the learning rate at every step: constant; cosine to zero;
linear from zero over the first tenth, then cosine to zero."""


class Baseline(eqx.Module):
    """An optax optimizer to be tuned by `compare`, with everything that is to be tried.

    **Arguments:**

    - `make`: called with a learning rate and one of the entries of `grid` as keywords; returns the optax
        transformation. If `schedules` has more than `"constant"`, the rate is a schedule, a function of the
        number of the step; else it is a scalar. All numbers may be traced, so that one compiled program
        serves for all; where optax wants Python numbers, `compare` compiles one for each.
    - `grid`: settings beside the learning rate, one mapping of keywords to numbers for each choice; all have
        the same keywords. By default there are none.
    - `schedules`: names from `SCHEDULES`; by default all.

    **Raises:** `ValueError` if there is nothing to try, keywords differ, or a schedule is unknown.
    """

    make: MakeOptimizer = eqx.field(static=True)
    grid: tuple[Mapping[str, float], ...] = eqx.field(static=True)
    schedules: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        make: MakeOptimizer,
        grid: Sequence[Mapping[str, float]] = ({},),
        schedules: Sequence[str] = tuple(SCHEDULES),
    ):
        self.make = make
        self.grid = tuple(dict(choice) for choice in grid)
        self.schedules = tuple(schedules)

    def __check_init__(self):
        if not self.grid or not self.schedules:
            raise ArgumentError(
                "`Baseline(grid=..., schedules=...)` needs at least one entry of each to try.",
                argument="schedules" if self.grid else "grid",
                given=(),
            )
        if any(choice.keys() != self.grid[0].keys() for choice in self.grid):
            raise ArgumentError(
                f"`Baseline(grid=...)`: all entries must have the same keywords. Got {self.grid}.",
                argument="grid",
            )
        unknown = [name for name in self.schedules if name not in SCHEDULES]
        if unknown:
            raise ArgumentError(
                f"`Baseline(schedules=...)`: there is no schedule {unknown[0]!r}, "
                f"but {', '.join(SCHEDULES)}.",
                argument="schedules",
                given=unknown[0],
                possible=SCHEDULES,
            )

    def with_settings(
        self, num_steps: int, learning_rate: float, schedule: str = "constant", **choice: float
    ) -> optax.GradientTransformation:
        """The transformation with one setting, such as one of `Comparison.settings`.

        **Arguments:**

        - `num_steps`: the length that the schedule is made for.
        - `learning_rate`: before the schedule.
        - `schedule`: one of `schedules`.
        - `choice`: one of `grid`.

        **Raises:** `ValueError` for a schedule that the baseline does not have.
        """
        if schedule not in self.schedules:
            raise ArgumentError(
                f"`Baseline.with_settings(schedule={schedule!r})`: it has {', '.join(self.schedules)}.",
                argument="schedule",
                given=schedule,
                possible=self.schedules,
            )
        return build(self, num_steps, learning_rate, self.schedules.index(schedule), choice)


class LineSearch(eqx.Module):
    """An optax optimizer that evaluates f several times a step, such as `optax.lbfgs()`; not tuned.

    It marks one as such where baselines are listed. `compare` runs it as it runs the transformation itself,
    and counts the evaluations.

    **Arguments:**

    - `transformation`: whose `update` takes optax's `value`, `grad` and `value_fn`.
    """

    transformation: optax.GradientTransformationExtraArgs = eqx.field(static=True)


def build(baseline: Baseline, num_steps: int, rate: Any, schedule: Any, choice: Mapping[str, Any]) -> Any:
    """The transformation with one setting of a baseline; all numbers may be traced.

    **Arguments:**

    - `num_steps`: the length that the schedules are made for.
    - `rate`: the learning rate, before the schedule.
    - `schedule`: the number of one in `baseline.schedules`.
    - `choice`: as an entry of `baseline.grid`.
    """
    if baseline.schedules == ("constant",):
        return baseline.make(rate, **choice)
    factors = [SCHEDULES[name](num_steps) for name in baseline.schedules]

    def learning_rate(step):
        return rate * jnp.stack([jnp.asarray(factor(step), jnp.float32) for factor in factors])[schedule]

    return baseline.make(learning_rate, **choice)


def _each(**values: Sequence[float]) -> list[dict[str, float]]:
    return [dict(zip(values, one, strict=True)) for one in zip(*values.values(), strict=True)]


_MOMENTA = (0.8, 0.9, 0.95, 0.98, 0.99)
_BETAS = _each(b1=(0.8, 0.9, 0.9, 0.95, 0.95), b2=(0.99, 0.99, 0.999, 0.99, 0.999))

BASELINES: dict[str, Baseline | LineSearch] = {
    "SGD": Baseline(optax.sgd),
    "momentum": Baseline(optax.sgd, _each(momentum=_MOMENTA)),
    "Nesterov": Baseline(functools.partial(optax.sgd, nesterov=True), _each(momentum=_MOMENTA)),
    "RMSprop": Baseline(optax.rmsprop, _each(decay=(0.8, 0.9, 0.95, 0.99, 0.999))),
    "Adam": Baseline(optax.adam, _BETAS),
    "AdamW": Baseline(optax.adamw, _BETAS),
    # Decoupled weight decay is AdamW's to try; a rule that moves by its signs alone is hurt most by it.
    "Lion": Baseline(functools.partial(optax.lion, weight_decay=0.0), _BETAS),
    "Muon": Baseline(optax.contrib.muon, _each(beta=_MOMENTA)),
    "L-BFGS": LineSearch(optax.lbfgs()),
    "line search": LineSearch(
        optax.chain(
            optax.sgd(1.0),
            optax.scale_by_backtracking_linesearch(max_backtracking_steps=30, max_learning_rate=100.0),
        )
    ),
}
"""The hand-designed optimizers that learned ones are compared with. The first eight are tuned by `compare`:
learning rate, schedule, and momentum or betas. The last two search the line at every step: L-BFGS, and
gradient descent with backtracking."""


def baselines_for(
    family: AbstractObjectiveFamily, optimizer: AbstractOptimizer | None = None
) -> dict[str, Baseline | LineSearch | RandomSearch]:
    """Those of `BASELINES` that make sense on a family.

    Muon treats matrices in a way of its own, and all else as AdamW does; it is left out where no leaf of
    the params has two axes.

    **Arguments:**

    - `family`: what they are run on.
    - `optimizer`: what they are compared with. Beside one that is a black box, and sees no gradient, there is
        random search in the box [−1, 1] alone.
    """
    if optimizer is not None and optimizer.is_black_box():
        return {"random search": RandomSearch()}
    has_matrices = any(leaf.ndim == 2 for leaf in jax.tree.leaves(params_shapes(family)))
    return {name: baseline for name, baseline in BASELINES.items() if name != "Muon" or has_matrices}
