"""Inner optimization steps for a batch of objectives."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._misc import add_updates, at_least_float32
from .._types import Keys, Params, State, StepNumber
from ..objectives import AbstractObjective, ObjectiveBatch
from ..optimizers import AbstractLayout, AbstractOptimizer, Seen
from ._layout import BatchState, batched_update
from ._losses import (
    GRADS,
    differentiable_losses_and_grads,
    loss_function,
    losses_and_grads,
    outer_losses,
    select,
)

# What an optimizer draws with is folded out of an objective's key with a number that no step has.
_DRAWS = 2**31 - 6

FIRST_ORDER = frozenset({"grads", "params", "value"})
"""What a first-order meta-gradient takes for constants: all that the optimizer is shown."""


class Record(eqx.Module):
    """What a number of inner steps leave behind, the steps on the leading axis.

    The gradients are laid out as the optimizer was shown them. `sound` tells which objectives had finite
    losses and gradients all along; only training asks, for all others it is true. `outer` are the outer
    losses and their gradients, if they are others. `searched` is how often the optimizer evaluated f by
    itself at every step, if it says so.
    """

    losses: Float[Array, "steps objectives"]
    grads: PyTree[Float[Array, "..."]]
    sound: Bool[Array, " objectives"]
    outer: tuple[Float[Array, "steps objectives"], PyTree[Float[Array, "..."]]] | None = None
    searched: Int[Array, "steps objectives"] | None = None

    @property
    def weighed(self) -> Float[Array, "steps objectives"]:
        """The losses that a weighting weighs."""
        return self.losses if self.outer is None else self.outer[0]

    def with_weighed(self, losses: Float[Array, "steps objectives"]) -> "Record":
        """The same with other losses to be weighed, to differentiate by."""
        if self.outer is None:
            return dataclasses.replace(self, losses=losses)
        return dataclasses.replace(self, outer=(losses, self.outer[1]))

    @property
    def slopes(self) -> PyTree[Float[Array, "..."]]:
        """The gradients of these losses."""
        return self.grads if self.outer is None else self.outer[1]


def as_batch(objective: AbstractObjective) -> ObjectiveBatch:
    """A batch of one; nothing is copied."""
    own, shared = eqx.partition(objective, False)
    return ObjectiveBatch(own, shared)


def init_params(objectives: ObjectiveBatch, keys: Keys) -> Params:
    """A starting point for every objective."""
    return jax.vmap(lambda own, key: objectives.select(own).init(key))(objectives.own, keys)


def init_states(objectives: ObjectiveBatch, keys: Keys) -> State:
    """The state that every objective begins with, drawn like its starting point; `None` if they have none."""
    return jax.vmap(lambda own, key: objectives.select(own).init_state(key))(objectives.own, keys)


def run_steps(
    optimizer: AbstractOptimizer,
    objectives: ObjectiveBatch,
    params: Params,
    state: BatchState,
    num_steps: int,
    *,
    start: StepNumber,
    keys: Keys,
    judged: bool = False,
) -> tuple[Params, BatchState, Record]:
    """`num_steps` inner steps from step number `start` on; differentiable through everything.

    **Arguments:**

    - `keys`: one per objective for the whole super epoch.
    - `judged`: whether the record's losses are the outer ones, of objectives that are judged by them.

    **Returns:** params and state after the last step, and the record.
    """
    judged = judged and objectives.is_judged_by_outer_loss

    def one_step(carry, step):
        params, state = carry
        losses, grads, states = losses_and_grads(objectives, params, step, keys, state.of_objectives)
        shown = losses
        if judged:
            shown = outer_losses(objectives, params, step, keys, state.of_objectives)
        laid_out, searched = state.layout.lay_out(grads), None
        if optimizer.takes_value_fn():
            updates, state, searched = _update_with_value_fn(
                optimizer, objectives, losses, grads, state, params, step, keys
            )
        else:
            seen = show(optimizer, state.layout, laid_out, losses, step, keys)
            updates, state = batched_update(optimizer, seen, state, params)
        state = state.with_objectives(states)
        return (add_updates(params, updates), state), (shown, laid_out, searched)

    steps = start + jnp.arange(num_steps)
    (params, state), (losses, grads, searched) = lax.scan(one_step, (params, state), steps)
    return params, state, Record(losses, grads, jnp.ones(losses.shape[1:], bool), searched=searched)


def run_training_steps(
    optimizer: AbstractOptimizer,
    objectives: ObjectiveBatch,
    params: Params,
    state: BatchState,
    num_steps: int,
    *,
    start: StepNumber,
    keys: Keys,
    sound: Bool[Array, " objectives"],
    constants: frozenset[str],
    recompute: bool = False,
    forward: bool = False,
    include_final_loss: bool = False,
) -> tuple[Params, BatchState, Record]:
    """As `run_steps`, with derivatives of all but some `constants`, and with objectives that may fail.

    From where an objective is not finite on, the optimizer is shown ones, on which every optimizer is finite:
    nothing of it reaches what all objectives share if its losses have the weight zero.

    **Arguments:**

    - `sound`: which objectives have been finite so far.
    - `constants`: what of `"grads"`, `"params"`, `"value"` and the `"state"` derivatives stop at when the
        optimizer is shown it.
    - `recompute`: whether a reverse pass computes the optimizer's activations again, step by step, from
        the params, the states and the gradients.
    - `forward`: whether derivatives are taken in forward mode, instead of in reverse.
    - `include_final_loss`: whether the record has f and ∇f after the last update, too.
    """

    def shown(name, tree):
        return lax.stop_gradient(tree) if name in constants else tree

    def look(params, state, step, sound):
        losses, grads, states, fine = differentiable_losses_and_grads(
            objectives, params, step, keys, constants, state.of_objectives, forward=forward
        )
        sound, outer = sound & fine, None
        if objectives.has_outer_loss:
            outer, slopes, _, fine = differentiable_losses_and_grads(
                objectives, params, step, keys, FIRST_ORDER, state.of_objectives, outer=True, forward=forward
            )
            sound = sound & fine
            outer = (outer, state.layout.lay_out(select(sound, slopes, 1.0)))
        return states, losses, state.layout.lay_out(select(sound, grads, 1.0)), outer, sound

    def one_step(carry, step):
        params, state, sound = carry
        state = shown("state", state)
        states, losses, grads, outer, sound = look(params, state, step, sound)
        value = select(sound, shown("value", losses), 1.0)
        seen = show(optimizer, state.layout, grads, value, step, keys)
        point = select(sound, shown("params", params), 1.0)
        updates, state = batched_update(optimizer, seen, state, point, differentiable=recompute)
        params, state = add_updates(params, updates), state.with_objectives(states)
        return (params, state, sound), (losses, grads, outer)

    if recompute:
        kept = jax.checkpoint_policies.save_only_these_names(GRADS)
        one_step = jax.checkpoint(one_step, policy=kept, prevent_cse=False)
    steps = start + jnp.arange(num_steps)
    (params, state, sound), record = lax.scan(one_step, (params, state, sound), steps)
    if include_final_loss:
        # The state of the objectives does not move: this step is still to be taken.
        _, *last, sound = look(params, state, start + num_steps, sound)
        record = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), record, tuple(last))
    losses, grads, outer = record
    return params, state, Record(losses, grads, sound, outer)


def _update_with_value_fn(optimizer, objectives, losses, grads, state, params, step, keys):
    # As `batched_update`, with all that line searches and optax's transformations may want.
    def one(own, objective_state, key, loss, grads, arrays, params):
        function = loss_function(objectives, own, objective_state, step, key)

        def value_fn(params):
            return at_least_float32(function(params)[0])

        updates, arrays = optimizer.update(grads, arrays, params, value=loss, value_fn=value_fn)
        # Both of optax's line searches say how many evaluations the last one took.
        searched = optax.tree.get(arrays, "num_linesearch_steps")
        return updates, arrays, None if searched is None else jnp.asarray(searched, jnp.int32)

    updates, arrays, searched = jax.vmap(one)(
        objectives.own, state.of_objectives, keys, losses, grads, state.arrays, params
    )
    return updates, BatchState(arrays, state.layout), searched


def show(
    optimizer: AbstractOptimizer,
    layout: AbstractLayout,
    grads: PyTree[Array],
    losses: Float[Array, " objectives"],
    step: StepNumber,
    keys: Keys,
) -> Seen:
    """What an optimizer is shown of a step: gradients that are laid out already, and what else it wants."""
    wanted = optimizer.wants()
    value = layout.lay_out_values(losses) if "value" in wanted else None
    if "key" not in wanted:
        return Seen(grads, value)
    drawn = jax.vmap(lambda key: jr.fold_in(jr.fold_in(key, _DRAWS), step))(keys)
    return Seen(grads, value, layout.lay_out_keys(drawn))


def show_again(
    optimizer: AbstractOptimizer, layout: AbstractLayout, record: Record, start: StepNumber, keys: Keys
) -> Seen:
    """The same for all steps of a record, from step `start` on, on a leading axis."""

    def one(grads, losses, step):
        return show(optimizer, layout, grads, select(record.sound, losses, 1.0), step, keys)

    return jax.vmap(one)(record.grads, record.losses, start + jnp.arange(len(record.losses)))
