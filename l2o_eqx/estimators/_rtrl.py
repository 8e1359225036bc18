import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._errors import ArgumentError
from .._misc import unravel_like
from .._types import State
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._backprop import check_constants
from ._base import AbstractEstimator, check_flow
from ._forward import map_tangents, num_meta_params, num_moving, run_itself, unit_tangent
from ._window import Window, WindowResult


class RTRL(AbstractEstimator):
    """Real-time recurrent learning: the gradient of the whole super epoch, window by window, without noise.

    As `Forward`, but how params and state move with each meta-parameter, their influence, is carried on from
    window to window. The gradient of a window's losses thus counts what φ has done since the super epoch
    began: nothing is truncated, and memory does not grow with the horizon.

    The influence has P·(N + S) numbers for P meta-parameters, N coordinates of all objectives and S numbers
    of state. Of a coordinatewise optimizer S is N times the state of one coordinate, and of first order no
    coordinate's influence depends on another's. That does not make it smaller: an LSTM of 20 units
    (P = 1,760) on 4 objectives of 16 coordinates has 4.6 million numbers, 18 MB, one of 2×20 units
    (P = 5,040) on a network of 25,450 coordinates has 10 billion. It is for few meta-parameters or few
    coordinates, and refuses others; `PES` and `NRES` do the same with noise in the place of memory. A step
    costs about P runs.

    Meta-updates between windows move φ under the influence, which is exact for a φ that stands still.

    **Arguments:**

    - `constants`: what is not differentiated, as in `Backprop`; by default nothing, which is the true
        gradient.
    - `max_numbers`: how many the influence may have; by default a GiB of float32.

    **Raises:** `ValueError` for other names of constants and, when training, for a larger influence.

    Reference: Williams and Zipser 1989, "A learning algorithm for continually running fully recurrent neural
    networks".
    """

    constants: frozenset[str] = eqx.field(static=True, default=frozenset(), converter=frozenset)
    max_numbers: int = eqx.field(static=True, default=2**28)

    def __check_init__(self):
        check_constants("RTRL", self.constants)

    def check(self, optimizer: AbstractOptimizer) -> None:
        check_flow("`RTRL(constants=...)`", self.constants, optimizer)

    def consecutive(self) -> bool:
        return True

    def init(self, optimizer: AbstractOptimizer, window: Window, *, key: PRNGKeyArray) -> State:
        count = num_meta_params(eqx.filter(optimizer, eqx.is_inexact_array))
        numbers = count * num_moving(window)
        if numbers > self.max_numbers:
            raise ArgumentError(
                f"`RTRL(max_numbers={self.max_numbers})`: the influence of {count} meta-parameters on "
                f"{num_moving(window)} numbers of params and state would have {numbers}. Allow more, take "
                "fewer objectives or a smaller optimizer, or `PES` or `NRES`, which estimate the same.",
                argument="max_numbers",
                given=self.max_numbers,
            )
        moving = eqx.filter((window.params, window.state), eqx.is_inexact_array)
        return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), moving)

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        self.check(optimizer)
        trained, rest = eqx.partition(optimizer, eqx.is_inexact_array)
        moving, fixed = eqx.partition((window.params, window.state), eqx.is_inexact_array)

        def run(trained, moving):
            params, begun = eqx.combine(moving, fixed)
            at = dataclasses.replace(window, params=params, state=begun)
            params, end, record = at.run(eqx.combine(trained, rest), self.constants, forward=True)
            return at.meta_loss(weighting, record)[0], eqx.filter((params, end), eqx.is_inexact_array)

        def along(tangent):
            number, influence = tangent
            tangents = (unit_tangent(number, trained), influence)
            return jax.jvp(run, (trained, moving), tangents)[1]

        numbers = jnp.arange(num_meta_params(trained))
        slopes, influence = map_tangents(along, (numbers, state), window)
        return run_itself(optimizer, window, weighting, unravel_like(slopes, trained)), influence
