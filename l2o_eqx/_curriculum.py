import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from ._checks import check_sizes
from ._errors import ArgumentError
from ._loop import Attendance, attended
from ._meta_step import MetaState, init_meta_state
from ._meta_train import MetaSolution, Progress, fitting, meta_train
from ._snapshots import Snapshot, Validation
from .callbacks import StopTraining
from .callbacks._base import Callback
from .meta_optimizers import default_meta_optimizer
from .objectives import AbstractObjectiveFamily
from .optimizers import AbstractOptimizer
from .strategies import AbstractUpdateStrategy, EveryWindow
from .weightings import AbstractWeighting

# Far from the numbers of super epochs, with which the training's own draws are made.
_DRAWS = 2**31 - 2


class Curriculum(eqx.Module):
    """Horizons to train on one after the other, each for as long as it helps on the next one.

    **Arguments:**

    - `horizons`: lengths of a super epoch, increasing; the strategy must fit the shortest.
    - `every`: super epochs between two validations.
    - `patience`: validations in a row without a new best that end a horizon.
    - `num_objectives`: that are tried at each validation.
    - `last`: how many of the last losses count, see `Validation`.

    **Raises:** `ValueError` for no horizons, horizons that do not increase, or sizes below 1.

    Reference: T. Chen et al. 2020, "Training stronger baselines for learning to optimize"
    (arXiv:2010.09089), sec. 3.1.
    """

    horizons: tuple[int, ...] = eqx.field(static=True)
    every: int = eqx.field(static=True, default=5)
    patience: int = eqx.field(static=True, default=3)
    num_objectives: int = eqx.field(static=True, default=16)
    last: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if not self.horizons or list(self.horizons) != sorted(set(self.horizons)):
            raise ArgumentError(
                f"`Curriculum(horizons=...)` needs horizons that increase. Got horizons={self.horizons}.",
                argument="horizons",
                given=self.horizons,
            )
        sizes = ("every", "patience", "num_objectives", "last")
        check_sizes("Curriculum", **{name: getattr(self, name) for name in sizes})

    def judged_on(self, stage: int) -> int:
        """The horizon on which stage number `stage` is validated: the next; for the last one, itself."""
        return self.horizons[min(stage + 1, len(self.horizons) - 1)]


class Stage(eqx.Module):
    """What was done on one horizon: `horizon`, and the `solution` of its `meta_train`."""

    horizon: int
    solution: MetaSolution


class CurriculumSolution(eqx.Module):
    """The result of `train_curriculum`.

    **Fields:**

    - `optimizer`: the best one of the last stage by its validation; with `restarts`, a batch of them.
    - `result`: `"completed"`, or `"stopped"` if a callback ended the training early.
    - `stages`: one per horizon that was trained on, in order.
    - `reason`: that of the `StopTraining` which ended the training early, if it gave one.
    """

    optimizer: AbstractOptimizer
    result: Literal["completed", "stopped"]
    stages: tuple[Stage, ...]
    reason: str | None = None

    @property
    def state(self) -> MetaState:
        """Where the last stage ended."""
        return self.stages[-1].solution.state

    @property
    def best(self) -> Snapshot | None:
        """The best snapshot of the last stage."""
        return self.state.best


class _Watch:
    # A callback that ends a stage where validations stagnate, or where a callback ends the training.
    def __init__(self, attendance: Attendance, stage: int, patience: int):
        self.attendance, self.stage, self.patience = attendance, stage, patience
        self.wish: StopTraining | None = None

    def __call__(self, progress: Progress) -> StopTraining | None:
        state = self.marked(progress.state)
        self.wish = self.attendance.stop(dataclasses.replace(progress, state=state))
        return StopTraining("the validation stagnates") if self.stagnates(state) else self.wish

    def marked(self, state: MetaState) -> MetaState:
        """The state with the number of its horizon."""
        assert state.past is not None
        return dataclasses.replace(state, past=dataclasses.replace(state.past, stage=self.stage))

    def stagnates(self, state: MetaState) -> bool:
        """Whether the best snapshot is older than patience allows; of several restarts the latest."""
        if state.best is None:
            return False
        return int(state.super_epoch) - int(np.max(np.asarray(state.best.super_epoch))) >= self.patience


