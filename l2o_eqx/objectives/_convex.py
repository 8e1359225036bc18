from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._types import Scalar

_STEPS = 40
_HALVINGS = 12


def convex_minimum(
    loss: Callable[[Float[Array, " dim"]], Scalar], start: Float[Array, " dim"]
) -> tuple[Scalar, Float[Array, " dim"]]:
    """The lowest value of a strictly convex function of few coordinates, and where it is, by Newton's method.

    Every step is the best of the whole Newton step and its halves, quarters and so on, or none.

    **Arguments:**

    - `loss`: the function; its Hessian must be regular everywhere.
    - `start`: where to begin.
    """
    shares = jnp.concatenate([0.5 ** jnp.arange(_HALVINGS), jnp.zeros(1)]).astype(start.dtype)

    def step(_, x):
        direction = jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x))
        candidates = x[None] - shares[:, None] * direction[None]
        return candidates[jnp.argmin(jax.vmap(loss)(candidates))]

    x = lax.fori_loop(0, _STEPS, step, start)
    return loss(x), x
