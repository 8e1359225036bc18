import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from ._checks import check_sizes
from ._devices import Restarts
from ._errors import ArgumentError, NanWarning, SkippedUpdatesWarning
from ._find_nan import NanPlace, find_nan
from ._loop import run
from ._meta_step import (
    MetaState,
    compiled_step,
    compiled_steps,
    count_skipped,
    init_meta_state,
    objective_keys,
)
from ._past import Past
from ._rows import Rows
from ._snapshots import Keeper, Snapshot, Validation, validation_of
from ._states import finite_restarts, refuse_misfits
from ._turns import PlacedFamilies, Turn, turns_of
from ._zero_gradients import GradientWatch
from .callbacks import StopTraining
from .callbacks._base import Callback
from .meta_optimizers import default_meta_optimizer
from .objectives import AbstractObjectiveFamily
from .optimizers import AbstractOptimizer
from .strategies import AbstractUpdateStrategy, EveryWindow
from .weightings import AbstractWeighting, Constant

# The metrics that are also kept for each family of a mixture.
_BY_FAMILY = ("meta_loss", "mean_loss", "final_loss")


class Progress(eqx.Module):
    """What a callback of `meta_train` sees after each super epoch.

    **Fields:**

    - `super_epoch`: number of super epochs done; `super_epochs`: of how many.
    - `metrics`: host numbers, arrays over restarts if there are any: `meta_loss`, the mean over the super
        epoch's windows; `mean_loss` and `final_loss` of the inner steps, means over objectives;
        `grad_norm` and `zero_share`, the mean norm of the meta-gradient and its share of exact zeros, for
        an optimizer of several parts also for each (`grad_norm/<part>`); `skipped_updates`, how many
        meta-updates were left out so far because their gradient was not finite; `failed_objectives`, how
        many objectives of the super epoch were not finite and left out of it; with a validation,
        `validation_loss`, the score, NaN where there was none. Of a call of several super epochs they are
        means, `failed_objectives` the sum, `skipped_updates` and `validation_loss` those of its end.
    - `state`: to save, or to resume from.
    - `failed`: these objectives, with their keys.
    - `without_gradient`: the paths of meta-parameters whose gradient has been exactly zero from the start, as
        in `MetaSolution`; with the super epoch after which that is told.
    - `family`: the name of the super epoch's family in a `Mixture`; else empty. A mixture's `meta_loss`,
        `mean_loss` and `final_loss` are metrics of each family, too (`final_loss/<family>`), NaN for super
        epochs of the others.
    - `skipped_all`: what to do if no meta-update of the first super epoch could be made; else empty.
    - `nan`: with `debug_nans`, once, where the first NaN arose.

    Before the first super epoch there are no metrics yet.
    """

    super_epoch: int
    super_epochs: int
    metrics: dict[str, Any]
    state: MetaState
    failed: tuple["FailedObjective", ...] = ()
    without_gradient: tuple[str, ...] = ()
    family: str = ""
    skipped_all: str = ""
    nan: NanPlace | None = None

    @property
    def done(self) -> int:
        """Steps of this work that are done."""
        return self.super_epoch


class FailedObjective(eqx.Module):
    """An objective that was not finite during a super epoch, and was left out from there on.

    `family.sample(key)` draws it again. `super_epoch` counts from 1, as in `Progress`; `restart` is `None`
    without restarts; `family` is the name in a `Mixture`, else empty.
    """

    super_epoch: int
    restart: int | None
    key: PRNGKeyArray
    family: str = ""


