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


class SparseGradientsObjective(AbstractWrappedObjective):
    """f with entries of its gradient left out. Drawn by `SparseGradients`; `draw` tells which of its kind."""

    objective: AbstractObjective
    zeros: float = eqx.field(static=True)
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
        leaves, treedef = jax.tree.flatten(params)
        keys = jr.split(jr.fold_in(jr.fold_in(key, self.draw), step), len(leaves))
        shown = [
            jnp.where(jr.uniform(k, x.shape) < self.zeros, lax.stop_gradient(x), x)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return evaluate(jax.tree.unflatten(treedef, shown))

    def has_outer_loss(self) -> bool:
        # Which entries are left out is no part of what an optimizer is trained for.
        return True


class SparseGradients(AbstractWrapper):
    """A family's objectives with most entries of their gradients zero, other ones at every step.

    Losses are f's own. So is the outer loss with its gradient, and the minimum. The coordinates left out of a
    step are constants of it, to second derivatives, too.

    **Arguments:**

    - `family`: gives f.
    - `zeros`: with which probability an entry is zero, from 0 to below 1.

    **Raises:** `ValueError` for another probability.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813); its
    released code has 0.99.
    """

    family: AbstractObjectiveFamily
    zeros: float = eqx.field(static=True, default=0.9, converter=float)

    def __check_init__(self):
        check(
            f"`SparseGradients(zeros=...)` is a probability, from 0 to below 1. Got zeros={self.zeros}.",
            zeros=(self.zeros, 0 <= self.zeros < 1),
        )

    def sample(self, key: PRNGKeyArray) -> SparseGradientsObjective:
        fkey, zkey = jr.split(key)
        draw = jr.bits(zkey, (), jnp.uint32)
        return SparseGradientsObjective(self.family.sample(fkey), self.zeros, draw)
