"""Arrays that somebody else has spread over the devices of a mesh, and computations that leave them there."""

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
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


def spread_out(function: Callable[..., PyTree], like: PyTree, *args: Any) -> PyTree:
    """`function(*args)`, of arrays that are spread as those of `like` are which they belong to.

    Under `jit` arrays do not say how axes of type `Auto` share them out. There XLA decides where results
    are, as it does of the state of any optax transformation, unless `out_shardings` tells it.
    """
    mesh = _known_mesh(like)
    if mesh is None:
        return function(*args)
    specs = _specs_like(eqx.filter_eval_shape(function, *args), like, jax.tree.leaves(_specs(like, mesh)))
    return _run_on_mesh(function, mesh, specs, args)


def keep_spread(function: Callable[..., PyTree], like: PyTree, *args: Any) -> PyTree:
    """`function(*args)`, whose result has the structure of `like` and is where that is."""
    mesh = _known_mesh(like)
    return function(*args) if mesh is None else _run_on_mesh(function, mesh, _specs(like, mesh), args)


def _specs_like(tree, params, specs):
    # An array belongs to one of the params if it has its shape, perhaps with more axes behind or in front. If
    # there are several, to that whose path is in its own, or whose number is.
    paths, shapes = zip(*((p, x.shape) for p, x in jtu.tree_leaves_with_path(params)), strict=True)

    def belongs(path: tuple[Any, ...], i: int) -> bool:
        return bool(paths[i]) and any(path[k : k + len(paths[i])] == paths[i] for k in range(len(path)))

    def one(path: tuple[Any, ...], x: Any) -> PartitionSpec:
        behind = [i for i, s in enumerate(shapes) if s and x.shape[: len(s)] == s]
        fitting = behind or [i for i, s in enumerate(shapes) if s and x.shape[-len(s) :] == s]
        numbers = [key.idx for key in path if isinstance(key, jtu.SequenceKey)]
        mine = [i for i in fitting if belongs(path, i)] or [i for i in numbers if i in fitting] or fitting
        if not mine:
            return PartitionSpec()
        in_front = 0 if behind else len(x.shape) - len(shapes[mine[0]])
        return PartitionSpec(*[None] * in_front, *specs[mine[0]])

    return jtu.tree_map_with_path(one, tree)


def _run_on_mesh(function: Any, mesh: AbstractMesh | Mesh, specs: PyTree, args: Any) -> Any:
    # With XLA free to choose where things are, but for the results.
    concrete: Any = mesh  # so are abstract ones taken, but the types of JAX do not say so
    shardings, treedef = jax.tree.flatten(jax.tree.map(lambda spec: NamedSharding(concrete, spec), specs))
    # A state of zeros does not tell by itself which devices it is for.
    outside = isinstance(mesh, Mesh) and jax.sharding.get_abstract_mesh().empty
    with jax.set_mesh(concrete) if outside else contextlib.nullcontext():
        return treedef.unflatten(_on_mesh(function, mesh, tuple(shardings), args))


@eqx.filter_jit
def _on_mesh(function, mesh, shardings, args):
    arrays, rest = eqx.partition(args, eqx.is_array)

    def run(arrays):
        return tuple(jax.tree.leaves(function(*eqx.combine(arrays, rest))))

    if not _is_explicit(mesh):
        return lax.with_sharding_constraint(run(arrays), shardings)
    # Axes that are part of the arrays' types: operations that say nothing of them would be refused.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.sharding.auto_axes(run, out_sharding=shardings)(arrays)


def _known_mesh(tree: PyTree) -> AbstractMesh | Mesh | None:
    """The mesh of arrays that say how they are spread over it: because they are there, or by their type."""
    leaves = jax.tree.leaves(tree)
    placed = [x.sharding for x in leaves if _is_there(x)]
    meshes = [s.mesh for s in placed if _is_explicit(s.mesh) or not s.is_fully_replicated]
    types = [jax.typeof(x).sharding.mesh for x in leaves]
    meshes += [mesh for mesh in types if _is_explicit(mesh)]
    return meshes[0] if meshes else None


def _is_explicit(mesh):
    return AxisType.Explicit in mesh.axis_types


def _specs(tree: PyTree, mesh: AbstractMesh | Mesh) -> PyTree[PartitionSpec]:
    def one(x):
        if _is_explicit(mesh):
            return jax.typeof(x).sharding.spec
        return x.sharding.spec if _is_there(x) and x.sharding.mesh == mesh else PartitionSpec()

    return jax.tree.map(one, tree)


def _is_there(x):
    return not isinstance(x, Tracer) and isinstance(x.sharding, NamedSharding)
