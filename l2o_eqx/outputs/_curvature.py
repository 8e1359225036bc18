import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import check
from .._misc import unravel_like
from .._types import Params, Scalar
from ._base import AbstractOutput, log_factor
from ._motion import NUM_FEATURES, Coordinates, Motion, at_rest, motion_features, seen

# No gradient moves a coordinate further than this many times its usual update: where gradients hardly
# change, the curvature says nothing, and rounding would decide.
_LARGEST_STEP = 3.0


class CurvatureOutput(AbstractOutput):
    """Momentum whose step is relative to the curvature that each coordinate has met: free of scale.

    Two answers per coordinate, o₁ and o₂. With L_i = rms(g_t − g_{t−1})/rms(u_{t−1}), both running means:

        u_t = −e^c(o₁)·(r/L)·g_t + σ(o₂ + logit β)·u_{t−1}    with    c(o) = 6·tanh(o/6)

    The first step is −e^c(o₁)·a·sgn g, and r|g|/L is at most 3 times the running mean update. r, β and a are
    meta-parameters, three scalars. Multiplying the objective by a constant changes nothing; stretching the
    coordinates changes what a means, until the curvature is known. L is a constant to derivatives.

    Features and state are as in `MomentumOutput`, which is better where all objectives have one scale.

    **Arguments:**

    - `rate`: r at first.
    - `momentum`: β at first.
    - `first_step`: a at first.

    **Raises:** `ValueError` for a `rate` or `first_step` that is not positive, or a `momentum` outside
    (0, 1).

    Reference: Barzilai & Borwein 1988 (doi:10.1093/imanum/8.1.141) for steps from differences of gradients.
    """

    log_rate: Scalar
    logit_momentum: Scalar
    log_first_step: Scalar

    def __init__(self, rate: float = 0.3, momentum: float = 0.9, first_step: float = 0.01):
        check(
            "`CurvatureOutput(rate, momentum, first_step)`: the rate and the first step must be "
            f"positive, the momentum between 0 and 1. Got rate={rate}, momentum={momentum}, "
            f"first_step={first_step}.",
            rate=(rate, rate > 0),
            momentum=(momentum, 0 < momentum < 1),
            first_step=(first_step, first_step > 0),
        )
        dtype = jnp.result_type(float)
        self.log_rate = jnp.asarray(math.log(rate), dtype)
        self.logit_momentum = jnp.asarray(math.log(momentum / (1 - momentum)), dtype)
        self.log_first_step = jnp.asarray(math.log(first_step), dtype)

    @property
    def num_answers(self) -> int:
        return 2

    @property
    def num_features(self) -> int:
        return NUM_FEATURES

    def init(self, params: Params) -> Motion:
        return at_rest(params)

    def features(self, grads: Params, state: Motion) -> Float[Array, "features coordinates"]:
        new, _, change = seen(state, grads)
        return motion_features(state, new, change, self.log_rate - new.log_curvature)

    def __call__(
        self, answers: Float[Array, "answers coordinates"], grads: Params, state: Motion
    ) -> tuple[Params, Motion]:
        new, grad, _ = seen(state, grads)
        step = jnp.where(new.started, self._later_step(new, grad), self._first_step(grad))
        momentum = jax.nn.sigmoid(answers[1] + self.logit_momentum)
        update = momentum * state.update - jnp.exp(log_factor(answers[0])) * step
        update = update.astype(grad.dtype)
        return unravel_like(update, grads), new.moved(update)

    def _first_step(self, grad: Coordinates) -> Coordinates:
        return jnp.exp(self.log_first_step) * jnp.sign(grad)

    def _later_step(self, new: Motion, grad: Coordinates) -> Coordinates:
        # The longest step divides by the gradient itself, so that the quotient is exact at any scale.
        largest = _LARGEST_STEP * jax.lax.stop_gradient(new.update_root)
        size = jnp.abs(jax.lax.stop_gradient(grad))
        curvature = jnp.exp(new.log_curvature)
        shortest = jnp.exp(self.log_rate) * size / jnp.where(new.started, largest, 1.0)
        divisor = jnp.maximum(curvature, jax.lax.stop_gradient(shortest))
        return jnp.exp(self.log_rate) * grad / jnp.where(divisor > 0, divisor, 1.0)
