"""How the engine lays out what a batch of objectives shows an optimizer.

To a coordinatewise optimizer a batch of objectives is just more coordinates, which makes one wide product
out of many narrow ones; and because coordinates do not see each other, they are cut into blocks that fit
the cache, and the blocks may be spread over devices. Any other optimizer gets every objective's tree whole.

Every leaf of params and gradients carries an axis for the objectives in front. One objective is a batch
of one.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from ._misc import ravel, tree_dtype, unravel_like
from ._types import Params, State, StepNumber
from .optimizers import AbstractOptimizer, PerLayer

# Coordinates per block. On a CPU (measured, docs/performance.md) smaller blocks pay for more loop
# iterations, and larger ones fall out of the cache and are cut up among XLA's threads; an accelerator
# needs wide operations to be busy.
_BLOCK_SIZE_CPU = 256
_BLOCK_SIZE_ACCELERATOR = 2**16


def default_block_size() -> int:
    return _BLOCK_SIZE_CPU if jax.default_backend() == "cpu" else _BLOCK_SIZE_ACCELERATOR


def has_blocks(optimizer: AbstractOptimizer) -> bool:
    """Whether its coordinates, or those of a part of it, are independent."""
    return any(part.coordinatewise for part in _parts(optimizer))


def has_only_blocks(optimizer: AbstractOptimizer) -> bool:
    """Whether its coordinates, and those of all its parts, are independent."""
    return all(part.coordinatewise for part in _parts(optimizer))


def _parts(optimizer: AbstractOptimizer) -> Iterator[AbstractOptimizer]:
    if isinstance(optimizer, PerLayer):
        for part in optimizer.optimizers.values():
            yield from _parts(part)
    else:
        yield optimizer


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The coordinates of a batch of objectives, objective by objective, cut into `count` blocks of `size`.

    With `axis`, the blocks are those of one device of that axis of a mesh. The last block is filled up by
    repeating a real coordinate, because an optimizer need not be finite on what no objective shows it.
    """

    num_objectives: int
    num_coordinates: int
    count: int
    size: int
    axis: str | None = None

    @property
    def total(self) -> int:
        """How many coordinates there are on all devices."""
        return self.num_objectives * self.num_coordinates

    def split(self, rows: Float[Array, "*leading coordinates"]) -> Float[Array, "blocks *leading size"]:
        """The blocks of this device."""
        own = self.count * self.size
        num_devices = 1 if self.axis is None else lax.axis_size(self.axis)
        rows = _fill_up(rows, num_devices * own)
        if self.axis is not None:
            rows = lax.dynamic_slice_in_dim(rows, own * lax.axis_index(self.axis), own, axis=-1)
        return self.split_own(rows)

    def join(self, blocks: Float[Array, "blocks *leading size"]) -> Float[Array, "*leading coordinates"]:
        """The inverse of `split`, with the blocks of all devices."""
        rows = self.join_own(blocks)
        if self.axis is not None:
            rows = lax.all_gather(rows, self.axis, axis=rows.ndim - 1, tiled=True)
        return rows[..., : self.total]

    def split_own(self, rows: Float[Array, "*leading own"]) -> Float[Array, "blocks *leading size"]:
        """The blocks of this device from its own coordinates; what is missing in the last is filled up."""
        rows = _fill_up(rows, self.count * self.size)
        return jnp.moveaxis(rows.reshape(*rows.shape[:-1], self.count, self.size), -2, 0)

    def join_own(self, blocks: Float[Array, "blocks *leading size"]) -> Float[Array, "*leading own"]:
        """The coordinates of this device, with what fills up the last block."""
        rows = jnp.moveaxis(blocks, 0, -2)
        return rows.reshape(*rows.shape[:-2], self.count * self.size)

    def objectives_of(self, block: Int[Array, ""]) -> tuple[Int[Array, " size"], Array]:
        """Which objective each coordinate of a block belongs to, and whether it is no repetition."""
        first = 0 if self.axis is None else lax.axis_index(self.axis) * self.count
        coordinates = (first + block) * self.size + jnp.arange(self.size)
        real = coordinates < self.total
        return jnp.minimum(coordinates // max(1, self.num_coordinates), self.num_objectives - 1), real


def _fill_up(rows: Float[Array, "*leading coordinates"], size: int) -> Float[Array, "*leading size"]:
    padding = size - rows.shape[-1]
    return jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, padding)], "edge") if padding else rows


class BlockedState(eqx.Module):
    """The state of a coordinatewise optimizer, its arrays cut by `blocks`."""

    arrays: PyTree[Array]
    blocks: Blocks = eqx.field(static=True)


