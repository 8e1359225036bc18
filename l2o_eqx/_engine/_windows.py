"""A run, and what is kept of it to go through some of its steps again."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

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
    - `grads`, `params`, `values`: what the optimizer was shown, of one objective.
    - `updates`: what it answered.
    - `state`: the optimizer's, as its layout has it, before the first step.
    """

    steps: Int[Array, "*windows size"]
    grads: PyTree[Float[Array, "..."]]
    params: PyTree[Float[Array, "..."]]
    values: Float[Array, "*windows size"]
    updates: PyTree[Float[Array, "..."]]
    state: PyTree[Array]


def follow(
    optimizer: AbstractOptimizer,
    objective: AbstractObjective,
    params: Params,
    objective_state: PyTree,
    stops: Sequence[int],
    size: int,
    *,
    num_steps: StepNumber,
    key: PRNGKeyArray,
) -> tuple[Window, AbstractLayout]:
    """Runs an optimizer, and keeps the windows up to some steps.

    **Arguments:**

    - `params`, `objective_state`: where the run begins, with an objectives axis of one.
    - `stops`: the last step of each window, ascending.
    - `size`: of the windows, in steps.
    - `num_steps`: of a whole run; this one ends at the last stop.
    - `key`: that of the super epoch.

    **Returns:** the windows, and the optimizer's layout.
    """
    batch, keys = as_batch(objective), key[None]
    state = batched_init(optimizer, params, num_steps).with_objectives(objective_state)
    steps = np.asarray(stops)[:, None] - np.arange(size)[::-1]

    def one_step(carry, step):
        params, state, windows = carry
        losses, grads, states = losses_and_grads(batch, params, step, keys, state.of_objectives)
        seen = show(optimizer, state.layout, state.layout.lay_out(grads), losses, step, keys)
        updates, new = batched_update(optimizer, seen, state, params)
        windows = _kept(windows, step, (grads, params, losses, updates), state.arrays)
        return (add_updates(params, updates), new.with_objectives(states), windows), None

    begin = (params, state, _empty(steps, params, state.arrays))
    (_, _, windows), _ = lax.scan(one_step, begin, jnp.arange(steps[-1, -1] + 1))
    return windows, state.layout


def _empty(steps: np.ndarray, params: Params, arrays: PyTree[Array]) -> Window:
    # Params have an axis for the one objective in front, in whose place the windows stand.
    zeros = jax.tree.map(lambda x: jnp.zeros((*steps.shape, *x.shape[1:]), x.dtype), params)
    kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(steps), *x.shape)), arrays)
    values = jnp.zeros(steps.shape, jnp.result_type(float))
    return Window(jnp.asarray(steps), zeros, zeros, values, zeros, kept)


def _kept(windows: Window, step: Int[Array, ""], shown: PyTree, arrays: PyTree[Array]) -> Window:
    # What a step has shown, where it belongs in each window that has it; the state, where one begins.
    here, begins = windows.steps == step, jnp.maximum(windows.steps[:, 0], 0) == step

    def written(where):
        def write(kept, x):
            return jnp.where(where.reshape(*where.shape, *(1,) * (kept.ndim - where.ndim)), x, kept)

        return write

    # What is shown has the axis of the objective; it broadcasts along the window.
    before = (windows.grads, windows.params, windows.values, windows.updates)
    after = jax.tree.map(lambda kept, x: written(here)(kept, x[None].astype(kept.dtype)), before, shown)
    state = jax.tree.map(lambda kept, x: written(begins)(kept, x[None]), windows.state, arrays)
    grads, params, values, updates = after
    return Window(windows.steps, grads, params, values, updates, state)
