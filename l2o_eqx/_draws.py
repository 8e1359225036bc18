"""Draws from a family that many optimizers are run on: made once, so that no program makes them again."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PyTree

from ._devices import chunk_size, sharded_over_devices
from ._inner import init_params, run_steps
from ._layout import batched_init, begin_at
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
        own, params, keys = jax.tree.map(lambda x: x[indices], (self.objectives.own, self.params, self.keys))
        return Draws(ObjectiveBatch(own, self.objectives.shared), params, keys)


@eqx.filter_jit
def draw(family: AbstractObjectiveFamily, keys: Keys) -> Draws:
    """One objective per key, and where it starts."""
    okeys, ikeys, lkeys = jnp.moveaxis(jax.vmap(lambda k: jr.split(k, 3))(keys), 1, 0)
    objectives = sample_objectives(family, okeys)
    return Draws(objectives, init_params(objectives, ikeys), lkeys)


def losses_of(optimizer: AbstractOptimizer, draws: Draws, num_steps: int) -> Float[Array, "objectives steps"]:
    """The losses of an optimizer on draws that are run in parallel. Meant for use under jit."""
    params = begin_at(optimizer, draws.params)
    state = batched_init(optimizer, params, num_steps)
    run = run_steps(optimizer, draws.objectives, params, state, num_steps, start=0, keys=draws.keys)
    return run[2].losses.T


def over_draws(function: Callable[[Draws], PyTree[Array]], draws: Draws) -> Any:
    """`function` of all draws, chunk by chunk and on all devices. Meant for use under jit.

    **Arguments:**

    - `function`: from some draws to arrays that have these on the leading axis.
    """

    def run_chunk(chunk):
        own, params, keys = chunk
        return function(Draws(ObjectiveBatch(own, draws.objectives.shared), params, keys))

    def run_shard(arrays):
        count = arrays[2].shape[0]
        size = min(count, chunk_size(draws.num_coordinates))
        num_chunks = -(-count // size)
        # The last chunk is filled up with draws that are run again and left out of the result.
        padded = jax.tree.map(
            lambda x: x[jnp.arange(num_chunks * size) % count].reshape(num_chunks, size, *x.shape[1:]), arrays
        )
        results = lax.map(run_chunk, padded)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], results)

    arrays = (draws.objectives.own, draws.params, draws.keys)
    return sharded_over_devices(run_shard, draws.count)(arrays)
