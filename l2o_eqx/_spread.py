"""An optimizer on params that are spread over the devices of a mesh, in an optax loop."""

import contextlib
from typing import Any

import equinox as eqx
import jax
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._types import Params, State
from .optimizers import AbstractOptimizer, Seen, specs_like


def init_on_mesh(function: Any, optimizer: AbstractOptimizer, params: Params, num_steps: Any) -> State:
    """`function(optimizer, params, num_steps)`, a state that is spread as the params are.

    Under `jit` arrays do not say how axes of type `Auto` share them out. There XLA decides where the state
    is, as it does of any optax transformation, unless `out_shardings` tells it.
    """
    mesh = _known_mesh(params)
    if mesh is None:
        return function(optimizer, params, num_steps)
    shapes = eqx.filter_eval_shape(function, optimizer, params, num_steps)
    specs = specs_like(shapes, params, jax.tree.leaves(_specs(params, mesh)))
    return _run_on_mesh(function, mesh, specs, (optimizer, params, num_steps))


def update_on_mesh(
    function: Any, optimizer: AbstractOptimizer, seen: Seen, state: State, params: Params | None
) -> tuple[Params, State]:
    """`function(optimizer, seen, state, params)`, one step.

    Updates are where the params are (or else the gradients), and the state stays where it is.
    """
    like = seen.grads if params is None else params
    mesh = _known_mesh(like)
    if mesh is None:
        return function(optimizer, seen, state, params)
    specs = (_specs(like, mesh), _specs(state, mesh))
    return _run_on_mesh(function, mesh, specs, (optimizer, seen, state, params))


def _run_on_mesh(function: Any, mesh: AbstractMesh | Mesh, specs: PyTree, args: Any) -> Any:
    """`function(*args)`, with XLA free to choose where things are, but for the results."""
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


def _known_mesh(params: Params) -> AbstractMesh | Mesh | None:
    """The mesh of arrays that say how they are spread over it: because they are there, or by their type."""
    leaves = jax.tree.leaves(params)
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
