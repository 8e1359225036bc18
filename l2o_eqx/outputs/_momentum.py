import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import check
from .._misc import unravel_like
from .._types import Params, Scalar
from ._base import AbstractOutput, log_factor
from ._motion import NUM_FEATURES, Motion, at_rest, motion_features, seen


class MomentumOutput(AbstractOutput):
    """Gradient descent with momentum, whose rate and momentum the network corrects at every step.

    Two answers per coordinate, o₁ and o₂:

        u_t = −e^c(o₁)·r·g_t + σ(o₂ + logit β)·u_{t−1}    with    c(o) = 6·tanh(o/6) and u_0 = 0

    where r and β are meta-parameters, two scalars. With answers of zero it is
    `optax.sgd(rate, momentum)`. Its state is float32 at least.

    It shows the network six features of its own: how the gradient and its change since the step before
    compare with the last update. They decide how good it gets, and need no preprocessor beside them.

    Use it on problems that momentum solves, such as quadratics: an update of a fixed size, as the sum of a
    bounded hidden state is, cannot follow gradients that shrink by orders of magnitude. r belongs to one
    curvature: trained on `Quadratic(16)` it diverges on `Quadratic(64)`. Where scales differ, take
    `CurvatureOutput`.

    **Arguments:**

    - `rate`: r at first; that of tuned momentum, about 0.0178 for `Quadratic()`. Tune it for yours.
    - `momentum`: β at first.

    **Raises:** `ValueError` for a `rate` that is not positive or a `momentum` outside (0, 1).

    Reference: Polyak 1964 (doi:10.1016/0041-5553(64)90137-5) for momentum; as a structured output of a
    coordinatewise network it is this package's own.
    """

    log_rate: Scalar
    logit_momentum: Scalar

    def __init__(self, rate: float = 0.0178, momentum: float = 0.9):
        check(
            "`MomentumOutput(rate, momentum)`: the rate must be positive, the momentum between 0 and 1. "
            f"Got rate={rate}, momentum={momentum}.",
            rate=(rate, rate > 0),
            momentum=(momentum, 0 < momentum < 1),
        )
        dtype = jnp.result_type(float)
        self.log_rate = jnp.asarray(math.log(rate), dtype)
        self.logit_momentum = jnp.asarray(math.log(momentum / (1 - momentum)), dtype)

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
        return motion_features(state, new, change, jnp.broadcast_to(self.log_rate, change.shape))

    def __call__(
        self, answers: Float[Array, "answers coordinates"], grads: Params, state: Motion
    ) -> tuple[Params, Motion]:
        new, grad, _ = seen(state, grads)
        rate = jnp.exp(log_factor(answers[0]) + self.log_rate)
        momentum = jax.nn.sigmoid(answers[1] + self.logit_momentum)
        update = (momentum * state.update - rate * grad).astype(grad.dtype)
        return unravel_like(update, grads), new.moved(update)