def train_curriculum(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    strategy: AbstractUpdateStrategy | None = None,
    *,
    curriculum: Curriculum,
    super_epochs: int = 100,
    weighting: AbstractWeighting | None = None,
    meta_optimizer: optax.GradientTransformation | None = None,
    num_objectives: int = 1,
    restarts: int | None = None,
    validation_family: AbstractObjectiveFamily | None = None,
    key: PRNGKeyArray,
    callbacks: Sequence[Callback] = (),
    state: MetaState | None = None,
) -> CurriculumSolution:
    """Trains on short super epochs first, and on longer ones as soon as those no longer help.

    At each horizon the optimizer is trained by `meta_train` and validated on the next one, on fixed draws;
    when the validation loss has had no new best for `patience` validations, training goes on from the best
    snapshot at the next horizon. The last horizon is validated on itself. Every horizon is compiled once.

    **Arguments:**

    - `curriculum`: the horizons, and when to go on.
    - `super_epochs`: how many in all, over all horizons; training ends earlier if the last horizon stagnates.
    - `state`: of an earlier solution, a `Progress`, or `load_checkpoint`, to go on where it was, with the
        same settings and `key`, bit for bit as if it had not ended. The solution has the stages from there.
    - `validation_family`: what validations draw from; by default `family`.
    - all others: as in `meta_train`. With `restarts`, all go on together, when the last one stagnates, each
        from its own best snapshot.

    **Returns:** a `CurriculumSolution`.

    **Raises:** `ValueError` as `meta_train`, also for a strategy that does not fit the shortest horizon.

    Reference: T. Chen et al. 2020 (arXiv:2010.09089), algorithm 1.
    """
    meta_optimizer = default_meta_optimizer() if meta_optimizer is None else meta_optimizer
    draws = jr.fold_in(key, _DRAWS)
    start = EveryWindow() if strategy is None else strategy
    begin = init_meta_state(optimizer, meta_optimizer, start, restarts=restarts, key=key)
    state = begin if state is None else fitting("train_curriculum", begin, state, super_epochs, key)
    first = 0 if state.past is None else state.past.stage
    stages, wish = [], None
    with attended(callbacks, Progress(int(state.super_epoch), super_epochs, {}, state)) as attendance:
        for i, horizon in list(enumerate(curriculum.horizons))[first:]:
            watch = _Watch(attendance, i, curriculum.patience * curriculum.every)
            # It may have ended with the last super epoch of its horizon.
            is_over = i == first and watch.stagnates(state)
            solution = meta_train(
                state.optimizer,
                family,
                strategy,
                weighting=weighting,
                meta_optimizer=meta_optimizer,
                num_steps=horizon,
                super_epochs=int(state.super_epoch) if is_over else super_epochs,
                num_objectives=num_objectives,
                restarts=restarts,
                validation=_validation(curriculum, i, validation_family or family, draws),
                key=key,
                callbacks=[watch],
                state=state,
            )
            solution = eqx.tree_at(lambda s: s.state, solution, watch.marked(solution.state))
            stages.append(Stage(horizon, solution))
            state, wish = _from_best(solution.state), watch.wish
            if wish is not None or int(state.super_epoch) >= super_epochs:
                break
        result, reason = ("completed", None) if wish is None else ("stopped", wish.reason)
        attendance.solution = CurriculumSolution(state.optimizer, result, tuple(stages), reason)
        return attendance.solution


def _validation(curriculum: Curriculum, stage: int, family: Any, key: PRNGKeyArray) -> Validation:
    return Validation(
        family,
        curriculum.judged_on(stage),
        curriculum.num_objectives,
        curriculum.every,
        curriculum.last,
        key=key,
    )


def _from_best(state: MetaState) -> MetaState:
    assert state.best is not None
    return dataclasses.replace(state, optimizer=state.best.optimizer, best=None, average=None, past=None)
