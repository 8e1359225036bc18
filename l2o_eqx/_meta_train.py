import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from ._checks import check_sizes
from ._devices import gather
from ._meta_step import MetaState, compiled_step, init_meta_state, objective_keys, placed
from ._snapshots import Keeper, Snapshot, Validation, validation_of
from .meta_optimizers import default_meta_optimizer
from .objectives import AbstractObjectiveFamily
from .optimizers import AbstractOptimizer
from .strategies import AbstractUpdateStrategy, EveryWindow
from .weightings import AbstractWeighting, Constant

# Far from the numbers of super epochs, and not those of the other draws.
_LENGTHS = 2**31 - 3


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
        `validation_loss`, the score, NaN where there was none.
    - `state`: to save, or to resume from.
    - `failed`: these objectives, with their keys.
    """

    super_epoch: int
    super_epochs: int
    metrics: dict[str, Any]
    state: MetaState
    failed: tuple["FailedObjective", ...] = ()


class FailedObjective(eqx.Module):
    """An objective that was not finite during a super epoch, and was left out from there on.

    `family.sample(key)` draws it again. `super_epoch` counts from 1, as in `Progress`; `restart` is `None`
    without restarts.
    """

    super_epoch: int
    restart: int | None
    key: PRNGKeyArray


# A callback that returns a true value ends the training after this super epoch.
Callback = Callable[[Progress], Any]


class MetaSolution(eqx.Module):
    """The result of `meta_train`.

    **Fields:**

    - `optimizer`: the trained optimizer; with `restarts`, a batch of them: see `restart`.
    - `result`: `"completed"`, or `"stopped"` if a callback ended the training early.
    - `metrics`: those of `Progress`, one row per super epoch.
    - `state`: pass it to `meta_train` to go on.
    - `failed`: the objectives that were not finite, with their keys.
    - `best`: the best snapshot by validation, kept beside the last one, which is `optimizer`.
    - `averaged`: the mean of the last optimizers. Both are `None` if not asked for.
    """

    optimizer: AbstractOptimizer
    result: Literal["completed", "stopped"]
    metrics: dict[str, np.ndarray]
    state: MetaState
    failed: tuple[FailedObjective, ...] = ()

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
    - `family`: what to train it on.
    - `strategy`: by default `EveryWindow(16)`.
    - `weighting`: by default `Constant()`.
    - `meta_optimizer`: any optax transformation; by default `default_meta_optimizer()`.
    - `num_steps`: length of a super epoch; of several, one is drawn for each super epoch. Every length is one
        compiled program.
    - `super_epochs`: how many; with `state`, how many in all.
    - `num_objectives`: inner optimizations side by side, whose meta-gradients are averaged.
    - `restarts`: if given, `optimizer` is a batch of that many, e.g. `eqx.filter_vmap(make)(keys)`, each
        trained independently, on its own draws, in the same program.
    - `validation`: keeps the best snapshot on fixed objectives, as a `Validation` says. A family alone
        means 16 objectives of it, `num_steps` long, ten times in the training. It changes nothing else.
    - `average`: share of the super epochs, the last ones, whose optimizers are averaged, e.g. 0.25; with a
        validation the mean is one more candidate at the end.
    - `key`: the same key gives the same result.
    - `callbacks`: called with a `Progress` after each super epoch.
    - `state`: of an earlier solution with the same settings, to go on where it ended.

    **Returns:** a `MetaSolution`.

    **Raises:** `ValueError` for sizes below 1, a strategy that does not fit `num_steps`, an `average` that
    is not above 0 and at most 1, or an optimizer without meta-parameters.

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
    )
    if average is not None and not 0 < average <= 1:
        raise ValueError(
            "`meta_train(average=...)` is a share of the super epochs, above 0 and at most 1. "
            f"Got average={average}."
        )
    for length in lengths:
        strategy.num_updates(length)
    start = init_meta_state(optimizer, meta_optimizer, strategy, restarts=restarts, key=key)
    state = _first_state(start, state)
    keeper = Keeper(
        validation_of(validation, max(lengths), super_epochs, key), average, super_epochs, restarts
    )
    # Once, and not again for every super epoch.
    core, family, mesh, spread = placed(state, family, strategy, num_objectives, restarts)
    drawn = super_epoch_lengths(lengths, super_epochs, key)

    def step(state):
        return one_step(state, num_steps=drawn[int(state.super_epoch)])

    one_step = functools.partial(
        compiled_step,
        family=family,
        mesh=mesh,
        spread=spread,
        strategy=strategy,
        weighting=Constant() if weighting is None else weighting,
        meta_optimizer=meta_optimizer,
        num_objectives=num_objectives,
        restarts=restarts,
        key=key,
    )
    find_failed = functools.partial(_failed, key=key, num_objectives=num_objectives, restarts=restarts)
    solution = _run(step, find_failed, keeper, keeper.start(core.with_kept(state)), callbacks)
    state = gather(solution.state, mesh)
    return MetaSolution(state.optimizer, solution.result, solution.metrics, state, solution.failed)


def _first_state(start, given):
    if given is None:
        return start
    if _shapes(dataclasses.replace(given, best=None, average=None)) != _shapes(start):
        raise ValueError(
            "`meta_train(state=...)` does not fit: it must come from a training of the same optimizer, "
            "meta-optimizer, strategy and restarts as those given."
        )
    return given


def _run(
    step: Callable[[MetaState], tuple[MetaState, dict[str, Any], Any]],
    find_failed: Callable[[np.ndarray, int], tuple[FailedObjective, ...]],
    keeper: Keeper,
    state: MetaState,
    callbacks: Sequence[Callback],
) -> MetaSolution:
    # The host's loop, up to the last super epoch or to a callback's wish.
    rows, all_failed, result = [], [], "completed"
    while (done := int(state.super_epoch)) < keeper.super_epochs:
        core, metrics, mask = step(dataclasses.replace(state, best=None, average=None))
        state, kept = keeper.after(core.with_kept(state))
        done += 1
        if done == keeper.super_epochs:
            state, at_the_end = keeper.finish(state)
            kept = kept | at_the_end
        rows.append(jax.tree.map(_to_host, metrics | kept))
        failed = find_failed(np.asarray(mask), done)
        all_failed += failed
        progress = Progress(done, keeper.super_epochs, rows[-1], state, failed)
        if any([callback(progress) for callback in callbacks]):
            result = "stopped"
            break
    if result == "stopped" and done < keeper.super_epochs:
        state, at_the_end = keeper.finish(state)
        rows[-1] = rows[-1] | jax.tree.map(_to_host, at_the_end)
    metrics = {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
    return MetaSolution(state.optimizer, result, metrics, state, tuple(all_failed))


def _failed(mask, super_epoch, *, key, num_objectives, restarts) -> tuple[FailedObjective, ...]:
    found = []
    for *restart, objective in np.argwhere(mask).tolist():
        keys = objective_keys(key, super_epoch - 1, num_objectives, restarts, *restart)
        found.append(FailedObjective(super_epoch, restart[0] if restart else None, keys[objective]))
    return tuple(found)


def super_epoch_lengths(lengths: Sequence[int], super_epochs: int, key: PRNGKeyArray) -> list[int]:
    """The length of each super epoch of a training, drawn from `lengths`; the same for the same key."""
    if len(lengths) == 1:
        return [lengths[0]] * super_epochs
    # Not out of the super epochs' own keys, which their starting points come from.
    key = jr.fold_in(key, _LENGTHS)

    def draw(super_epoch):
        return jr.randint(jr.fold_in(key, super_epoch), (), 0, len(lengths))

    return [lengths[i] for i in jax.vmap(draw)(np.arange(super_epochs)).tolist()]


def _shapes(state):
    leaves, treedef = jax.tree.flatten(eqx.filter(state, eqx.is_array))
    return treedef, [(x.shape, x.dtype) for x in leaves]


def _to_host(x):
    return np.asarray(x).item() if x.ndim == 0 else np.asarray(x)
