"""Draws from a family that many optimizers are run on: made once, so that no program makes them again."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from ._devices import chunk_size, sharded_over_devices
from ._engine._inner import Record, init_params, init_states, run_steps
from ._engine._layout import BatchState, batched_init, begin_at
from ._types import Keys, Params
from .objectives import AbstractObjectiveFamily, ObjectiveBatch, sample_objectives
from .optimizers import AbstractOptimizer


class Draws(eqx.Module):
    """Objectives with starting points and keys: those that `evaluate` draws with the same keys.

    To draw them takes four times as long to compile as to run an optax optimizer on them.
    """

    objectives: ObjectiveBatch
    params: Params
    keys: Keys
    # Of the objectives, if they have any.
    states: PyTree = None

    @property
    def count(self) -> int:
        return self.keys.shape[0]

    @property
    def num_coordinates(self) -> int:
        """Of one objective."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params)) // self.count

    def chunks(self) -> list["Draws"]:
        """Parts of equal size that are run in parallel; the last is filled up with the first draws."""
        size = min(self.count, chunk_size(self.num_coordinates))
        return [self.take(jnp.arange(i, i + size) % self.count) for i in range(0, self.count, size)]

    def take(self, indices: Array) -> "Draws":
        """Some of them."""
        return self.with_arrays(jax.tree.map(lambda x: x[indices], self.arrays))

    @property
    def arrays(self) -> PyTree:
        """All that has the draws on the leading axis."""
        return self.objectives.own, self.params, self.keys, self.states

    def with_arrays(self, arrays: PyTree) -> "Draws":
        """Others of the same family."""
        own, *others = arrays
        return Draws(ObjectiveBatch(own, self.objectives.shared), *others)


@eqx.filter_jit
def draw(family: AbstractObjectiveFamily, keys: Keys) -> Draws:
    """One objective per key, and where it starts."""
    okeys, ikeys, lkeys = jnp.moveaxis(jax.vmap(lambda k: jr.split(k, 3))(keys), 1, 0)
    objectives = sample_objectives(family, okeys)
    return Draws(objectives, init_params(objectives, ikeys), lkeys, init_states(objectives, ikeys))


def run_side_by_side(
    optimizer: AbstractOptimizer, draws: Draws, num_steps: int
) -> tuple[Params, BatchState, Record]:
    """Runs an optimizer on draws; losses are those that they are judged by. Meant for use under jit."""
    params = begin_at(optimizer, draws.params)
    state = batched_init(optimizer, params, num_steps).with_objectives(draws.states)
    return run_steps(
        optimizer, draws.objectives, params, state, num_steps, start=0, keys=draws.keys, judged=True
    )


def losses_of(optimizer: AbstractOptimizer, draws: Draws, num_steps: int) -> Float[Array, "objectives steps"]:
    """The losses of an optimizer on draws that are run in parallel. Meant for use under jit."""
    return run_side_by_side(optimizer, draws, num_steps)[2].losses.T


def run_over_draws(
    optimizer: AbstractOptimizer, draws: Draws, num_steps: int
) -> tuple[Float[Array, "objectives steps"], Int[Array, "objectives steps"] | None]:
    """The losses on all draws, and how many evaluations of f each took. Meant for use under jit."""

    def run(chunk):
        *_, record = run_side_by_side(optimizer, chunk, num_steps)
        return record.losses.T, evaluations_of(record)

    return over_draws(run, draws)


def evaluations_of(record: Record) -> Int[Array, "objectives steps"] | None:
    """How many evaluations of f there had been when the loss of each step was known.

    Every step counts one of f and ∇f where it begins, which optax spares only where f is the same at every
    step, and one for each step of the search, be it of f alone (backtracking) or of both (zoom). `None` for
    optimizers that do not search.
    """
    if record.searched is None:
        return None
    before = jnp.cumsum(record.searched, axis=0) - record.searched
    return (before + 1 + jnp.arange(len(before))[:, None]).T


def over_draws(function: Callable[[Draws], PyTree[Array]], draws: Draws) -> Any:
    """`function` of all draws, chunk by chunk and on all devices. Meant for use under jit.

    **Arguments:**

    - `function`: from some draws to arrays that have these on the leading axis.
    """

    def run_chunk(chunk):
        return function(draws.with_arrays(chunk))

    def run_shard(arrays):
        count = draws.with_arrays(arrays).count
        size = min(count, chunk_size(draws.num_coordinates))
        num_chunks = -(-count // size)
        # The last chunk is filled up with draws that are run again and left out of the result.
        padded = jax.tree.map(
            lambda x: x[jnp.arange(num_chunks * size) % count].reshape(num_chunks, size, *x.shape[1:]), arrays
        )
        results = lax.map(run_chunk, padded)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], results)

    return sharded_over_devices(run_shard, draws.count)(draws.arrays)