class MetaSolution(eqx.Module):
    """The result of `meta_train`.

    **Fields:**

    - `optimizer`: the trained optimizer; with `restarts`, a batch of them: see `restart`.
    - `result`: `"completed"`, or `"stopped"` if a callback ended the training early.
    - `metrics`: those of `Progress`, one row per super epoch; of a training that went on from a `state`,
        those from there on.
    - `state`: pass it to `meta_train` to go on.
    - `failed`: the objectives that were not finite, with their keys; from the very first super epoch on.
    - `best`: the best snapshot by validation, kept beside the last one, which is `optimizer`.
    - `averaged`: the mean of the last optimizers. Both are `None` if not asked for.
    - `reason`: that of the `StopTraining` which ended the training early, if it gave one.
    - `without_gradient`: the paths of meta-parameters whose gradient was exactly zero in every meta-update of
        the first super epoch, and of all restarts. Fewer than four updates do not tell: then it is those of
        the first super epochs that have as many.
    - `failed_restarts`: those, of a single one 0, whose meta-parameters are not all finite, or of whose last
        super epoch every meta-update was left out, because no meta-gradient was finite.
    """

    optimizer: AbstractOptimizer
    result: Literal["completed", "stopped"]
    metrics: dict[str, np.ndarray]
    state: MetaState
    failed: tuple[FailedObjective, ...] = ()
    reason: str | None = None
    without_gradient: tuple[str, ...] = ()
    failed_restarts: tuple[int, ...] = ()

    @property
    def best(self) -> Snapshot | None:
        return self.state.best

    @property
    def averaged(self) -> AbstractOptimizer | None:
        return None if self.state.average is None else self.state.average.optimizer


def select_restart(optimizer: AbstractOptimizer, index: int) -> AbstractOptimizer:
    """One optimizer out of a batch of restarts."""
    return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, optimizer)


