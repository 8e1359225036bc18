"""How optimizers treat params whose arrays are shared out over the devices of a mesh."""

from collections.abc import Callable

import jax
from jax.core import Tracer
from jax.sharding import AxisType
from jaxtyping import PyTree


def is_spread(tree: PyTree) -> bool:
    """Whether an array of a tree is shared out over a mesh, or may be.

    Inside of `jit` an array does not say how axes of type `Auto` share it out, but only that there is a mesh.
    """
    return any(map(_is_spread, jax.tree.leaves(tree)))


def _is_spread(x):
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    shared = [size for size, kind in kinds if kind != AxisType.Manual]
    if all(size == 1 for size in shared):
        return False
    if not isinstance(x, Tracer):
        return not x.sharding.is_fully_replicated
    explicit = any(name is not None for name in jax.typeof(x).sharding.spec)
    return explicit or AxisType.Auto in mesh.axis_types


def over_entries(function: Callable[..., PyTree], num_axes: int) -> Callable[..., PyTree]:
    """`function` of single entries for whole arrays: `num_axes` axes of theirs stay in front."""
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function
