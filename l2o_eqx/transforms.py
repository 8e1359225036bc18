"""Optax transformations for meta-gradients. To clip them, `optax.clip` and its like are all it takes."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .optimizers import AbstractOptimizer


def unit_norm(
    per: Literal["tensor", "block", "global"] = "tensor", *, eps: float = 0.0
) -> optax.GradientTransformation:
    """Scales meta-gradients to Euclidean norm one.

    Meta-gradients are tiny, above all for networks; this makes their scale irrelevant.

    **Arguments:**

    - `per`: every weight `"tensor"` by itself, as the thesis's code does, all tensors of a `"block"` of the
        optimizer together (see `AbstractOptimizer.blocks`), so that the meta-gradient of one layer's
        optimizer is not small beside another's, or all there are, `"global"`.
    - `eps`: smallest norm to divide by; the released code has 1e-6. A zero gradient stays zero.

    **Raises:** `ValueError` for an unknown `per`.

    Reference: thesis sec. 5.3.2.
    """
    if per not in ("tensor", "block", "global"):
        raise ValueError(f"`unit_norm(per={per!r})`: a norm is taken per 'tensor', per 'block' or 'global'.")

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params

        if per == "tensor":
            return jax.tree.map(lambda u: _scaled(u, eps), updates), state
        if per == "block" and isinstance(updates, AbstractOptimizer) and len(updates.blocks()) > 1:
            scaled = [_scaled(block, eps) for block in updates.blocks().values()]
            return eqx.tree_at(lambda u: list(u.blocks().values()), updates, scaled), state
        return _scaled(updates, eps), state

    return optax.GradientTransformation(init, update)


def _scaled(tree, eps):
    norm = _norm(jax.tree.leaves(tree), eps)
    return jax.tree.map(lambda u: u / norm.astype(u.dtype), tree)


def _norm(arrays, eps):
    # Scaled by the largest entry first: the square of a vanishing meta-gradient would round to zero.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in arrays]))
    scale = jnp.where(largest > 0, largest, 1.0)
    norm = scale * jnp.sqrt(sum(jnp.sum(jnp.square(x / scale)) for x in arrays))
    norm = jnp.maximum(norm, eps)
    return jnp.where(norm > 0, norm, 1.0)