def own_coordinates(params: Params, axis: str | None = None) -> int:
    """How many coordinates each device of an axis has if they are spread over it."""
    return -(-sum(leaf.size for leaf in jax.tree.leaves(params)) // (lax.axis_size(axis) if axis else 1))


def cut(params: Params, *, axis: str | None = None, block_size: int | None = None) -> Blocks:
    """Blocks of about `block_size` for the coordinates of params with an objectives axis.

    **Arguments:**

    - `axis`: of the mesh over whose devices to spread them, inside `shard_map`.
    - `block_size`: by default what suits the device.
    """
    leaves = jax.tree.leaves(params)
    num_objectives = leaves[0].shape[0] if leaves else 1
    num_coordinates = sum(leaf.size for leaf in leaves) // max(1, num_objectives)
    own = own_coordinates(params, axis)
    largest = default_block_size() if block_size is None else block_size
    count = max(1, -(-own // largest))
    return Blocks(num_objectives, num_coordinates, count, own if count == 1 else largest, axis)


def batched_init(
    optimizer: AbstractOptimizer,
    params: Params,
    num_steps: StepNumber | None = None,
    *,
    axis: str | None = None,
    block_size: int | None = None,
) -> State:
    """`optimizer.init_for` (or `init`) for params with an objectives axis.

    **Arguments:**

    - `num_steps`: how many steps there are going to be, if that is known.
    - `axis`, `block_size`: as in `cut`.
    """

    def init_one(params):
        return optimizer.init(params) if num_steps is None else optimizer.init_for(params, num_steps)

    if optimizer.coordinatewise:
        blocks = cut(params, axis=axis, block_size=block_size)
        arrays = jax.vmap(init_one)(blocks.split(_rows(params)))
        return BlockedState(arrays, blocks)
    if isinstance(optimizer, PerLayer):

        def init(optimizer, group):
            return batched_init(optimizer, group, num_steps, axis=axis, block_size=block_size)

        return optimizer.init_with(init, params, like=of_one(params))
    return jax.vmap(init_one)(params)


def lay_out(optimizer: AbstractOptimizer, state: State, tree: Params) -> PyTree:
    """A tree like params, such as gradients, as the optimizer is shown it: in blocks, by label, or as is."""
    if isinstance(state, BlockedState):
        return state.blocks.split(_rows(tree))
    if isinstance(optimizer, PerLayer):
        groups = optimizer.split(tree, of_one(tree))
        return {name: lay_out(optimizer.optimizers[name], state[name], g) for name, g in groups.items()}
    return tree


def batched_update(
    optimizer: AbstractOptimizer,
    grads: PyTree,
    state: State,
    params: Params | None,
    *,
    like: PyTree | None = None,
    differentiable: bool = False,
) -> tuple[Params, State]:
    """`optimizer.update` for gradients from `lay_out`, a state from `batched_init` and plain params.

    **Arguments:**

    - `like`: has the shapes of the params where these are left out.
    - `differentiable`: whether blocks can be differentiated through, each computed again in the reverse
        pass; otherwise they are overwritten in place.
    """
    like = params if like is None else like
    if isinstance(state, BlockedState):
        shown = None if params is None else state.blocks.split(_rows(params))
        update = _map_blocks if differentiable else _update_blocks
        updates, arrays = update(optimizer, grads, state.arrays, shown)
        return unravel_rows(state.blocks.join(updates), like), BlockedState(arrays, state.blocks)
    if isinstance(optimizer, PerLayer):
        updates, next_state = {}, {}
        groups = optimizer.split(like, of_one(like))
        shown = dict.fromkeys(groups) if params is None else optimizer.split(params, of_one(like))
        for name, group in groups.items():
            updates[name], next_state[name] = batched_update(
                optimizer.optimizers[name],
                grads[name],
                state[name],
                shown[name],
                like=group,
                differentiable=differentiable,
            )
        return eqx.combine(*updates.values()), next_state
    return jax.vmap(optimizer.update)(grads, state, params)


def _map_blocks(optimizer, grads, arrays, params):
    if len(grads) == 1:
        return _update_single(optimizer, grads, arrays, params)
    return lax.map(jax.checkpoint(lambda block: optimizer.update(*block)), (grads, arrays, params))


def _update_single(optimizer, grads, arrays, params):
    updates, arrays = optimizer.update(*drop_axis((grads, arrays, params)))
    return updates[None], add_axis(arrays)


def _update_blocks(optimizer, grads, arrays, params):
    if len(grads) == 1:
        return _update_single(optimizer, grads, arrays, params)

    def read(tree, block):
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, block, keepdims=False), tree)

    def write(tree, block, new):
        def put(x, y):
            return lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), block, 0)

        return jax.tree.map(put, tree, new)

    # The arrays are carried, not mapped, so that they are overwritten in place instead of copied at every
    # step; for XLA to see that it may, a block is read from what the block before has left.
    def one_block(block, carry):
        updates, arrays, own = carry
        shown_grads, shown_params = read((grads, params), block)
        update, new = optimizer.update(shown_grads, own, shown_params)
        arrays = write(arrays, block, new)
        return write(updates, block, update), arrays, read(arrays, block + 1)

    start = (jnp.zeros_like(grads), arrays, read(arrays, 0))
    updates, arrays, _ = lax.fori_loop(0, len(grads), one_block, start)
    return updates, arrays


