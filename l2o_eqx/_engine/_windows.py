"""A run of one optimizer that others look on at, and what is kept of it to be gone through again."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._misc import add_updates
from .._types import Params, StepNumber
from ..objectives import AbstractObjective
from ..optimizers import AbstractLayout, AbstractOptimizer
from ._inner import as_batch, show
from ._layout import batched_init, batched_update
from ._losses import losses_and_grads


class Window(eqx.Module):
    """A few steps in a row, up to one at which a run is looked at; several of them on the leading axis.

    **Fields:**

    - `steps`: their numbers. Where a run begins within the window, they are negative before, and what belongs
        to them is zero.
    - `grads`, `params`, `values`: what optimizers were shown, of one objective.
    - `updates`: what each of them answered.
    - `states`: those of each, as its layout has them, before the first step.
    """

    steps: Int[Array, "*windows size"]
    grads: PyTree[Float[Array, "..."]]
    params: PyTree[Float[Array, "..."]]
    values: Float[Array, "*windows size"]
    updates: tuple[PyTree[Float[Array, "..."]], ...]
    states: tuple[PyTree[Array], ...]


def follow(
    optimizers: Sequence[AbstractOptimizer],
    objective: AbstractObjective,
    params: Params,
    objective_state: PyTree,
    stops: Sequence[int],
    size: int,
    *,
    num_steps: StepNumber,
    key: PRNGKeyArray,
) -> tuple[Window, tuple[AbstractLayout, ...]]:
    """Runs the first optimizer, shows the others what it sees, and keeps a window up to each of some steps.

    **Arguments:**

    - `params`, `objective_state`: where the run begins, with an objectives axis of one.
    - `stops`: the last step of each window, ascending.
    - `size`: of the windows, in steps.
    - `num_steps`: of a whole run; it ends at the last stop.
    - `key`: that of the super epoch.

    **Returns:** the windows, and the optimizers' layouts.
    """
    batch, keys = as_batch(objective), key[None]
    states = tuple(batched_init(optimizer, params, num_steps) for optimizer in optimizers)
    steps = np.asarray(stops)[:, None] - np.arange(size)[::-1]
    begins = jnp.asarray(np.maximum(steps[:, 0], 0))

    def one_step(carry, step):
        params, states, of_objective, windows = carry
        losses, grads, of_objective = losses_and_grads(batch, params, step, keys, of_objective)
        results = []
        for optimizer, state in zip(optimizers, states, strict=True):
            seen = show(optimizer, state.layout, state.layout.lay_out(grads), losses, step, keys)
            results.append(batched_update(optimizer, seen, state, params))
        updates, new = zip(*results, strict=True)
        arrays = tuple(state.arrays for state in states)
        windows = _with_snapshots(windows, step == begins, arrays)
        windows = _with_step(windows, windows.steps == step, (grads, params, losses, updates))
        return (add_updates(params, updates[0]), new, of_objective, windows), None

    windows = _empty(steps, params, states)
    begin = (params, states, objective_state, windows)
    (_, _, _, windows), _ = lax.scan(one_step, begin, jnp.arange(steps[-1, -1] + 1))
    return windows, tuple(state.layout for state in states)


def _empty(steps: np.ndarray, params: Params, states: Sequence[Any]) -> Window:
    # Params have an axis for the one objective in front, in whose place the windows stand.
    zeros = jax.tree.map(lambda x: jnp.zeros((*steps.shape, *x.shape[1:]), x.dtype), params)
    arrays = tuple(state.arrays for state in states)
    kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(steps), *x.shape)), arrays)
    values = jnp.zeros(steps.shape, jnp.result_type(float))
    return Window(jnp.asarray(steps), zeros, zeros, values, (zeros,) * len(states), kept)


def _with_step(windows: Window, places: Bool[Array, "windows size"], shown: Any) -> Window:
    # What a step has shown, written to its place in each window that has one.
    def write(kept, x):
        here = places.reshape(*places.shape, *(1,) * (x.ndim - 1))
        return jnp.where(here, x[None].astype(kept.dtype), kept)

    before = (windows.grads, windows.params, windows.values, windows.updates)
    return Window(windows.steps, *jax.tree.map(write, before, shown), windows.states)


def _with_snapshots(windows: Window, begins: Bool[Array, " windows"], arrays: Any) -> Window:
    def take(kept, x):
        return jnp.where(begins.reshape(-1, *(1,) * x.ndim), x[None], kept)

    states = jax.tree.map(take, windows.states, arrays)
    return eqx.tree_at(lambda w: w.states, windows, states)
