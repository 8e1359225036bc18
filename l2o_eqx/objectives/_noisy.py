import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, PRNGKeyArray, UInt32

from .._errors import check
from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._wrapper import AbstractWrappedObjective, AbstractWrapper


class NoisyObjective(AbstractWrappedObjective):
    """f with noise on its gradients. Drawn by `Noisy`; `draw` tells its noise from that of others."""

    objective: AbstractObjective
    std: float = eqx.field(static=True)
    draw: UInt32[Array, ""]

    def changed(self, loss: Scalar) -> Scalar:
        return loss

    def at_step(
        self,
        evaluate: Callable[[Params], tuple[Scalar, State]],
        params: Params,
        step: StepNumber,
        key: PRNGKeyArray,
    ) -> tuple[Scalar, State]:
        leaves = jax.tree.leaves(params)
        keys = jr.split(jr.fold_in(jr.fold_in(key, self.draw), step), len(leaves))
        noise = [jr.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        loss, state = evaluate(params)
        # Zeros, with the noise as their gradient.
        zeros = [jnp.vdot(n, x - lax.stop_gradient(x)) for n, x in zip(noise, leaves, strict=True)]
        return loss + self.std * sum(zero.astype(loss.dtype) for zero in zeros), state

    def has_outer_loss(self) -> bool:
        # The noise is no part of what an optimizer is trained for.
        return True


class Noisy(AbstractWrapper):
    """A family's objectives with Gaussian noise on their gradients, drawn anew at every step.

    Losses are f's own. So is the outer loss with its gradient, and the minimum.

    **Arguments:**

    - `family`: gives f.
    - `noise_std`: standard deviation of the noise on every entry of the gradient.

    **Raises:** `ValueError` for a negative `noise_std`.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813).
    """

    family: AbstractObjectiveFamily
    noise_std: float = eqx.field(static=True, default=1.0, converter=float)

    def __check_init__(self):
        check(
            "`Noisy(noise_std=...)` is a standard deviation and cannot be negative. Got "
            f"noise_std={self.noise_std}.",
            noise_std=(self.noise_std, 0 <= self.noise_std < math.inf),
        )

    def sample(self, key: PRNGKeyArray) -> NoisyObjective:
        fkey, nkey = jr.split(key)
        return NoisyObjective(self.family.sample(fkey), self.noise_std, jr.bits(nkey, (), jnp.uint32))
