"""Trees of arrays as rows of coordinates, and back: one order of coordinates for the whole package."""

import functools
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree


def tree_dtype(tree: PyTree[Array]) -> np.dtype:
    """A dtype that holds all leaves; float32 if there are none, and for two kinds of half precision."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(tree)}
    return functools.reduce(jnp.promote_types, dtypes) if dtypes else np.dtype(np.float32)


def wide_dtype_of(dtype: np.dtype) -> np.dtype:
    """The dtype to compute in: float32 instead of all that is narrower."""
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def plain(tree: PyTree) -> PyTree:
    """A tree of Flax NNX without the variables around its arrays, which its gradients do not have either.

    So an array has the same path in params and in gradients. Any other tree stays as it is.
    """
    nnx: Any = sys.modules.get("flax.nnx")
    return tree if nnx is None else nnx.as_pure(tree)


def ravel(
    tree: PyTree[Array], dtype: np.dtype, *, num_leading: int = 0
) -> Float[Array, "*leading coordinates"]:
    """All leaves side by side on the last axis, behind their first `num_leading` axes."""
    rows = [x.reshape(*x.shape[:num_leading], -1).astype(dtype) for x in jax.tree.leaves(tree)]
    return jnp.concatenate(rows, axis=-1) if rows else jnp.zeros(0, dtype)


def ravel_wide(tree: PyTree[Array]) -> Float[Array, " coordinates"]:
    """The coordinates as float32 at least: running means need its range and digits."""
    return ravel(tree, wide_dtype_of(tree_dtype(tree)))


def unravel_like(flat: Float[Array, " coordinates"], tree: PyTree[Array]) -> PyTree[Array]:
    """The inverse of `ravel` without leading axes; every leaf has its own shape and dtype again."""
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves], dtype=int).tolist()
    parts = [
        flat[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(treedef, parts)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Arrays in the dtypes of those of another tree of the same structure; what has its dtype is not touched.

    Trees of other structures are handed back as they are.
    """

    def cast(x, y):
        if not (eqx.is_array(x) and eqx.is_array(y)) or x.dtype == y.dtype:
            return x
        return x.astype(y.dtype)

    if jax.tree.structure(tree) != jax.tree.structure(like):
        return tree
    return jax.tree.map(cast, tree, like)


def add_updates(params: PyTree[Array], updates: PyTree[Array]) -> PyTree[Array]:
    """params + updates in the dtypes of the params, which wider updates do not promote."""
    return cast_like(eqx.apply_updates(params, updates), params)


def at_least_float32(x: Array) -> Array:
    """The same in float32 if its dtype is narrower: features and sums need its digits and range."""
    return x.astype(wide_dtype_of(x.dtype))


def tree_norm(tree: PyTree[Array]) -> Float[Array, ""]:
    """The Euclidean norm of all leaves together; its derivative at zero is zero.

    Scaled by the largest entry first, because squares of small numbers round to zero and those of large ones
    overflow.
    """
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]))
    # The norm does not depend on it, nor do its derivatives, but their products could overflow.
    scale = lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    square = sum(jnp.sum(jnp.square(x / scale)) for x in leaves)
    positive = square > 0
    return jnp.where(positive, scale * jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def shapes_of(tree: PyTree) -> tuple[Any, list[tuple[Any, Any]]]:
    """The structure of a tree, with the shapes and dtypes of its arrays."""
    leaves, treedef = jax.tree.flatten(eqx.filter(tree, eqx.is_array))
    return treedef, [(x.shape, x.dtype) for x in leaves]


def root_mean_square(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """√mean(x²), taken in at least float32; 0 where all entries are, or where there are none."""
    scale, rms = _scale_and_rms(x)
    return scale * rms * jnp.any(x != 0)


def unit_rms(tree: PyTree[Array]) -> PyTree[Array]:
    """Every array over its root mean square, in its own dtype; zeros stay zero."""

    def one(x):
        scale, rms = _scale_and_rms(x)
        return (x.astype(scale.dtype) / scale / rms).astype(x.dtype)

    return jax.tree.map(one, tree)


def _scale_and_rms(x):
    # Scaled by the largest entry first: squares would vanish or overflow. Both are 1 if all entries are 0,
    # where the root has no derivative.
    x = at_least_float32(x)
    largest = jnp.max(jnp.abs(x), initial=0)
    scale = lax.stop_gradient(jnp.where(largest > 0, largest, 1))
    mean_square = jnp.sum(jnp.square(x / scale)) / max(1, x.size)
    return scale, jnp.sqrt(jnp.where(largest > 0, mean_square, 1))
