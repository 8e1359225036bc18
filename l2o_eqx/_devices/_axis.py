"""What a computation that is shared out over an axis of a mesh asks of it; with no axis, of itself alone."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

T = TypeVar("T")


def axis_size(axis: str | None) -> int:
    """How many devices share the work."""
    return 1 if axis is None else lax.axis_size(axis)


def axis_index(axis: str | None) -> int | Int[Array, ""]:
    """The number of this device."""
    return 0 if axis is None else lax.axis_index(axis)


def gather_rows(rows: Shaped[Array, "*leading own"], axis: str | None) -> Shaped[Array, "*leading all"]:
    """The rows of all devices side by side."""
    return rows if axis is None else lax.all_gather(rows, axis, axis=rows.ndim - 1, tiled=True)


def own_rows(rows: Float[Array, "*leading all"], size: int, axis: str | None) -> Float[Array, "*leading own"]:
    """The part of this device, `size` long, of rows that all have."""
    if axis is None:
        return rows
    return lax.dynamic_slice_in_dim(rows, size * lax.axis_index(axis), size, axis=-1)


def sum_over(tree: T, axis: str | None) -> T:
    """The sum over devices."""
    return tree if axis is None else lax.psum(tree, axis)


def mean_over(tree: T, axis: str | None) -> T:
    """The mean over devices; of arrays of one dtype in one message, since most of its time is waiting."""
    if axis is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    means = list(leaves)
    # In the order of the leaves: all devices must send the same.
    for dtype in dict.fromkeys(x.dtype for x in leaves):
        own = [i for i, x in enumerate(leaves) if x.dtype == dtype]
        row = lax.pmean(jnp.concatenate([leaves[i].ravel() for i in own]), axis)
        ends = np.cumsum([leaves[i].size for i in own])
        for i, part in zip(own, jnp.split(row, ends[:-1]), strict=True):
            means[i] = part.reshape(leaves[i].shape)
    return treedef.unflatten(means)
