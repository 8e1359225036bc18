import csv
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._checks import check_sizes
from ._devices import Restarts
from ._errors import ArgumentError
from ._loop import run
from ._meta_step import init_meta_state
from ._pretrain_step import CHUNK, LossName, PartState, PretrainSettings, init_carried, train_part
from ._pretraining_report import (
    NUM_SAMPLES,
    NUM_STEPS,
    PretrainReport,
    check_positive,
    dtype_of,
    measure,
    optimizers_in,
    rate_of,
)
from ._states import finite_restarts, refuse_misfits
from .callbacks._base import Callback
from .optimizers import AbstractOptimizer


class PretrainProgress(eqx.Module):
    """What a callback of `pretrain` sees.

    **Fields:**

    - `update`: number of updates done; `num_updates`: of how many.
    - `losses`: those since the callback before, as in `PretrainSolution`; none before the first update.
    - `state`: to save, or to resume from.
    """

    update: int
    num_updates: int
    losses: Float[np.ndarray, "*restarts updates"]
    state: "PretrainState"

    @property
    def done(self) -> int:
        """Steps of this work that are done."""
        return self.update


class PretrainState(eqx.Module):
    """Where a pretraining stands: all that is needed to go on.

    `update` counts those that are done, and `losses` are theirs, as in `PretrainSolution`.
    """

    parts: "tuple[PartState, ...]"
    update: Int[Array, ""]
    losses: Float[np.ndarray, "*restarts updates"]


