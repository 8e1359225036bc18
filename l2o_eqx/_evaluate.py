from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._checks import check_sizes
from ._devices import Restarts, chunk_size, num_devices, sharded_over_devices
from ._draws import Draws, evaluations_of, run_side_by_side
from ._engine._inner import init_params, init_states
from ._loop import run
from ._types import Keys, Params
from .callbacks._base import Callback
from .objectives import AbstractObjective, AbstractObjectiveFamily, count_coordinates, sample_objectives
from .optimizers import AbstractOptimizer, as_optimizer

# (objective, params) -> a tree of arrays.
Measure = Callable[[AbstractObjective, Params], PyTree]


class Trajectories(eqx.Module):
    """The losses of an optimizer on many objectives.

    `losses[..., i, t]` is f_i(θ_t), before step t; a batch of restarts adds an axis in front. On data, it is
    the loss of the minibatch that step t sees; on tasks of few examples (`objectives.FewShot`), that of the
    query set. `measured` is what `evaluate(measure=...)` found where the runs ended, with the same leading
    axes. `evaluations` is how many evaluations of f there had been when the loss of each step was known, of
    optimizers with line search.
    """

    losses: Float[Array, "*restarts objectives steps"]
    measured: PyTree[Array] = None
    evaluations: Int[Array, "*restarts objectives steps"] | None = None

    @property
    def final_losses(self) -> Float[Array, "*restarts objectives"]:
        """The losses at the last step."""
        return self.losses[..., -1]


class EvaluationProgress(eqx.Module):
    """What a callback of `evaluate` sees: how many objectives are `done`, of how many (`total`)."""

    done: int
    total: int


def evaluate(
    optimizer: AbstractOptimizer | optax.GradientTransformation,
    family: AbstractObjectiveFamily,
    *,
    num_steps: int,
    num_objectives: int = 64,
    restarts: int | None = None,
    measure: Measure | None = None,
    key: PRNGKeyArray,
    callbacks: Sequence[Callback] = (),
) -> Trajectories:
    """Runs an optimizer, learned or from optax, on objectives drawn from a family.

    The same key gives the same objectives, starting points and minibatches to every optimizer.

    **Arguments:**

    - `optimizer`: what to run.
    - `family`: what to run it on.
    - `num_steps`: inner steps on each objective.
    - `num_objectives`: how many are drawn.
    - `restarts`: if given, `optimizer` is a batch of that many, as `meta_train` returns it.
    - `measure`: `(objective, params) -> tree of arrays`, called on the params after the last step, inside
        the compiled program: a loss on held-out data, say, or the share of dead units. An objective with a
        state is in the state of the end.
    - `key`: picks them.
    - `callbacks`: called with an `EvaluationProgress` whenever some objectives are done. With callbacks it is
        one call of a compiled program for as many objectives as are run together on all devices, without any
        one for all. One that returns `StopTraining` ends it with the objectives that are done.

    **Returns:** `Trajectories`.

    **Raises:** `ValueError` for sizes below 1.
    """
    check_sizes("evaluate", num_steps=num_steps, num_objectives=num_objectives)
    optimizer = as_optimizer(optimizer)
    runs = Restarts.of("evaluate", optimizer, restarts)
    # It may come from a training on other devices.
    optimizer = runs.placed(optimizer, num_objectives)
    keys = jr.split(key, num_objectives)

    def run_on_some(keys):
        return _evaluate(optimizer, family, keys, num_steps, runs, measure)

    if not callbacks:
        return run_on_some(keys)
    together = min(num_objectives, chunk_size(count_coordinates(family)) * num_devices())
    return _in_parts(run_on_some, keys, together, len(runs.shape), callbacks)


def _in_parts(
    run_on_some: Callable[[Keys], Trajectories],
    keys: Keys,
    together: int,
    axis: int,
    callbacks: Sequence[Callback],
) -> Trajectories:
    # `axis` is that of the objectives.
    total = len(keys)

    def step(parts, done):
        # The last part is filled up with objectives that are run again and left out of the result.
        begin = len(parts) * together
        part = run_on_some(keys[jnp.arange(begin, begin + together) % total])
        own = jax.tree.map(lambda x: lax.slice_in_dim(x, 0, done - begin, axis=axis), part)
        return [*parts, jax.block_until_ready(own)], EvaluationProgress(done, total)

    def finish(parts, stop):
        del stop
        return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=axis), *parts)

    ends = [min(i + together, total) for i in range(0, total, together)]
    return run(step, [], ends, callbacks, first=EvaluationProgress(0, total), finish=finish)


def losses_on(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    keys: Keys,
    *,
    num_steps: int,
) -> Float[Array, "objectives steps"]:
    """The losses on one objective per key, on however many devices there are. Meant for use under jit."""
    return run_on(optimizer, family, keys, num_steps=num_steps).losses


def run_on(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    keys: Keys,
    *,
    num_steps: int,
    measure: Measure | None = None,
    share_out: bool = True,
) -> Trajectories:
    """As `losses_on`, with what is measured on the params after the last step.

    With `share_out=False`, on the device it is called on.
    """
    side_by_side = chunk_size(count_coordinates(family))

    def run_chunk(keys):
        okeys, ikeys, lkeys = jnp.moveaxis(jax.vmap(lambda k: jr.split(k, 3))(keys), 1, 0)
        objectives = sample_objectives(family, okeys)
        draws = Draws(objectives, init_params(objectives, ikeys), lkeys, init_states(objectives, ikeys))
        params, state, record = run_side_by_side(optimizer, draws, num_steps)
        if measure is None:
            measured = None
        else:
            probe = measure
            measured = jax.vmap(lambda own, state, p: probe(objectives.select(own, state), p))(
                objectives.own, state.of_objectives, params
            )
        return Trajectories(record.losses.T, measured, evaluations_of(record))

    def run_shard(keys):
        # The last chunk is filled up with objectives that are run again and left out of the result.
        size = min(keys.shape[0], side_by_side)
        num_chunks = -(-keys.shape[0] // size)
        padded = keys[jnp.arange(num_chunks * size) % keys.shape[0]]
        chunks = lax.map(run_chunk, padded.reshape(num_chunks, size, *keys.shape[1:]))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: keys.shape[0]], chunks)

    return (sharded_over_devices(run_shard, keys.shape[0]) if share_out else run_shard)(keys)


@eqx.filter_jit
def _evaluate(optimizer, family, keys, num_steps, runs, measure):
    def run_one(optimizer, devices_are_free):
        return run_on(
            optimizer, family, keys, num_steps=num_steps, measure=measure, share_out=devices_are_free
        )

    return runs.one_by_one(run_one, optimizer)
