"""Optimizers entry by entry, for params whose arrays are spread over devices: nothing cuts or joins these.

A reshape of an array whose axes are shared out would gather it. So a coordinatewise optimizer runs entry by
entry, with the axes of the array in front of whatever it makes of an entry; XLA then leaves every entry where
it is, on axes that it shares out by itself as on those that are part of an array's type.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractOptimizer
from ._blocks import Blocks
from ._layouts import Seen, initial_state, take_step
from ._wrapper import AbstractWrapper


def over_entries(function: Callable[..., PyTree], num_axes: int) -> Callable[..., PyTree]:
    """`function` of single entries for whole arrays: `num_axes` axes of theirs stay in front."""
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function


class ByEntry(AbstractWrapper):
    """A coordinatewise optimizer, entry by entry: the array that it is shown has one coordinate.

    Its state is a tree like the params of what it keeps of every entry, behind the leaf's own axes.
    """

    inner: AbstractOptimizer

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

    def answers(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> None:
        # Every entry is a run of its own: there is nothing to tell of them all.
        del grads, state, params, value, key


def by_entry(optimizer: AbstractOptimizer, shapes: PyTree[jax.ShapeDtypeStruct]) -> AbstractOptimizer:
    """The same optimizer, with what is coordinatewise of it, or inside of it, run entry by entry."""

    def is_apart(x: Any) -> bool:
        return isinstance(x, AbstractOptimizer) and isinstance(x.layout(shapes), Blocks)

    return jax.tree.map(lambda x: ByEntry(x) if is_apart(x) else x, optimizer, is_leaf=is_apart)
