"""Params whose arrays are spread over the devices of a mesh: nothing cuts, joins or reshapes them.

A reshape of an array whose axes are shared out would gather it. So a coordinatewise optimizer runs entry by
entry, with the axes of the array in front of whatever it makes of an entry; XLA then leaves every entry where
it is, on axes that it shares out by itself as on those that are part of an array's type.
"""

from typing import Any

import jax
import jax.random as jr
import jax.tree_util as jtu
from jax.sharding import PartitionSpec
from jaxtyping import PRNGKeyArray, PyTree

from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractOptimizer
from ._blocks import Blocks
from ._layouts import Seen, initial_state, take_step
from ._sharing import over_entries


class ByEntry(AbstractOptimizer):
    """A coordinatewise optimizer, entry by entry: the array that it is shown has one coordinate.

    Its state is a tree like the params of what it keeps of every entry, behind the leaf's own axes.
    """

    inner: AbstractOptimizer

    def wants(self) -> frozenset[str]:
        return self.inner.wants()

    def needs(self) -> frozenset[str]:
        return self.inner.needs()

    def initial_params(self, params: Params) -> Params:
        return self.inner.initial_params(params)

    def init(self, params: Params) -> State:
        return self._init(params, None)

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        return self._init(params, num_steps)

    def _init(self, params, num_steps):
        def one(entry):
            return initial_state(self.inner, entry[None], num_steps)

        return jax.tree.map(lambda x: over_entries(one, x.ndim)(x), params)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        value = None if value is None else value[None]

        def one(grad, state, param, key):
            param = None if param is None else param[None]
            update, state = take_step(self.inner, Seen(grad[None], value, key), state, param)
            return update[0], state

        leaves, treedef = jax.tree.flatten(grads)
        points = [None] * len(leaves) if params is None else jax.tree.leaves(params)
        results = []
        for i, (grad, own, point) in enumerate(
            zip(leaves, treedef.flatten_up_to(state), points, strict=True)
        ):
            keys = None if key is None else jr.split(jr.fold_in(key, i), grad.shape)
            results.append(over_entries(one, grad.ndim)(grad, own, point, keys))
        updates, states = zip(*results, strict=True) if results else ((), ())
        return treedef.unflatten(updates), treedef.unflatten(states)


def by_entry(optimizer: AbstractOptimizer, shapes: PyTree[jax.ShapeDtypeStruct]) -> AbstractOptimizer:
    """The same optimizer, with what is coordinatewise of it, or inside of it, run entry by entry."""

    def is_apart(x: Any) -> bool:
        return isinstance(x, AbstractOptimizer) and isinstance(x.layout(shapes), Blocks)

    return jax.tree.map(lambda x: ByEntry(x) if is_apart(x) else x, optimizer, is_leaf=is_apart)


def specs_like(tree: PyTree, params: PyTree, specs: list[PartitionSpec]) -> PyTree[PartitionSpec]:
    """How the arrays of a state are shared out: as the params that they belong to, or not at all.

    An array belongs to the params if its shape is theirs, perhaps with more axes behind. If several are, then
    to those whose path its own path ends with, or whose number is in it.

    **Arguments:**

    - `tree`: the state, or its shapes.
    - `params`: arrays or shapes.
    - `specs`: those of all params, in order.
    """
    paths, shapes = zip(*((p, x.shape) for p, x in jtu.tree_leaves_with_path(params)), strict=True)

    def belongs(path: tuple[Any, ...], i: int) -> bool:
        return bool(paths[i]) and any(path[k : k + len(paths[i])] == paths[i] for k in range(len(path)))

    def one(path: tuple[Any, ...], x: Any) -> PartitionSpec:
        fitting = [i for i, s in enumerate(shapes) if s and x.shape[: len(s)] == s]
        numbers = [key.idx for key in path if isinstance(key, jtu.SequenceKey)]
        mine = [i for i in fitting if belongs(path, i)] or [i for i in numbers if i in fitting] or fitting
        return specs[mine[0]] if mine else PartitionSpec()

    return jtu.tree_map_with_path(one, tree)
