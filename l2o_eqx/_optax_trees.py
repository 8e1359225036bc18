"""What an optax loop hands over, as arrays that an optimizer can be shown: checked, and wide enough."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from ._errors import ArgumentError
from ._misc import at_least_float32, plain, wide_dtype_of

_NUMBERS = (jax.Array, np.ndarray, np.generic, float, int, complex)


def as_arrays(tree: PyTree, *, where: str, argument: str) -> PyTree[Array]:
    """The same tree with real arrays for leaves, Python's own numbers included.

    **Arguments:**

    - `where`, `argument`: the function and its argument that are to blame, in errors.

    **Raises:** `ValueError` for leaves that are no real numbers.
    """

    def one(path, leaf):
        if isinstance(leaf, bool) or not isinstance(leaf, _NUMBERS):
            raise _no_array(path, leaf, f"of type {type(leaf).__name__}")
        if isinstance(leaf, int | float):
            return jnp.asarray(leaf, jnp.result_type(float))
        if isinstance(leaf, complex) or jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise _complex(path, leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise _no_array(path, leaf, f"an array of {leaf.dtype}")
        return jnp.asarray(leaf)

    def _no_array(path, leaf, kind):
        return ArgumentError(
            f"{where}: `{argument}{jtu.keystr(path)}` is no array of real numbers, but {kind}. Of a model "
            "hand over the arrays alone, `eqx.filter(model, eqx.is_inexact_array)`.",
            argument=argument,
            given=leaf,
        )

    def _complex(path, leaf):
        return ArgumentError(
            f"{where}: `{argument}{jtu.keystr(path)}` is complex, and learned optimizers take real numbers. "
            "`optax.contrib.split_real_and_imaginary` around the transformation shows it both parts.",
            argument=argument,
            given=leaf,
        )

    return jtu.tree_map_with_path(one, plain(tree))


def wide(tree: PyTree[Array]) -> PyTree[Array]:
    """In float32 at least, as features and states are."""
    return jax.tree.map(at_least_float32, tree)


def check_same_shapes(grads: PyTree[Array], params: PyTree[Array], *, where: str) -> None:
    """Refuses gradients that are not those of the params.

    **Arguments:**

    - `where`: the function that is to blame.

    **Raises:** `ValueError` if leaves are missing, or have other shapes.
    """
    shapes = [[x.shape for x in jax.tree.leaves(tree)] for tree in (grads, params)]
    if shapes[0] != shapes[1]:
        raise ArgumentError(
            f"{where}: the gradients have the shapes {shapes[0]}, but the params have {shapes[1]}.",
            argument="updates",
            given=shapes[0],
        )


def with_dtypes(updates: PyTree[Array], like: PyTree[Array], treedef: Any) -> PyTree[Array]:
    """In a certain structure, with the dtypes of another tree's leaves."""
    leaves = zip(jax.tree.leaves(updates), jax.tree.leaves(like), strict=True)
    return treedef.unflatten([u.astype(x.dtype) for u, x in leaves])


def as_value(value: Any, like: PyTree[Array]) -> Array:
    """A loss as a scalar, always in the dtype that a tree of arrays is computed in: states keep theirs."""
    dtypes = [wide_dtype_of(x.dtype) for x in jax.tree.leaves(like)]
    return jnp.asarray(value, jnp.result_type(*dtypes) if dtypes else jnp.float32)
