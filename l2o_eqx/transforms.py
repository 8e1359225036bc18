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

        def scale(update, norm):
            norm = jnp.maximum(norm, eps).astype(update.dtype)
            return update / jnp.where(norm > 0, norm, 1.0)

        if per == "global":
            norm = optax.global_norm(updates)
            return jax.tree.map(lambda u: scale(u, norm), updates), state
        return jax.tree.map(lambda u: scale(u, jnp.linalg.norm(jnp.ravel(u))), updates), state

    return optax.GradientTransformation(init, update)