class PretrainSolution(eqx.Module):
    """The result of `pretrain`.

    **Fields:**

    - `optimizer`: the pretrained optimizer; with `restarts`, a batch of them.
    - `losses`: before every update; the mean over the parts of a `PerLayer`. Of one that went on from a
        `state`, those from there on; that of the solution has all.
    - `report`: that of `pretraining_report`, on inputs which the optimizer was not trained on.
    - `result`: `"completed"`, or `"stopped"` if a callback ended the pretraining early.
    - `state`: pass it to `pretrain` to go on.
    - `reason`: that of the `StopTraining` which ended the pretraining early, if it gave one.
    - `failed_restarts`: those, of a single one 0, whose loss was not finite at any update, or whose
        meta-parameters are not.
    """

    optimizer: AbstractOptimizer
    losses: Float[np.ndarray, "*restarts updates"]
    report: PretrainReport
    result: Literal["completed", "stopped"]
    state: PretrainState
    reason: str | None = None
    failed_restarts: tuple[int, ...] = ()

    def write_losses(self, path: str | Path) -> None:
        """Writes all losses as a CSV file, one row per restart and update.

        **Arguments:**

        - `path`: the file.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["restart", "update", "loss"])
            for restart, losses in enumerate(np.atleast_2d(self.state.losses)):
                writer.writerows([restart, i + 1, loss] for i, loss in enumerate(losses.tolist()))


def pretrain(
    optimizer: AbstractOptimizer,
    *,
    learning_rate: float | None = None,
    omega: float = 2.0,
    loss: LossName = "sign-weighted",
    input_std: float = 1e-3,
    num_steps: int = NUM_STEPS,
    batch_size: int = 128,
    num_samples: int = 200_000,
    carry_state: bool = False,
    meta_optimizer: optax.GradientTransformation | None = None,
    restarts: int | None = None,
    key: PRNGKeyArray,
    callbacks: Sequence[Callback] = (),
    state: PretrainState | None = None,
) -> PretrainSolution:
    """Trains an optimizer to start as gradient descent: to answer random inputs ∇ with −α·∇.

    No objective is needed: for each update `batch_size` coordinates, all at zero, are given `num_steps`
    random gradients one after the other, and all answers are compared with their targets. Each part of a
    `PerLayer` is pretrained as if alone.

    The thesis's code does `pretrain(num_steps=1, carry_state=True)`. With `num_steps=1` alone, only the very
    first step of an inner optimization is learned: from the second on, signs are little better than chance.
    With the sign-weighted loss, signs are soon right, and magnitudes remain off by a factor of order one.

    **Arguments:**

    - `optimizer`: what to train; every floating-point array in it is a meta-parameter.
    - `learning_rate`: α; by default the optimizer's own `learning_rate`, or that of each part.
    - `omega`: of `sign_weighted_loss`.
    - `loss`: `"sign-weighted"`, or `"squared"` for the mean of (g − g*)².
    - `input_std`: standard deviation of the inputs, whose mean is zero.
    - `num_steps`: inputs that a coordinate is given.
    - `batch_size`: coordinates per update.
    - `num_samples`: coordinates in all, which makes `num_samples // batch_size` updates.
    - `carry_state`: whether the optimizer's state goes on from batch to batch, without a derivative, instead
        of starting anew.
    - `meta_optimizer`: any optax transformation; by default `optax.adam(1e-3, eps=1e-7)`. Where α is well
        below 0.01, or the loss is squared, gradients are as small as this ε, and a smaller one learns more.
    - `restarts`: if given, `optimizer` is a batch of that many, e.g. `eqx.filter_vmap(make)(keys)`. Restart
        i comes out as if pretrained alone with `jr.split(key, restarts)[i]`.
    - `key`: the same key gives the same result.
    - `callbacks`: called with a `PretrainProgress` after every 100 updates and after the last: functions, or
        parts of `l2o_eqx.callbacks`. One that returns `StopTraining` ends the pretraining there.
    - `state`: of an earlier solution with the same settings, to go on where it ended.

    **Returns:** a `PretrainSolution`.

    **Raises:** `ValueError` for sizes below 1, less than a batch of samples, an unknown loss, an `omega`
    below 0, an `input_std` or a learning rate that is not positive, an optimizer without a learning rate or
    without meta-parameters, or a `state` that does not fit.

    Reference: thesis sec. 5.4.4, eq. 5.11.
    """
    meta_optimizer = _default_meta_optimizer() if meta_optimizer is None else meta_optimizer
    _check(optimizer, num_steps, batch_size, num_samples, loss, omega, input_std)
    settings = PretrainSettings(omega, loss, input_std, num_steps, batch_size, carry_state)
    runs = Restarts.of("pretrain", optimizer, restarts)
    keys, parts = runs.keys(key), optimizers_in(optimizer)
    rates = [rate_of("pretrain", part, learning_rate, runs.shape) for part in parts]
    states = [init_meta_state(part, meta_optimizer, restarts=restarts) for part in parts]
    none_yet = np.zeros((*runs.shape, 0), dtype_of(optimizer))
    state = _fitting(_first_state(states, settings, runs, none_yet), state)
    num_updates = num_samples // batch_size
    losses, known = [none_yet], _Losses(state.losses)

    def step(state, end):
        done = int(state.update)
        bounds = jnp.int32(done), jnp.int32(end)
        parts, values = [], []
        for part, rate in zip(state.parts, rates, strict=True):
            part, found = train_part(part, rate, keys, *bounds, settings, meta_optimizer, runs)
            parts.append(part)
            values.append(np.asarray(found)[..., : end - done])
        losses.append(np.mean(values, axis=0))
        state = PretrainState(tuple(parts), bounds[1], known.with_more(losses[-1]))
        return state, PretrainProgress(end, num_updates, losses[-1], state)

    def finish(state, stop):
        trained = [part.optimizer for part in state.parts]
        report = measure(
            trained,
            rates,
            keys,
            jnp.int32(num_updates),  # the draws before were trained on
            input_std=input_std,
            num_steps=NUM_STEPS,
            num_samples=NUM_SAMPLES,
            runs=runs,
        )
        result, reason = ("completed", None) if stop is None else ("stopped", stop.reason)
        pretrained = eqx.tree_at(optimizers_in, optimizer, trained)
        found = np.concatenate(losses, axis=-1)
        numbers = state.losses, eqx.filter(pretrained, eqx.is_inexact_array)
        lost = tuple(np.flatnonzero(~finite_restarts(numbers, runs.count or 1)).tolist())
        return PretrainSolution(pretrained, found, report, result, state, reason, lost)

    done = int(state.update)
    ends = [min(i + CHUNK, num_updates) for i in range(done, num_updates, CHUNK)]
    first = PretrainProgress(done, num_updates, losses[0], state)
    return run(step, state, ends, callbacks, first=first, finish=finish)


class _Losses:
    """Those of all updates, whose array grows as it must: to copy all of them every time would take long."""

    def __init__(self, known: Float[np.ndarray, "*restarts updates"]):
        self.place, self.count = known, known.shape[-1]

    def with_more(self, new: Float[np.ndarray, "*restarts more"]) -> Float[np.ndarray, "*restarts all"]:
        """Those known and some more, of which no entry changes any more."""
        begin, self.count = self.count, self.count + new.shape[-1]
        if self.count > self.place.shape[-1]:
            larger = np.empty((*new.shape[:-1], 2 * self.count), new.dtype)
            larger[..., :begin] = self.place[..., :begin]
            self.place = larger
        self.place[..., begin : self.count] = new
        return self.place[..., : self.count]


def _check(optimizer, num_steps, batch_size, num_samples, loss, omega, input_std):
    check_sizes("pretrain", num_steps=num_steps, batch_size=batch_size)
    if num_samples < batch_size:
        raise ArgumentError(
            "`pretrain(num_samples=...)` must be at least `batch_size`, for one update. "
            f"Got num_samples={num_samples}, batch_size={batch_size}.",
            argument="num_samples",
            given=num_samples,
        )
    if loss not in get_args(LossName):
        raise ArgumentError(
            f"`pretrain(loss=...)` must be one of {get_args(LossName)}. Got loss={loss!r}.",
            argument="loss",
            given=loss,
            possible=get_args(LossName),
        )
    if not omega >= 0:
        raise ArgumentError(
            f"`pretrain(omega=...)` must be at least 0. Got omega={omega}.", argument="omega", given=omega
        )
    if not jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array)):
        raise ArgumentError(
            f"`pretrain({type(optimizer).__name__})`: there is nothing to train, the optimizer has no "
            "floating-point arrays. Give a learned optimizer.",
            argument="optimizer",
            given=optimizer,
        )
    check_positive("pretrain", input_std=input_std)


def _first_state(starts, settings, runs, none_yet):
    parts = []
    for start in starts:
        carried = init_carried(start.optimizer, settings.batch_size, runs) if settings.carry_state else None
        parts.append(PartState(start.optimizer, start.meta_optimizer_state, carried))
    return PretrainState(tuple(parts), jnp.int32(0), none_yet)


def _fitting(start: PretrainState, given: PretrainState | None) -> PretrainState:
    if given is None:
        return start
    names = {"optimizer": "optimizer", "meta_optimizer": "meta_optimizer_state", "carry_state": "state"}
    parts = {
        argument: (
            [getattr(part, name) for part in start.parts],
            [getattr(part, name) for part in given.parts],
        )
        for argument, name in names.items()
    }
    refuse_misfits("pretrain", parts)
    return given


@functools.cache
def _default_meta_optimizer():
    return optax.adam(1e-3, eps=1e-7)
