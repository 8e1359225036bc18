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


def ravel_wide(tree: PyTree[Array]) -> Float[Array, " coordinates"]:
    """The coordinates as float32 at least: running means need its range and digits."""
    return ravel(tree, jnp.promote_types(tree_dtype(tree), jnp.float32))


def unravel_like(flat: Float[Array, " coordinates"], tree: PyTree[Array]) -> PyTree[Array]:
    """The inverse of `ravel` without leading axes; every leaf has its own shape and dtype again."""
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves], dtype=int).tolist()
    parts = [
        flat[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(treedef, parts)
