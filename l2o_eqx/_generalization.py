"""Runs an optimizer on what it was not trained on, beside baselines that are tuned there."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ._baselines import LEARNING_RATES, Baseline, LineSearch, baselines_for
from ._card import Card, CardRow, ratio_of
from ._checks import check_sizes
from ._compare import ComparisonProgress, compare
from ._comparison import Comparison
from ._devices import Restarts
from ._errors import ArgumentError
from ._loop import Attendance, attended
from ._meta_train import select_restart
from ._tune import TuningMode
from ._variations import Variation
from ._variations import variations as usual_variations
from .callbacks import StopTraining
from .callbacks._base import Callback
from .objectives import AbstractObjectiveFamily, count_coordinates
from .optimizers import AbstractOptimizer, Seen, take_step

_LEARNED = "learned"
# With more coordinates, the baselines are those that win on networks: tuning takes minutes there.
_FEW_COORDINATES = 4096
_FOR_NETWORKS = ("momentum", "Nesterov", "Adam")


class CardProgress(eqx.Module):
    """What a callback of `generalization_card` sees as the work goes on.

    **Fields:**

    - `card`: with the rows that are done.
    - `name`: of the variation at work.
    - `share`: of all work that is done.
    """

    card: Card
    name: str
    share: float


def generalization_card(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    *,
    num_steps: int,
    variations: Mapping[str, Variation] | None = None,
    baselines: Mapping[str, Baseline | LineSearch | AbstractOptimizer] | None = None,
    num_objectives: int = 32,
    num_tuning_objectives: int = 8,
    learning_rates: Sequence[float] = LEARNING_RATES,
    tuning: TuningMode = "auto",
    last: int = 1,
    best_so_far: bool = False,
    restarts: int | None = None,
    key: PRNGKeyArray,
    callbacks: Sequence[Callback] = (),
) -> Card:
    """Runs a trained optimizer on what it was not trained on, beside baselines that are tuned there.

    Every row is what `compare` gives for its variation with the same settings. What the optimizer cannot be
    run on is a row that says why.

    **Arguments:**

    - `optimizer`: the trained one.
    - `family`: the one that it was trained on.
    - `num_steps`: the horizon that it was trained for.
    - `variations`: by name; by default `variations(family)`.
    - `baselines`: as `compare` takes them. By default, for each variation, those of `baselines_for` without
        line search; momentum, Nesterov and Adam with more than 4,096 coordinates.
    - `num_objectives`, `num_tuning_objectives`, `learning_rates`, `tuning`, `last`, `best_so_far`: as in
        `compare`, for every variation.
    - `restarts`: if given, `optimizer` is a batch of that many.
    - `key`: picks all draws, the same for all variations of equal shapes.
    - `callbacks`: called with a `CardProgress` as the work goes on. One that returns `StopTraining` ends it.

    **Returns:** a `Card`; of the rows that are done, if a callback ended the work.

    **Raises:** `ValueError` for sizes below 1, no learning rates, or an optimizer that is no batch of
    `restarts`.
    """
    check_sizes(
        "generalization_card",
        num_steps=num_steps,
        num_objectives=num_objectives,
        num_tuning_objectives=num_tuning_objectives,
        last=last,
    )
    Restarts.of("generalization_card", optimizer, restarts)
    if not learning_rates:
        raise ArgumentError(
            "`generalization_card(learning_rates=...)` needs at least one learning rate to try.",
            argument="learning_rates",
        )
    tried = usual_variations(family) if variations is None else dict(variations)
    one = optimizer if restarts is None else select_restart(optimizer, 0)
    if baselines is None and one.is_black_box():
        baselines = baselines_for(family, one)
    plans = [
        _Plan(name, one, num_steps, baselines, num_objectives, num_tuning_objectives)
        for name, one in tried.items()
    ]
    settings = {"learning_rates": learning_rates, "tuning": tuning, "last": last, "restarts": restarts}
    settings["best_so_far"] = best_so_far
    rows: list[CardRow] = []
    done, total = 0.0, sum(plan.cost for plan in plans)
    names = tuple(tried)
    with attended(callbacks, CardProgress(Card((), names), next(iter(names), ""), 0.0)) as attendance:
        for plan in plans:
            report = functools.partial(_report, attendance, Card(tuple(rows), names), plan, done, total)
            row = None
            if report(ComparisonProgress(plan.name, 0.0, 1)) is None:
                row = plan.run(optimizer, one, callback=report, key=key, **settings)
            if row is None:
                break
            rows.append(row)
            done += plan.cost
        card = Card(tuple(rows), names)
        if plans and card.complete:
            attendance.stop(CardProgress(card, plans[-1].name, 1.0))
        attendance.solution = card
        return card


def _report(
    attendance: Attendance, card: Card, plan: "_Plan", done: float, total: float, progress: ComparisonProgress
) -> StopTraining | None:
    """A callback for `compare` that counts on from what is done."""
    share = (done + progress.done / progress.total * plan.cost) / total
    return attendance.stop(CardProgress(card, plan.name, share))


class _Plan:
    """One variation, ready to be run."""

    def __init__(
        self,
        name: str,
        variation: Variation,
        num_steps: int,
        baselines: Mapping[str, Baseline | LineSearch | AbstractOptimizer] | None,
        num_objectives: int,
        num_tuning_objectives: int,
    ):
        self.name, self.variation = name, variation
        self.num_steps = max(1, round(num_steps * variation.horizon))
        self.num_coordinates = count_coordinates(variation.family)
        self.baselines = _usual_baselines(variation.family) if baselines is None else baselines
        self.num_objectives = math.ceil(num_objectives * variation.objectives)
        self.num_tuning_objectives = math.ceil(num_tuning_objectives * variation.objectives)

    @property
    def cost(self) -> float:
        """About how many seconds it takes on two cores, for the progress alone."""
        runs = 60 * self.num_tuning_objectives * len(self.baselines)
        # Compiling; nanoseconds per step and coordinate of a baseline, and of a learned optimizer.
        steps = self.num_steps * self.num_coordinates
        return 2.0 * (1 + len(self.baselines)) + 1e-9 * steps * (5 * runs + 200 * self.num_objectives)

    def run(
        self,
        optimizer: AbstractOptimizer,
        one: AbstractOptimizer,
        *,
        learning_rates: Sequence[float],
        last: int,
        callback: Callable[[ComparisonProgress], Any],
        **kwargs: Any,
    ) -> CardRow | None:
        """The row of an optimizer, of which `one` is a single restart; `None` if a callback ends the work."""
        raised: list[Exception] = []

        def report(progress: ComparisonProgress) -> Any:
            try:
                return callback(progress)
            except Exception as error:
                raised.append(error)
                raise

        try:
            _try_step(one, self)
            comparison = compare(
                {_LEARNED: optimizer, **self.baselines},
                self.variation.family,
                num_steps=self.num_steps,
                num_objectives=self.num_objectives,
                num_tuning_objectives=self.num_tuning_objectives,
                learning_rates=_with_scaled(learning_rates, self.variation.rates),
                last=min(last, self.num_steps),
                callbacks=[report],
                **kwargs,
            )
        except Exception as error:
            if raised:
                raise
            # Whatever it is, out of memory too: the other rows took long and are not to be lost for it.
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            return CardRow(self.name, self.num_steps, self.num_coordinates, failure=reason)
        if comparison.result == "stopped":
            return None
        return CardRow(self.name, self.num_steps, self.num_coordinates, **_numbers(comparison))


def _usual_baselines(family: AbstractObjectiveFamily) -> dict[str, Baseline]:
    tuned = {name: one for name, one in baselines_for(family).items() if isinstance(one, Baseline)}
    few = count_coordinates(family) <= _FEW_COORDINATES
    return tuned if few else {name: tuned[name] for name in _FOR_NETWORKS}


def _with_scaled(rates: Sequence[float], factor: float) -> list[float]:
    return sorted({*map(float, rates), *(float(f"{rate * factor:.6g}") for rate in rates)})


def _try_step(optimizer: AbstractOptimizer, plan: _Plan) -> None:
    """Raises what the optimizer raises on params of such shapes; nothing is computed."""

    def step(key):
        params = plan.variation.family.sample(key).init(key)
        state = optimizer.init_for(params, plan.num_steps)
        return take_step(optimizer, Seen(params, jnp.zeros(()), key), state, params)

    eqx.filter_eval_shape(step, jr.key(0))


def _numbers(comparison: Comparison) -> dict[str, Any]:
    losses = np.asarray(comparison.trajectories[_LEARNED].losses, np.float64)
    final = comparison.final_losses(_LEARNED)
    medians = comparison.restart_medians(_LEARNED)
    # A loss that is no number where it begins is no bar.
    ended_above = ~np.isfinite(final) | (final > np.atleast_2d(losses[..., 0]))
    found = {
        "learned": float(np.median(medians)),
        "restart_losses": tuple(medians.tolist()),
        "diverged": float(np.mean(ended_above)),
    }
    best = comparison.best_baseline()
    if best is None:
        return found
    bar = float(comparison.restart_medians(best)[0])
    rate = comparison.learning_rates.get(best)
    better, low, high = comparison.share_of_objectives(_LEARNED, best)
    return found | {
        "best": best,
        "best_loss": bar,
        "settings": comparison.settings.get(best),
        "at_edge": rate in (comparison.tried[0], comparison.tried[-1]),
        "ratio": ratio_of(found["learned"], bar),
        "better": better,
        "better_low": low,
        "better_high": high,
        "restarts_better": comparison.share_beating(_LEARNED, best),
    }
