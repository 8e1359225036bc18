from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from .._devices._axis import axis_index, axis_size, gather_rows, own_rows, sum_over
from .._misc import ravel, tree_dtype, unravel_like
from .._types import Keys, Params, State, StepNumber
from ._layouts import AbstractLayout, Backpropagate, Cutting, Optimizer, Seen, initial_state, take_step

# Coordinates per block. On a CPU (measured, docs/performance.md) smaller blocks pay for more loop
# iterations, and larger ones fall out of the cache and are cut up among XLA's threads; an accelerator
# needs wide operations to be busy.
_BLOCK_SIZE_CPU = 256
_BLOCK_SIZE_ACCELERATOR = 2**16


def default_block_size() -> int:
    """How many coordinates a block has if nothing else is said."""
    return _BLOCK_SIZE_CPU if jax.default_backend() == "cpu" else _BLOCK_SIZE_ACCELERATOR


def own_coordinates(params: Params, axis: str | None = None) -> int:
    """How many coordinates each device of an axis has if they are spread over it."""
    return -(-sum(leaf.size for leaf in jax.tree.leaves(params)) // axis_size(axis))


class Blocks(AbstractLayout):
    """Coordinates that do not see each other, objective by objective, cut into blocks.

    To such an optimizer a batch of objectives is just more coordinates, which makes one wide product out of
    many narrow ones; they are cut into blocks that fit the cache, and the blocks may be spread over devices.
    An optimizer says `Blocks()`. The update of an entry may then depend on what it is shown of that entry
    alone, and every array of its state must carry the coordinates, raveled, on its last axis: any part of the
    coordinates, handed over as one flat array with its part of the state, must give that part of the updates.

    The fields are set by `fit`: the coordinates of `num_objectives` times `num_coordinates` in `count` blocks
    of `size`, on each device of `axis`. The last block is filled up by repeating a real coordinate, because
    an optimizer need not be finite on what no objective shows it.
    """

    num_objectives: int = eqx.field(static=True, default=0)
    num_coordinates: int = eqx.field(static=True, default=0)
    count: int = eqx.field(static=True, default=1)
    size: int = eqx.field(static=True, default=0)
    axis: str | None = eqx.field(static=True, default=None)

    @property
    def coordinates_apart(self) -> bool:
        return True

    def leaves(self) -> Iterator[AbstractLayout]:
        yield self

    def fit(self, params: Params, cutting: Cutting) -> "Blocks":
        leaves, axis = jax.tree.leaves(params), cutting.axis
        num_objectives = leaves[0].shape[0] if leaves else 1
        num_coordinates = sum(leaf.size for leaf in leaves) // max(1, num_objectives)
        own = own_coordinates(params, axis)
        largest = default_block_size() if cutting.block_size is None else cutting.block_size
        count = max(1, -(-own // largest))
        return Blocks(num_objectives, num_coordinates, count, own if count == 1 else largest, axis)

    @property
    def total(self) -> int:
        """How many coordinates there are on all devices."""
        return self.num_objectives * self.num_coordinates

    def split(self, rows: Float[Array, "*leading coordinates"]) -> Float[Array, "blocks *leading size"]:
        """The blocks of this device."""
        own = self.count * self.size
        rows = _fill_up(rows, axis_size(self.axis) * own)
        return self._split_own(own_rows(rows, own, self.axis))

    def join(self, blocks: Shaped[Array, "blocks *leading size"]) -> Shaped[Array, "*leading coordinates"]:
        """The inverse of `split`, with the blocks of all devices."""
        return gather_rows(self._join_own(blocks), self.axis)[..., : self.total]

    def _split_own(self, rows: Float[Array, "*leading own"]) -> Float[Array, "blocks *leading size"]:
        # What is missing in the last block is filled up.
        rows = _fill_up(rows, self.count * self.size)
        return jnp.moveaxis(rows.reshape(*rows.shape[:-1], self.count, self.size), -2, 0)

    def _join_own(self, blocks: Shaped[Array, "blocks *leading size"]) -> Shaped[Array, "*leading own"]:
        # With what fills up the last block.
        rows = jnp.moveaxis(blocks, 0, -2)
        return rows.reshape(*rows.shape[:-2], self.count * self.size)

    def objectives_of(self, block: Int[Array, ""]) -> tuple[Int[Array, " size"], Array]:
        """Which objective each coordinate of a block belongs to, and whether it is no repetition."""
        first = 0 if self.axis is None else axis_index(self.axis) * self.count
        coordinates = (first + block) * self.size + jnp.arange(self.size)
        real = coordinates < self.total
        return jnp.minimum(coordinates // max(1, self.num_coordinates), self.num_objectives - 1), real

    def lay_out(self, tree: PyTree) -> PyTree:
        # Objective by objective, so that a coordinate's number tells which one it belongs to.
        return self.split(ravel(tree, tree_dtype(tree), num_leading=1).reshape(-1))

    def restore(self, laid_out: PyTree, like: PyTree) -> PyTree:
        rows = self.join(laid_out)
        leaves = jax.tree.leaves(like)
        if not leaves:
            return like
        return jax.vmap(unravel_like)(rows.reshape(leaves[0].shape[0], -1), like)

    def lay_out_values(self, values: Float[Array, " objectives"]) -> PyTree:
        return self.split(jnp.repeat(values, self.num_coordinates, total_repeat_length=self.total))

    def lay_out_keys(self, keys: Keys) -> PyTree:
        first = axis_index(self.axis) * self.count
        return jax.vmap(lambda block: jr.fold_in(keys[0], first + block))(jnp.arange(self.count))

    def init(self, optimizer: Optimizer, params: Params, num_steps: StepNumber | None) -> PyTree:
        return jax.vmap(lambda p: initial_state(optimizer, p, num_steps))(self.lay_out(params))

    def update(
        self,
        optimizer: Optimizer,
        seen: Seen,
        arrays: PyTree,
        params: Params | None,
        *,
        like: PyTree,
        differentiable: bool,
    ) -> tuple[Params, PyTree]:
        shown = None if params is None else self.lay_out(params)
        update = _update_single if self.count == 1 else _map_blocks if differentiable else _update_blocks
        updates, arrays = update(optimizer, seen, arrays, shown)
        return self.restore(updates, like), arrays

    def replay(
        self,
        backpropagate: Backpropagate,
        optimizer: Optimizer,
        params: Params,
        arrays: PyTree,
        seen: Seen,
        slopes: PyTree,
        weights: Float[Array, "losses objectives"],
        history: PyTree | None,
    ) -> PyTree:
        zeros = jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))

        def one_block(total, block):
            number, params, arrays = block
            objectives, real = self.objectives_of(number)
            # What fills the last block has w = 0 and adds nothing.
            own_weights = jnp.where(real, weights[:, objectives], 0)
            own, own_slopes = jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, number, axis=1, keepdims=False), (seen, slopes)
            )
            result = backpropagate(
                optimizer, take_step, params, arrays, own, own_slopes, own_weights, history, recompute=False
            )
            return eqx.apply_updates(total, result), None

        each = (jnp.arange(self.count), self.lay_out(params), arrays)
        if self.count == 1:
            total, _ = one_block(zeros, jax.tree.map(lambda x: x[0], each))
        else:
            total, _ = lax.scan(one_block, zeros, each)
        return sum_over(total, self.axis)

    def from_one(self, state: State) -> PyTree:
        return jax.tree.map(self.split, state)

    def to_one(self, arrays: PyTree) -> State:
        return jax.tree.map(self.join, arrays)

    def uncut(self, arrays: PyTree) -> tuple[AbstractLayout, PyTree]:
        own = self.count * self.size
        # What fills up the last block is left out, unless all devices must have equally many.
        size = min(own, self.total) if self.axis is None else own
        whole = Blocks(self.num_objectives, self.num_coordinates, 1, size, self.axis)
        return whole, jax.tree.map(lambda x: self._join_own(x)[None, ..., :size], arrays)

    def cut(self, arrays: PyTree) -> PyTree:
        return jax.tree.map(lambda x: self._split_own(x[0]), arrays)

    def each(self, arrays: PyTree) -> tuple[AbstractLayout, PyTree]:
        one = self._of_one_objective()

        def split(x):
            rows = self.join(x)
            rows = rows.reshape(*rows.shape[:-1], self.num_objectives, self.num_coordinates)
            return jax.vmap(one.split)(jnp.moveaxis(rows, -2, 0))

        return one, jax.tree.map(split, arrays)

    def together(self, arrays: PyTree) -> PyTree:
        one = self._of_one_objective()

        def join(x):
            rows = jnp.moveaxis(jax.vmap(one.join)(x), 0, -2)
            return self.split(rows.reshape(*rows.shape[:-2], self.total))

        return jax.tree.map(join, arrays)

    def _of_one_objective(self):
        size = min(self.size, self.num_coordinates)
        return Blocks(1, self.num_coordinates, max(1, -(-self.num_coordinates // max(1, size))), size)


def _fill_up(rows: Float[Array, "*leading coordinates"], size: int) -> Float[Array, "*leading size"]:
    padding = size - rows.shape[-1]
    return jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, padding)], "edge") if padding else rows


def _map_blocks(optimizer, seen, arrays, params):
    return lax.map(jax.checkpoint(lambda block: take_step(optimizer, *block)), (seen, arrays, params))


def _update_single(optimizer, seen, arrays, params):
    def of_first(tree):
        return jax.tree.map(lambda x: x[0], tree)

    updates, arrays = take_step(optimizer, *of_first((seen, arrays, params)))
    return updates[None], jax.tree.map(lambda x: x[None], arrays)


def _update_blocks(optimizer, seen, arrays, params):
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
        shown, shown_params = read((seen, params), block)
        update, new = take_step(optimizer, shown, own, shown_params)
        arrays = write(arrays, block, new)
        return write(updates, block, update), arrays, read(arrays, block + 1)

    count = len(seen.grads)
    start = (jnp.zeros_like(seen.grads), arrays, read(arrays, 0))
    updates, arrays, _ = lax.fori_loop(0, count, one_block, start)
    return updates, arrays