def to_batched_state(optimizer: AbstractOptimizer, state: State, params: Params) -> State:
    """The state of one objective as that of a batch of one; `params` have the objectives axis."""

    def convert(blocks, state):
        return BlockedState(jax.tree.map(blocks.split, state), blocks)

    return _map_state(optimizer, state, params, lambda s, group: convert(cut(group), s), add_axis)


def from_batched_state(optimizer: AbstractOptimizer, state: State, params: Params) -> State:
    """The inverse of `to_batched_state`."""
    return _map_state(
        optimizer, state, params, lambda s, group: jax.tree.map(s.blocks.join, s.arrays), drop_axis
    )


def _map_state(
    optimizer: AbstractOptimizer,
    state: State,
    params: Params,
    coordinatewise: Callable[[State, Params], State],
    other: Callable[[State], State],
) -> State:
    if optimizer.coordinatewise:
        return coordinatewise(state, params)
    if isinstance(optimizer, PerLayer):
        groups = optimizer.split(params, of_one(params))
        return {
            name: _map_state(optimizer.optimizers[name], s, groups[name], coordinatewise, other)
            for name, s in state.items()
        }
    return other(state)


def uncut(state: State) -> State:
    """The same state in a single block per device, to be differentiated through."""

    def join(part):
        if not isinstance(part, BlockedState):
            return part
        blocks = part.blocks
        own = blocks.count * blocks.size
        # What fills up the last block is left out, unless all devices must have equally many.
        size = min(own, blocks.total) if blocks.axis is None else own
        whole = dataclasses.replace(blocks, count=1, size=size)
        return BlockedState(jax.tree.map(lambda x: blocks.join_own(x)[None, ..., :size], part.arrays), whole)

    return jax.tree.map(join, state, is_leaf=lambda x: isinstance(x, BlockedState))


def cut_like(state: State, like: State) -> State:
    """The inverse of `uncut`; `like` is the state that it was given."""

    def split(part, like):
        if not isinstance(part, BlockedState):
            return part
        return BlockedState(jax.tree.map(lambda x: like.blocks.split_own(x[0]), part.arrays), like.blocks)

    return jax.tree.map(split, state, like, is_leaf=lambda x: isinstance(x, BlockedState))


def to_states_of_each(state: State) -> State:
    """The state of a batch as those of batches of one, on a leading axis for the objectives."""

    def each(part):
        if not isinstance(part, BlockedState):
            return part[:, None]
        blocks, one = part.blocks, _of_one_objective(part.blocks)

        def split(x):
            rows = blocks.join(x)
            rows = rows.reshape(*rows.shape[:-1], blocks.num_objectives, blocks.num_coordinates)
            return jax.vmap(one.split)(jnp.moveaxis(rows, -2, 0))

        return BlockedState(jax.tree.map(split, part.arrays), one)

    return jax.tree.map(each, state, is_leaf=lambda x: isinstance(x, BlockedState))


def from_states_of_each(states: State, like: State) -> State:
    """The inverse of `to_states_of_each`; `like` is the state that it was given."""

    def joined(part, like):
        if not isinstance(part, BlockedState):
            return part[:, 0]

        def join(x):
            rows = jnp.moveaxis(jax.vmap(part.blocks.join)(x), 0, -2)
            return like.blocks.split(rows.reshape(*rows.shape[:-2], like.blocks.total))

        return BlockedState(jax.tree.map(join, part.arrays), like.blocks)

    return jax.tree.map(joined, states, like, is_leaf=lambda x: isinstance(x, BlockedState))


def _of_one_objective(blocks: Blocks) -> Blocks:
    size = min(blocks.size, blocks.num_coordinates)
    return Blocks(1, blocks.num_coordinates, max(1, -(-blocks.num_coordinates // max(1, size))), size)


def _rows(tree: Params) -> Float[Array, " coordinates"]:
    # Objective by objective, so that a coordinate's number tells which one it belongs to.
    return ravel(tree, tree_dtype(tree), num_leading=1).reshape(-1)


def unravel_rows(rows: Float[Array, " coordinates"], like: Params) -> Params:
    """The inverse of what `lay_out` ravels."""
    leaves = jax.tree.leaves(like)
    if not leaves:
        return like
    return jax.vmap(unravel_like)(rows.reshape(leaves[0].shape[0], -1), like)


def add_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], tree)


def drop_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)


def of_one(tree: PyTree) -> PyTree[Any]:
    """The shapes of one objective's part of a tree with an objectives axis."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
