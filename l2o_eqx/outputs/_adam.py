import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import ArgumentError, check
from .._misc import ravel_wide, unravel_like
from .._types import Params, Scalar
from ._base import AbstractOutput, log_factor
from ._motion import running_root


class AdamState(eqx.Module):
    """Running means of the gradient at each decay, the root of that of its square, and the steps taken.

    The steps are kept per coordinate, so that a block of coordinates takes its part of the state along.
    """

    means: Float[Array, "decays coordinates"]
    root: Float[Array, " coordinates"]
    steps: Float[Array, " coordinates"]


class AdamOutput(AbstractOutput):
    """Adam, whose step size and mixture of directions the network corrects at every step.

    With m_k the running means of the gradient at K decays and v that of its square, all corrected for their
    start at zero as in Adam, and 1 + K answers o₀, …, o_K per coordinate:

        u = −e^c(o₀)·r·Σ_k (e_k + o_k)·D_k    with    D_k = m_k/(√v + ε) and c(o) = 6·tanh(o/6)

    The step size r and the coefficients e_k are meta-parameters. At first e_k picks the decay 0.9, so that
    answers of zero give `optax.adam(rate, b1=0.9, b2=0.99)`. Where all gradients have been zero the update
    is zero.

    Use it where Adam is the baseline to beat: on networks, and where the scale of the gradients differs
    between objectives or coordinates.

    **Arguments:**

    - `rate`: r at first.
    - `decays`: of the running means.
    - `b2`: decay of the running mean of the square.
    - `eps`: ε; smaller than Adam's, so that a small gradient still gives a full step.
    - `start`: which of the decays e_k picks at first.

    **Raises:** `ValueError` for a `rate` or `eps` that is not positive, decay rates outside [0, 1), or a
    `start` that is none of `decays`.

    Reference: Kingma & Ba 2015 (arXiv:1412.6980); Harrison, Metz & Sohl-Dickstein 2022 (arXiv:2209.11208)
    for corrections to a hand-designed direction.
    """

    log_rate: Scalar
    coefficients: Float[Array, " decays"]
    decays: tuple[float, ...] = eqx.field(static=True)
    b2: float = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        rate: float = 0.01,
        decays: tuple[float, ...] = (0.5, 0.9, 0.97),
        b2: float = 0.99,
        eps: float = 1e-12,
        *,
        start: float = 0.9,
    ):
        check(
            "`AdamOutput(rate, decays, b2, eps)`: the rate and `eps` must be positive, the decay rates "
            f"in [0, 1). Got rate={rate}, decays={decays}, b2={b2}, eps={eps}.",
            rate=(rate, rate > 0),
            decays=(decays, all(0 <= b < 1 for b in decays)),
            b2=(b2, 0 <= b2 < 1),
            eps=(eps, eps > 0),
        )
        if start not in decays:
            raise ArgumentError(
                f"`AdamOutput(start=...)` must be one of the decays. Got start={start}, decays={decays}.",
                argument="start",
                given=start,
            )
        dtype = jnp.result_type(float)
        self.log_rate = jnp.asarray(math.log(rate), dtype)
        self.coefficients = jnp.asarray([float(b == start) for b in decays], dtype)
        self.decays, self.b2, self.eps = tuple(decays), b2, eps

    @property
    def num_answers(self) -> int:
        return 1 + len(self.decays)

    def init(self, params: Params) -> AdamState:
        zeros = jnp.zeros_like(ravel_wide(params))
        return AdamState(jnp.stack([zeros] * len(self.decays)), zeros, zeros)

    def __call__(
        self, answers: Float[Array, "answers coordinates"], grads: Params, state: AdamState
    ) -> tuple[Params, AdamState]:
        state = self._next(ravel_wide(grads), state)
        size = jnp.exp(log_factor(answers[0]) + self.log_rate)
        mixed = jnp.sum((self.coefficients[:, None] + answers[1:]) * self._directions(state), axis=0)
        return unravel_like(-size * mixed, grads), state

    def _next(self, grad, state):
        decays = jnp.asarray(self.decays, grad.dtype)[:, None]
        means = decays * state.means + (1 - decays) * grad[None]
        return AdamState(means, running_root(state.root, grad, self.b2), state.steps + 1)

    def _directions(self, state):
        decays = jnp.asarray(self.decays, state.means.dtype)[:, None]
        means = state.means / (1 - decays ** state.steps[None])
        # Where the root is zero, so are the means; 1 in its place keeps derivatives finite.
        positive = state.root > 0
        root = jnp.where(positive, state.root, 1.0) / jnp.sqrt(1 - self.b2**state.steps)
        return jnp.where(positive[None], means / (root + self.eps)[None], 0.0)
