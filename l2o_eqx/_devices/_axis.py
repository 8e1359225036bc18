"""What a computation that is shared out over an axis of a mesh asks of it; with no axis, of itself alone."""

from typing import TypeVar

from jax import lax
from jaxtyping import Array, Float, Int

T = TypeVar("T")


def axis_size(axis: str | None) -> int:
    """How many devices share the work."""
    return 1 if axis is None else lax.axis_size(axis)


def axis_index(axis: str | None) -> int | Int[Array, ""]:
    """The number of this device."""
    return 0 if axis is None else lax.axis_index(axis)


def gather_rows(rows: Float[Array, "*leading own"], axis: str | None) -> Float[Array, "*leading all"]:
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
    """The mean over devices."""
    return tree if axis is None else lax.pmean(tree, axis)