def count_meta_parameters(optimizer: AbstractOptimizer) -> int:
    """How many floating-point numbers of an optimizer meta-training changes."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array)))


def meta_train(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    strategy: AbstractUpdateStrategy | None = None,
    *,
    weighting: AbstractWeighting | None = None,
    meta_optimizer: optax.GradientTransformation | None = None,
    num_steps: int | Sequence[int] = 320,
    super_epochs: int = 100,
    num_objectives: int = 1,
    restarts: int | None = None,
    validation: AbstractObjectiveFamily | Validation | None = None,
    average: float | None = None,
    per_call: int = 1,
    debug_nans: bool = False,
    key: PRNGKeyArray,
    callbacks: Sequence[Callback] = (),
    state: MetaState | None = None,
) -> MetaSolution:
    """Trains an optimizer to minimize the objectives of a family.

    Each super epoch draws new objectives and starting points and runs one whole inner optimization of
    `num_steps`, compiled as one program, with the meta-updates of the strategy inside. Callbacks are
    ordinary Python, called between super epochs.

    **Arguments:**

    - `optimizer`: what to train; every floating-point array in it is a meta-parameter. With `state`, only
        its structure matters.
    - `family`: what to train it on; a `Mixture` of several is one of them in every super epoch.
    - `strategy`: by default `EveryWindow(16)`.
    - `weighting`: by default `Constant()`.
    - `meta_optimizer`: any optax transformation; by default `default_meta_optimizer()`.
    - `num_steps`: length of a super epoch; of several, one is drawn for each super epoch. Every length is one
        compiled program.
    - `super_epochs`: how many; with `state`, how many in all.
    - `num_objectives`: inner optimizations in parallel, whose meta-gradients are averaged.
    - `restarts`: if given, `optimizer` is a batch of that many, e.g. `eqx.filter_vmap(make)(keys)`, each
        trained independently, on its own draws, in the same program.
    - `validation`: keeps the best snapshot on fixed objectives, as a `Validation` says. A family alone
        means 16 objectives of it, `num_steps` long, ten times in the training. It changes nothing else.
    - `average`: share of the super epochs, the last ones, whose optimizers are averaged, e.g. 0.25; with a
        validation the mean is one more candidate at the end.
    - `per_call`: how many super epochs are one call of a compiled program, with nothing of Python between
        them; for those that take but milliseconds. Callbacks are called after each call, which may be
        shorter where a validation is due, an average begins, or `num_steps` changes. It changes nothing else,
        but for rounding.
    - `debug_nans`: the first time that an objective fails or a meta-gradient is not finite, does that super
        epoch once more with every operation checked, for `Progress.nan`. It changes nothing else.
    - `key`: the same key gives the same result.
    - `callbacks`: called with a `Progress` after each super epoch: functions, or parts of
        `l2o_eqx.callbacks`. One that returns `StopTraining` ends the training there.
    - `state`: of an earlier solution, a `Progress`, or `load_checkpoint`, with the same settings and `key`,
        to go on where it ended, bit for bit as if it had not. Other settings are taken as they are given, if
        the arrays fit.

    **Returns:** a `MetaSolution`.

    **Raises:** `ArgumentError` for sizes below 1, a strategy that does not fit `num_steps`, an `average` that
    is not above 0 and at most 1, an optimizer without meta-parameters, or a `state` that does not fit, with
    the part of it that does not.

    **Warns:** with a `ZeroGradientWarning`, after the first super epoch, of meta-parameters that have had no
    gradient; with a `SkippedUpdatesWarning` if none of its meta-gradients was finite. Before it, with an
    `UntrainedNumberWarning` of Python numbers in the optimizer. With `debug_nans`, with a `NanWarning` that
    tells the place.

    Reference: thesis sec. 3.3 and 5.5; averaging: Polyak & Juditsky 1992, "Acceleration of stochastic
    approximation by averaging".
    """
    strategy = EveryWindow() if strategy is None else strategy
    meta_optimizer = default_meta_optimizer() if meta_optimizer is None else meta_optimizer
    lengths = tuple(num_steps) if isinstance(num_steps, Sequence) else (num_steps,)
    check_sizes(
        "meta_train",
        num_steps=min(lengths, default=0),
        super_epochs=super_epochs,
        num_objectives=num_objectives,
        restarts=1 if restarts is None else restarts,
        per_call=per_call,
    )
    if average is not None and not 0 < average <= 1:
        raise ArgumentError(
            "`meta_train(average=...)` is a share of the super epochs, above 0 and at most 1. "
            f"Got average={average}.",
            argument="average",
            given=average,
        )
    for length in lengths:
        strategy.num_updates(length)
    runs = Restarts(restarts)
    start = init_meta_state(optimizer, meta_optimizer, strategy, restarts=restarts, key=key)
    state = start if state is None else fitting("meta_train", start, state, super_epochs, key)
    valid = validation_of(validation, max(lengths), super_epochs, key)
    score = None if valid is None else functools.partial(valid.score, restarts=restarts)
    keeper = Keeper(score, 1 if valid is None else valid.every, average, super_epochs)
    turns = turns_of(family, strategy, lengths, super_epochs, key)
    # Once, and not again for every super epoch.
    families = PlacedFamilies(family, strategy, num_objectives, runs)

    def steps(state, count):
        turn = turns[int(state.super_epoch)]
        there = families.at(turn.family, state)
        one: dict[str, Any] = {"strategy": turn.strategy, "num_steps": turn.num_steps, **settings}
        if per_call == 1:
            next_state, *rows = compiled_step(*there, **one)
            return next_state, *jax.tree.map(lambda x: np.asarray(x)[None], rows)
        return compiled_steps(*there, jnp.asarray(count), most=per_call, **one)

    settings: dict[str, Any] = dict(
        weighting=Constant() if weighting is None else weighting,
        meta_optimizer=meta_optimizer,
        num_objectives=num_objectives,
        key=key,
    )
    begun, past = int(state.super_epoch), state.past or Past.none_yet(key)
    name_failed = functools.partial(_failed, key=key, num_objectives=num_objectives, runs=runs, turns=turns)
    watch = None
    # Where windows begin anywhere, learned starts have a gradient now and then.
    if not strategy.begins_anywhere() and (begun == 0 or past.watched is not None):
        watch = GradientWatch(start.optimizer, families.families, past.watched)

    def locate(state, count):
        for turn in turns[int(state.super_epoch) :][:count]:
            one: dict[str, Any] = {"strategy": turn.strategy, "num_steps": turn.num_steps, **settings}
            state, place = find_nan(families.fetch(state), families.families[turn.family], runs, one)
            if place is not None:
                return place
        return NanPlace(int(state.super_epoch))

    asked = locate if debug_nans else None
    course = Course(steps, name_failed, watch, past, keeper, turns, families.fetch, asked)
    ends = [
        done
        for done in range(begun + 1, super_epochs + 1)
        if done % per_call == 0 or keeper.is_due(done) or not turns[done - 1].is_like(turns[done])
    ]
    return course.run(keeper.start(state), ends, callbacks)


def fitting(verb: str, start: MetaState, given: MetaState, super_epochs: int, key: PRNGKeyArray) -> MetaState:
    """The state that a training is to go on from, if it fits; raises as `meta_train`."""
    parts = {
        "optimizer": (start.optimizer, given.optimizer),
        "meta_optimizer": (start.meta_optimizer_state, given.meta_optimizer_state),
        "strategy": (start.strategy_state, given.strategy_state),
    }
    refuse_misfits(verb, parts)
    if given.past is not None:
        given.past.check_key(verb, key)
    done = int(given.super_epoch)
    if done > super_epochs:
        raise ArgumentError(
            f"`{verb}(super_epochs={super_epochs})` counts those in all; `state` has done {done}.",
            argument="super_epochs",
            given=super_epochs,
        )
    return given


class Course:
    """The way of one training from its first to its last super epoch.

    **Arguments:**

    - `steps`: some super epochs: `(state, count) -> (state, metrics, which objectives failed, which
        meta-parameters were reached by a gradient)`, all but the state with a row for each.
    - `name_failed`: which objectives rows of `Past.failed` are.
    - `watch`: finds meta-parameters that are never reached.
    - `past`: what is known of the way to the first state.
    - `keeper`: keeps snapshots.
    - `turns`: what each super epoch is of.
    - `fetch`: brings the last state back from the devices.
    - `locate`: where so many super epochs, from a state on, have their first NaN; asked once.
    """

    def __init__(
        self,
        steps: Callable[[MetaState, int], tuple[MetaState, dict[str, Any], Any, Any]],
        name_failed: Callable[[np.ndarray], tuple[FailedObjective, ...]],
        watch: GradientWatch | None,
        past: Past,
        keeper: Keeper,
        turns: Sequence[Turn],
        fetch: Callable[[MetaState], MetaState],
        locate: Callable[[MetaState, int], NanPlace] | None = None,
    ):
        self.steps, self.name_failed, self.watch, self.keeper = steps, name_failed, watch, keeper
        self.past, self.turns, self.fetch, self.locate = past, turns, fetch, locate
        self.families = sorted({turn.family for turn in turns})
        self.rows = Rows()

    def run(self, state: MetaState, ends: Sequence[int], callbacks: Sequence[Callback]) -> MetaSolution:
        """Goes on from a state, in calls that end after so many super epochs."""
        self.skipped = np.asarray(count_skipped(state.meta_optimizer_state))
        state = dataclasses.replace(state, past=self.past)
        first = Progress(int(state.super_epoch), self.keeper.super_epochs, {}, state)
        return run(self.step, state, ends, callbacks, first=first, finish=self.finish)

    def step(self, state: MetaState, done: int) -> tuple[MetaState, Progress]:
        """One call; `done` super epochs with it."""
        total, count, before = self.keeper.super_epochs, done - int(state.super_epoch), state
        core, *found = self.steps(state.alone(), count)
        state, kept = self.keeper.after(core.with_kept(state))
        if done == total:
            state, at_the_end = self.keeper.finish(state)
            kept = kept | at_the_end
        unknown = {name: np.full(np.shape(x), np.nan) for name, x in kept.items()}
        metrics, masks, reached = jax.tree.map(np.asarray, found)
        known, zeros, name = len(self.past.failed), (), self.turns[done - 1].family
        skipped_all = ""
        for i, number in enumerate(range(done - count + 1, done + 1)):
            own = {name: x[i] for name, x in metrics.items()}
            own = jax.tree.map(_to_host, own | (kept if number == done else unknown))
            self.rows.append(self._of_families(own, name))
            zeros += self._look(masks[i], reached[i], number)
            if number == 1 and np.all(own["skipped_updates"] >= self.turns[0].num_updates):
                skipped_all = describe_skipped(self.turns[0].num_updates, name)
                warnings.warn(skipped_all, SkippedUpdatesWarning, stacklevel=2)
        state = dataclasses.replace(state, past=self.past)
        failed = self.name_failed(self.past.failed[known:])
        row = _of_call(self.rows.last(count))
        nan = self._locate(before, count, row)
        return state, Progress(done, total, row, state, failed, zeros, name, skipped_all, nan)

    def _locate(self, before: MetaState, count: int, row: dict[str, Any]) -> NanPlace | None:
        if self.locate is None:
            return None
        skipped = np.any(row["skipped_updates"] > np.asarray(count_skipped(before.meta_optimizer_state)))
        if not (skipped or np.any(row["failed_objectives"])):
            return None
        place, self.locate = self.locate(before, count), None
        warnings.warn(str(place), NanWarning, stacklevel=2)
        return place

    def _look(self, failed: np.ndarray, reached: np.ndarray, number: int) -> tuple[str, ...]:
        """Takes note of what a super epoch shows beside metrics, and returns what has no gradient."""
        past, turn, zeros = self.past, self.turns[number - 1], ()
        if failed.any():
            found = [[number, *([-1, *i] if len(i) == 1 else i)] for i in np.argwhere(failed).tolist()]
            past = dataclasses.replace(past, failed=np.concatenate([past.failed, found]))
        if self.watch is not None:
            zeros = self.watch.after(reached, turn.family, turn.num_updates)
            past = dataclasses.replace(past, watched=self.watch.seen)
        self.past = past
        return zeros

    def _of_families(self, row: dict[str, Any], turn: str) -> dict[str, Any]:
        # Every row has the metrics of all families.
        if not turn:
            return row
        each = {
            f"{name}/{family}": row[name] if family == turn else np.full_like(row[name], np.nan)[()]
            for family in self.families
            for name in _BY_FAMILY
        }
        return row | each

    def finish(self, state: MetaState, stop: StopTraining | None) -> MetaSolution:
        """What became of it."""
        if stop is not None and int(state.super_epoch) < self.keeper.super_epochs:
            state, at_the_end = self.keeper.finish(state)
            self.rows.change_last(at_the_end)
        state, metrics = self.fetch(state), self.rows.columns()
        result, reason = ("completed", None) if stop is None else ("stopped", stop.reason)
        failed, watched = self.name_failed(self.past.failed), self.past.watched
        zeros = () if watched is None else watched.found
        lost = self._failed_restarts(state)
        return MetaSolution(state.optimizer, result, metrics, state, failed, reason, zeros, lost)

    def _failed_restarts(self, state: MetaState) -> tuple[int, ...]:
        count = np.atleast_1d(count_skipped(state.meta_optimizer_state))
        before = self.skipped if self.rows.count < 2 else self.rows.last(2)[0]["skipped_updates"]
        stuck = count - np.atleast_1d(before) >= self.turns[int(state.super_epoch) - 1].num_updates
        # Where nothing was done, nothing is stuck.
        stuck = stuck & (self.rows.count > 0)
        finite = finite_restarts(eqx.filter(state.optimizer, eqx.is_inexact_array), len(stuck))
        return tuple(np.flatnonzero(stuck | ~finite).tolist())


def describe_skipped(count: int, family: str = "") -> str:
    """What is said where all meta-updates of the first super epoch, so many, were left out.

    `family` is that of a mixture whose turn it was.
    """
    where = f", on {family!r}," if family else ""
    return (
        f"No meta-gradient of the first super epoch{where} was finite, and all of its {count} meta-updates "
        "were left out: this trains nothing. If losses diverge, begin with smaller steps or a smaller "
        "scale. If they do not, something in the rule has no derivative, such as a root at 0: add a number "
        "under it (`eps_root` of optax), or take the estimator of first order (`Backprop()`, "
        "`--order first`)."
    )


def _of_call(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of a call: means over its super epochs, but for counts and for the score of its end."""
    if len(rows) == 1:
        return rows[0]
    of_end = ("skipped_updates", "validation_loss")
    sums = {name: np.sum([row[name] for row in rows], axis=0) for name in rows[0] if name not in of_end}
    means = {name: x if name == "failed_objectives" else x / len(rows) for name, x in sums.items()}
    return {name: _to_host(np.asarray(means[name])) if name in means else rows[-1][name] for name in rows[0]}


def _failed(rows, *, key, num_objectives, runs, turns) -> tuple[FailedObjective, ...]:
    found = []
    for super_epoch, restart, objective in rows.tolist():
        number = None if restart < 0 else restart
        own = runs.key_of(jr.fold_in(key, super_epoch - 1), number)
        drawn_with = objective_keys(own, num_objectives)[objective]
        found.append(FailedObjective(super_epoch, number, drawn_with, turns[super_epoch - 1].family))
    return tuple(found)


def _to_host(x):
    return np.asarray(x).item() if x.ndim == 0 else np.asarray(x)
