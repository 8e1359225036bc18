"""The window loop that all strategies of this package are settings of."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._engine._inner import run_steps, run_training_steps, show
from .._engine._layout import BatchState, batched_update
from .._engine._losses import losses_and_grads, select
from .._grad_metrics import grad_metrics
from .._misc import add_updates
from .._types import Keys, Params
from ..estimators import FIRST_ORDER, AbstractEstimator, Health, Record, Taken, first_window
from ..objectives import ObjectiveBatch
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import MetaUpdate, SuperEpoch

# Far from the numbers of steps, with which the windows' own draws are made.
_PHASE = 2**31 - 11


class _Apart(eqx.Module):
    # Where the last window ended, and the next one begins.
    params: Params
    state: BatchState
    health: Health

    @classmethod
    def begin(cls, optimizer, first):
        del optimizer
        return cls(first.params, first.state, first.health), None

    def next_window(self, optimizer, window):
        del optimizer
        window = dataclasses.replace(window, params=self.params, state=self.state, health=self.health)
        return self, window

    def after(self, optimizer, window, result):
        del optimizer
        return _Apart(result.params, result.state, result.health), result.losses[: window.length]


class _Running(eqx.Module):
    # Where the run is, and its last T steps, oldest first, with where the oldest began. `optimizers` are the
    # floating-point arrays that each step was taken with: small beside the state, they let the beginning move
    # on by one step exactly as it did in the run, so that no past state needs to be kept.
    params: Params
    state: BatchState
    health: Health
    record: Record
    optimizers: PyTree[Float[Array, "window ..."]]
    first_params: Params
    first_state: BatchState

    @classmethod
    def begin(cls, optimizer, first):
        start = first.first_params(optimizer)
        at_start = dataclasses.replace(first, params=start)
        params, state, record = _run(optimizer, first, at_start, first.length - 1, 0)
        # The oldest place is empty; the first step pushes it out.
        past = _map_steps(lambda x: jnp.concatenate([x[:1], x]), record)
        optimizers = jax.tree.map(lambda x: jnp.stack([x] * first.length), _meta_params(optimizer))
        health = Health(record.sound, record.weighed[0])
        return cls(params, state, health, past, optimizers, start, first.state), record.losses

    def next_window(self, optimizer, window):
        last = window.start + window.length - 1
        params, state, record = _run(optimizer, window, self, 1, last)
        optimizers = jax.tree.map(
            lambda past, x: _push(past, x[None]), self.optimizers, _meta_params(optimizer)
        )
        past = dataclasses.replace(_map_steps(_push, self.record, record), sound=record.sound)
        health = Health(record.sound, self.health.first_losses)
        point = _Running(params, state, health, past, optimizers, self.first_params, self.first_state)
        # A first window begins at params as they were drawn.
        first = window.params if window.begins else self.first_params
        taken = Taken(past, optimizers, params, state)
        window = dataclasses.replace(window, params=first, state=self.first_state, health=health, taken=taken)
        return point, window

    def after(self, optimizer, window, result):
        del result
        grads, losses, optimizers = jax.tree.map(
            lambda x: x[0], (self.record.grads, self.record.losses, self.optimizers)
        )
        taken_by = eqx.combine(optimizers, optimizer)
        value = select(self.record.sound, losses, 1.0)
        seen = show(taken_by, self.first_state.layout, grads, value, window.start, window.keys)
        updates, state = batched_update(taken_by, seen, self.first_state, self.first_params)
        if (states := self.first_state.of_objectives) is not None:
            # Again, as in the run, rather than keeping those of all steps.
            *_, states = losses_and_grads(
                window.objectives, self.first_params, window.start, window.keys, states
            )
            state = state.with_objectives(states)
        params = add_updates(self.first_params, updates)
        return dataclasses.replace(self, first_params=params, first_state=state), self.record.losses[-1:]


def _map_steps(function, record, *others):
    # What has the steps on a leading axis.
    def steps(record):
        return record.losses, record.grads, record.outer

    new = jax.tree.map(function, steps(record), *map(steps, others))
    return Record(new[0], new[1], record.sound, new[2])


def _run(optimizer, window, point, count, start):
    return run_training_steps(
        optimizer,
        window.objectives,
        point.params,
        point.state,
        count,
        start=start,
        keys=window.keys,
        sound=point.health.sound,
        constants=FIRST_ORDER,
    )


def run_windows(
    optimizer: AbstractOptimizer,
    meta_state: PyTree,
    objectives: ObjectiveBatch,
    *,
    estimator: AbstractEstimator,
    length: int,
    overlap: bool = False,
    train_rest: bool = False,
    random_phase: bool = False,
    include_final_loss: bool = False,
    meta_update: MetaUpdate,
    weighting: AbstractWeighting,
    num_steps: int,
    init_keys: Keys,
    loss_keys: Keys,
    key: PRNGKeyArray,
) -> SuperEpoch:
    """A super epoch in windows of `length` steps, with a meta-update after each.

    **Arguments:**

    - `estimator`: how a window's meta-gradient is got.
    - `overlap`: whether a window begins one step after the one before, so that there is a meta-update after
        every step from the first full window on; otherwise it begins where the one before ended.
    - `train_rest`: whether the steps after the last full window are a shorter window; otherwise they are
        taken but not trained on.
    - `random_phase`: whether the first window comes after a random number of steps, below its length. There
        is one fewer than would fit in, they do not overlap, and losses are those of windows alone.
    - `include_final_loss`: as in `estimators.Window`, for windows that do not overlap.
    - all others: as in `AbstractUpdateStrategy.super_epoch`.

    **Returns:** a `SuperEpoch`.
    """
    count = num_windows(num_steps, length, overlap=overlap, random_phase=random_phase)
    starts = jnp.arange(count) * (1 if overlap else length)
    # With a random phase it is known to the program alone, and left out.
    rest = 0 if overlap or random_phase else num_steps % length
    # To a weighting the super epoch ends with the last window: its last loss must be a trained one.
    trained = num_steps if train_rest else num_steps - rest
    first = first_window(
        optimizer,
        objectives,
        length,
        num_steps=num_steps,
        init_keys=init_keys,
        loss_keys=loss_keys,
        include_final_loss=include_final_loss,
    )
    first = dataclasses.replace(first, num_steps=trained + include_final_loss)
    if random_phase:
        latest = min(length - 1, num_steps - count * length)
        phase = jr.randint(jr.fold_in(key, _PHASE), (), 0, latest + 1)
        starts = starts + phase
        first = dataclasses.replace(first.later(optimizer, phase), num_steps=starts[-1] + length)
    arrays, static = eqx.partition(optimizer, eqx.is_array)
    own_key, key = jr.split(key)
    estimator_state = estimator.init(optimizer, first, key=own_key)

    def train(carry, start, length=length, begins=False):
        arrays, meta_state, estimator_state, point = carry
        optimizer = eqx.combine(arrays, static)
        window = dataclasses.replace(first, start=start, length=length, begins=begins)
        point, window = point.next_window(optimizer, window)
        result, estimator_state = estimator.estimate(
            optimizer, window, weighting, estimator_state, key=jr.fold_in(key, start)
        )
        point, losses = point.after(optimizer, window, result)
        optimizer, meta_state = meta_update(optimizer, meta_state, result.grads)
        carry = (eqx.filter(optimizer, eqx.is_array), meta_state, estimator_state, point)
        return carry, (losses, result.meta_loss, grad_metrics(result.grads))

    point, early = (_Running if overlap else _Apart).begin(optimizer, first)
    carry = (arrays, meta_state, estimator_state, point)
    carry, (losses, meta_losses, metrics) = _over_windows(train, carry, starts, first.begins)
    losses = losses.reshape(-1, losses.shape[-1])
    losses = losses if early is None else jnp.concatenate([early, losses])
    if rest and train_rest:
        carry, (more, *last) = train(carry, num_steps - rest, rest)
        last = jax.tree.map(lambda x: x[None], tuple(last))
        meta_losses, metrics = _joined([(meta_losses, metrics), last])
        losses = jnp.concatenate([losses, more])
    arrays, meta_state, _, point = carry
    optimizer = eqx.combine(arrays, static)
    if rest and not train_rest:
        *_, record = _take_rest(optimizer, first, point, rest, num_steps - rest)
        losses = jnp.concatenate([losses, record.losses])
    return SuperEpoch(optimizer, meta_state, losses, meta_losses, metrics, point.health.sound)


def num_windows(num_steps: int, length: int, *, overlap: bool = False, random_phase: bool = False) -> int:
    """How many windows of `length` are trained on in a super epoch of `num_steps`; the rest not counted."""
    if overlap:
        return num_steps - length + 1
    return max(1, num_steps // length - random_phase)


def _over_windows(train, carry, starts, begins):
    found = []
    if begins:
        # By itself, because it alone is differentiated through where it begins.
        carry, one = train(carry, starts[0], begins=True)
        found.append(jax.tree.map(lambda x: x[None], one))
        starts = starts[1:]
    if len(starts):
        carry, out = lax.scan(train, carry, starts)
        found.append(out)
    return carry, _joined(found)


def _take_rest(optimizer, window, point, count, start):
    return run_steps(
        optimizer, window.objectives, point.params, point.state, count, start=start, keys=window.keys
    )


def _joined(parts):
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _push(past: Float[Array, "window ..."], new: Float[Array, "1 ..."]) -> Float[Array, "window ..."]:
    return jnp.concatenate([past[1:], new])


def _meta_params(tree: PyTree) -> PyTree[Float[Array, "..."]]:
    return eqx.filter(tree, eqx.is_inexact_array)
