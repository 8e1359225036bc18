"""A batch of objectives as an optimizer is shown it: its state, laid out, beside the layout.

Every leaf of params and gradients carries an axis for the objectives in front. One objective is a batch of
one.
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._misc import cast_like
from .._types import Params, State, StepNumber
from ..optimizers import AbstractLayout, AbstractOptimizer, Cutting, Seen


class BatchState(eqx.Module):
    """What a batch of runs carries from step to step beside the params.

    **Fields:**

    - `arrays`: the optimizer's state as `layout` lays it out.
    - `layout`: how the batch is shown to the optimizer.
    - `of_objectives`: the states of the objectives themselves, which are on the leading axis; `None` if they
        have none (see `AbstractObjective`). They ride here so that whoever hands a state on hands on all of
        it.
    """

    arrays: PyTree
    layout: AbstractLayout
    of_objectives: PyTree = None

    def with_objectives(self, states: PyTree) -> "BatchState":
        """The same with other states of the objectives."""
        return BatchState(self.arrays, self.layout, states)

    def uncut(self) -> "BatchState":
        """The same in as few pieces as possible, to be differentiated through."""
        layout, arrays = self.layout.uncut(self.arrays)
        return BatchState(arrays, layout, self.of_objectives)

    def cut(self, uncut: "BatchState") -> "BatchState":
        """The inverse of `uncut`; this is the state that was."""
        return BatchState(self.layout.cut(uncut.arrays), self.layout, uncut.of_objectives)

    def each(self) -> "BatchState":
        """Those of batches of one, on a leading axis for the objectives."""
        layout, arrays = self.layout.each(self.arrays)
        return BatchState(arrays, layout, jax.tree.map(lambda x: x[:, None], self.of_objectives))

    def together(self, each: "BatchState") -> "BatchState":
        """The inverse of `each`; this is a state of the whole batch."""
        states = jax.tree.map(lambda x: x[:, 0], each.of_objectives)
        return BatchState(self.layout.together(each.arrays), self.layout, states)


def layout_of(
    optimizer: AbstractOptimizer, params: Params, *, axis: str | None = None, block_size: int | None = None
) -> AbstractLayout:
    """The optimizer's layout for params with an objectives axis; `axis`, `block_size` as in `Cutting`."""
    return optimizer.layout(of_one(params)).fit(params, Cutting(axis, block_size))


def batched_init(
    optimizer: AbstractOptimizer,
    params: Params,
    num_steps: StepNumber | None = None,
    *,
    axis: str | None = None,
    block_size: int | None = None,
) -> BatchState:
    """`optimizer.init_for` (or `init`) for params with an objectives axis.

    **Arguments:**

    - `num_steps`: how many steps there are going to be, if that is known.
    - `axis`, `block_size`: as in `Cutting`.
    """
    layout = layout_of(optimizer, params, axis=axis, block_size=block_size)
    return BatchState(layout.init(optimizer, params, num_steps), layout)


def batched_update(
    optimizer: AbstractOptimizer,
    seen: Seen,
    state: BatchState,
    params: Params | None,
    *,
    like: PyTree | None = None,
    differentiable: bool = False,
) -> tuple[Params, BatchState]:
    """`optimizer.update` for what is laid out, a state from `batched_init` and plain params.

    The state keeps its dtypes, to whatever wider ones an optimizer has promoted it.

    **Arguments:**

    - `like`: has the shapes of the params where these are left out.
    - `differentiable`: whether blocks can be differentiated through, each computed again in the reverse
        pass; otherwise they are overwritten in place.
    """
    like = params if like is None else like
    updates, arrays = state.layout.update(
        optimizer, seen, state.arrays, params, like=like, differentiable=differentiable
    )
    return updates, BatchState(cast_like(arrays, state.arrays), state.layout, state.of_objectives)


def to_batched_state(optimizer: AbstractOptimizer, state: State, params: Params) -> BatchState:
    """The state of one objective as that of a batch of one; `params` have the objectives axis."""
    layout = layout_of(optimizer, params)
    return BatchState(layout.from_one(state), layout)


def from_batched_state(state: BatchState) -> State:
    """The inverse of `to_batched_state`."""
    return state.layout.to_one(state.arrays)


def begin_at(optimizer: AbstractOptimizer, params: Params) -> Params:
    """Where the optimizer wants runs to begin that were drawn to begin at params with an objectives axis."""
    return jax.vmap(optimizer.initial_params)(params) if learns_start(optimizer, params) else params


def learns_start(optimizer: AbstractOptimizer, params: Params) -> bool:
    """Whether the optimizer has a say in where runs begin: it answers with something else than the params."""
    handed_on = False

    def ask(params):
        nonlocal handed_on
        start = optimizer.initial_params(params)
        pairs = zip(jax.tree.leaves(start), jax.tree.leaves(params), strict=True)
        handed_on = all(new is old for new, old in pairs)
        return start

    jax.eval_shape(ask, of_one(params))
    return not handed_on


def add_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], tree)


def drop_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)


def of_one(tree: PyTree) -> PyTree[Any]:
    """The shapes of one objective's part of a tree with an objectives axis."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
