"""How a trained optimizer does on what it was not trained on, beside baselines that are tuned there."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ._baselines import LEARNING_RATES, Baseline, LineSearch, baselines_for
from ._checks import check_restarts, check_sizes
from ._compare import compare
from ._comparison import Comparison
from ._meta_train import select_restart
from ._tune import TuningMode
from ._variations import Variation
from ._variations import variations as usual_variations
from .objectives import AbstractObjectiveFamily, count_coordinates
from .optimizers import AbstractOptimizer

_LEARNED = "learned"
# With more coordinates, the baselines are those that win on networks: tuning takes minutes there.
_FEW_COORDINATES = 4096
_FOR_NETWORKS = ("momentum", "Nesterov", "Adam")


@dataclasses.dataclass(frozen=True)
class CardRow:
    """One variation of a `Card`. Losses are medians of final losses, infinite if half of the runs diverge.

    **Fields:**

    - `name`, `num_steps`, `num_coordinates`: what was run.
    - `failure`: why the optimizer could not be run, else `None`; without a run all that follows is `None`.
    - `learned`: its loss; with restarts, the median over them.
    - `restart_losses`: the loss of each restart, one without restarts.
    - `best`: the name of the best baseline tuned there, `None` if all are broken, as are what follows here.
    - `best_loss`, `settings`, `at_edge`: its loss, what tuning chose, and whether the learning rate is the
        first or the last of those tried.
    - `ratio`: `learned / best_loss`; below 1, the learned optimizer wins.
    - `better`, `better_low`, `better_high`: the share of objectives on which it ends lower than the best
        baseline, with the 95 % interval.
    - `restarts_better`: the share of restarts with a loss below the best baseline's.
    - `diverged`: the share of runs that end above where they began, or not at a number.
    """

    name: str
    num_steps: int
    num_coordinates: int
    failure: str | None = None
    learned: float | None = None
    restart_losses: tuple[float, ...] | None = None
    best: str | None = None
    best_loss: float | None = None
    settings: dict[str, Any] | None = None
    at_edge: bool | None = None
    ratio: float | None = None
    better: float | None = None
    better_low: float | None = None
    better_high: float | None = None
    restarts_better: float | None = None
    diverged: float | None = None


@dataclasses.dataclass(frozen=True)
class Card:
    """The result of `generalization_card`.

    **Fields:**

    - `rows`: one per variation that is done.
    - `names`: those of all variations; more than there are rows if the card is incomplete.
    """

    rows: tuple[CardRow, ...]
    names: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(self.names)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `complete`, `names`, and `rows` with the fields of `CardRow`; infinite is `None`."""
        rows = [{k: _finite(v) for k, v in dataclasses.asdict(row).items()} for row in self.rows]
        return {"complete": self.complete, "names": list(self.names), "rows": rows}

    def write(self, path: str | Path) -> None:
        """Writes `as_dict()` as JSON."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "Card":
        """What `write` wrote, or a file that has more beside it.

        **Raises:** `ValueError` if the file is another one.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(tuple(_row(row) for row in content["rows"]), tuple(content["names"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no card: {type(error).__name__}: {error}") from None


# (the card so far, the variation at work, the share of the work that is done) -> nothing.
CardCallback = Callable[[Card, str, float], None]


def generalization_card(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    *,
    num_steps: int,
    variations: Mapping[str, Variation] | None = None,
    baselines: Mapping[str, Baseline | LineSearch] | None = None,
    num_objectives: int = 32,
    num_tuning_objectives: int = 8,
    learning_rates: Sequence[float] = LEARNING_RATES,
    tuning: TuningMode = "auto",
    last: int = 1,
    restarts: int | None = None,
    callback: CardCallback = lambda card, name, share: None,
    key: PRNGKeyArray,
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
    - `num_objectives`, `num_tuning_objectives`, `learning_rates`, `tuning`, `last`: as in `compare`, for
        every variation.
    - `restarts`: if given, `optimizer` is a batch of that many.
    - `callback`: `(card, name, share)`, called as the work goes on with the rows that are done, the variation
        at work and the share of all work that is done. To keep what is done when you interrupt, keep `card`.
    - `key`: picks all draws, the same for all variations of equal shapes.

    **Returns:** a `Card`.

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
    check_restarts("generalization_card", optimizer, restarts)
    if not learning_rates:
        raise ValueError("`generalization_card(learning_rates=...)` needs at least one learning rate to try.")
    tried = usual_variations(family) if variations is None else dict(variations)
    plans = [
        _Plan(name, one, num_steps, baselines, num_objectives, num_tuning_objectives)
        for name, one in tried.items()
    ]
    done, total, rows = 0.0, sum(plan.cost for plan in plans), ()
    for plan in plans:

        def report(share: float, done: float = done, plan: "_Plan" = plan, rows: tuple = rows) -> None:
            callback(Card(rows, tuple(tried)), plan.name, (done + share * plan.cost) / total)

        report(0.0)
        row = plan.run(
            optimizer,
            learning_rates=learning_rates,
            tuning=tuning,
            last=last,
            restarts=restarts,
            callback=lambda name, index, count, report=report: report(index / count),
            key=key,
        )
        rows, done = (*rows, row), done + plan.cost
    card = Card(rows, tuple(tried))
    if plans:
        callback(card, plans[-1].name, 1.0)
    return card


class _Plan:
    """One variation, ready to be run."""

    def __init__(
        self,
        name: str,
        variation: Variation,
        num_steps: int,
        baselines: Mapping[str, Baseline | LineSearch] | None,
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
        *,
        learning_rates: Sequence[float],
        last: int,
        restarts: int | None,
        **kwargs: Any,
    ) -> CardRow:
        try:
            _try_step(optimizer if restarts is None else select_restart(optimizer, 0), self)
            comparison = compare(
                {_LEARNED: optimizer, **self.baselines},
                self.variation.family,
                num_steps=self.num_steps,
                num_objectives=self.num_objectives,
                num_tuning_objectives=self.num_tuning_objectives,
                learning_rates=_with_scaled(learning_rates, self.variation.rates),
                last=min(last, self.num_steps),
                restarts=restarts,
                **kwargs,
            )
        except Exception as error:
            # Whatever it is, out of memory too: the other rows took long and are not to be lost for it.
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            return CardRow(self.name, self.num_steps, self.num_coordinates, failure=reason)
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
        return optimizer.update(params, state, params)

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
        "ratio": _ratio(found["learned"], bar),
        "better": better,
        "better_low": low,
        "better_high": high,
        "restarts_better": comparison.share_beating(_LEARNED, best),
    }


def _ratio(loss: float, bar: float) -> float:
    if loss == bar:
        return 1.0
    return loss / bar if bar else math.inf


def _finite(x: Any) -> Any:
    if isinstance(x, tuple):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _row(content: Mapping[str, Any]) -> CardRow:
    # Of a run, the losses are numbers, and so is the ratio if there is a baseline: null is infinite.
    def loss(x: float | None) -> float:
        return math.inf if x is None else x

    found = dict(content)
    if found["failure"] is None:
        found["learned"] = loss(found["learned"])
        found["restart_losses"] = tuple(map(loss, found["restart_losses"]))
        if found["best"] is not None:
            found["ratio"] = loss(found["ratio"])
    return CardRow(**found)
