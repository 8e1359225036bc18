"""Optax transformations for meta-gradients."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax


def unit_norm(
    per: Literal["tensor", "global"] = "tensor", *, eps: float = 0.0
) -> optax.GradientTransformation:
    """Scales meta-gradients to Euclidean norm one.

    Meta-gradients are tiny, above all for networks; this makes their scale irrelevant.

    **Arguments:**

    - `per`: every weight `"tensor"` by itself, as the thesis's code does, or all of them together.
    - `eps`: smallest norm to divide by; the released code has 1e-6. A zero gradient stays zero.

    **Raises:** `ValueError` for an unknown `per`.

    Reference: thesis sec. 5.3.2.
    """
    if per not in ("tensor", "global"):
        raise ValueError(f"`unit_norm(per={per!r})`: a norm is taken per 'tensor' or 'global'.")

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params

        if per == "global":
            norm = _norm(jax.tree.leaves(updates), eps)
            return jax.tree.map(lambda u: u / norm.astype(u.dtype), updates), state
        return jax.tree.map(lambda u: u / _norm([u], eps).astype(u.dtype), updates), state

    return optax.GradientTransformation(init, update)


def _norm(arrays, eps):
    # Scaled by the largest entry first: the square of a vanishing meta-gradient would round to zero.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in arrays]))
    scale = jnp.where(largest > 0, largest, 1.0)
    norm = scale * jnp.sqrt(sum(jnp.sum(jnp.square(x / scale)) for x in arrays))
    norm = jnp.maximum(norm, eps)
    return jnp.where(norm > 0, norm, 1.0)
