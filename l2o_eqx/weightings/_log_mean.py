import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._errors import ArgumentError
from .._types import Scalar, StepNumber
from ._base import AbstractWeighting


class LogMean(AbstractWeighting):
    """L = mean of s_t·log(f(θ_t) + ε): late, small losses count as much as early, large ones.

    A sum of losses is ruled by the first steps; this one asks at every step by which factor the loss
    falls. Its weights are w_t = s_t / (T·(f(θ_t) + ε)) for a window of T losses, whatever scale f has.

    Losses must be positive. What is at or below the dtype's smallest normal number (1.2e-38 in float32)
    counts as that number and has the weight 0, so that a loss of exactly zero does no harm. A loss that is
    not a number remains one. Just above that floor weights are enormous; clip them per objective.

    **Arguments:**

    - `eps`: ε ≥ 0, in units of the loss, or of f(θ_1) if `relative`.
    - `relative`: whether to take log(f(θ_t)/f(θ_1) + ε), with θ_1 the beginning of the super epoch; called
        directly, and not by `of`, that of the window. f(θ_1) is a constant to derivatives.
    - `power`: p ≥ 0 of the steps' weights s_t = ((t + 1)/N)^p, with t counted from 0 in the super epoch
        of N steps. With 0, all count alike.

    **Raises:** `ValueError` for a negative `eps` or `power`.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813),
    sec. 3.3, whose loss is `LogMean(1e-6, relative=True)`.
    """

    eps: float = eqx.field(static=True, default=0.0)
    relative: bool = eqx.field(static=True, default=False)
    power: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        for name in ("eps", "power"):
            if not getattr(self, name) >= 0:
                raise ArgumentError(
                    f"`LogMean({name}=...)` cannot be negative. Got {name}={getattr(self, name)}.",
                    argument=name,
                    given=getattr(self, name),
                )

    def __call__(self, losses: Float[Array, " window"], start: StepNumber, num_steps: StepNumber) -> Scalar:
        return self.of(losses, start, num_steps, losses[0])

    def of(
        self,
        losses: Float[Array, " window"],
        start: StepNumber,
        num_steps: StepNumber,
        first_loss: Scalar,
    ) -> Scalar:
        if self.relative:
            first = lax.stop_gradient(first_loss).astype(losses.dtype)
            # log(f/f_1 + ε) as a difference: the ratio itself could overflow.
            logs = _log(losses + self.eps * first) - _log(first)
        else:
            logs = _log(losses + self.eps)
        if self.power:
            t = (start + jnp.arange(losses.shape[0])).astype(losses.dtype)
            logs = ((t + 1) / num_steps) ** self.power * logs
        return jnp.mean(logs)


def _log(x):
    # Not `maximum`, whose derivative at the floor itself would be half of an enormous number.
    floor = jnp.finfo(x.dtype).tiny
    return jnp.log(jnp.where(x <= floor, floor, x))
