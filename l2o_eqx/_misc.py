"""Trees of arrays as rows of coordinates, and back: one order of coordinates for the whole package."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


def tree_dtype(tree: PyTree[Array]) -> np.dtype:
    """The widest dtype among the leaves; float32 if there are none."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float32))


def ravel(
    tree: PyTree[Array], dtype: np.dtype, *, num_leading: int = 0
) -> Float[Array, "*leading coordinates"]:
    """All leaves side by side on the last axis, behind their first `num_leading` axes."""
    rows = [x.reshape(*x.shape[:num_leading], -1).astype(dtype) for x in jax.tree.leaves(tree)]
    return jnp.concatenate(rows, axis=-1) if rows else jnp.zeros(0, dtype)


def unravel_like(flat: Float[Array, " coordinates"], tree: PyTree[Array]) -> PyTree[Array]:
    """The inverse of `ravel` without leading axes; every leaf has its own shape and dtype again."""
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves], dtype=int).tolist()
    parts = [
        flat[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(treedef, parts)


def tree_norm(tree: PyTree[Array]) -> Float[Array, ""]:
    """The Euclidean norm of all leaves together; its derivative at zero is zero.

    Scaled by the largest entry first, because squares of small numbers round to zero and those of large ones
    overflow.
    """
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]))
    scale = jnp.where(largest > 0, largest, 1.0)
    square = sum(jnp.sum(jnp.square(x / scale)) for x in leaves)
    positive = square > 0
    return jnp.where(positive, scale * jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
