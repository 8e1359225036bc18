"""What a comparison of optimizers found, in rows, curves and files."""

import csv
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._evaluate import Trajectories

# The 97.5 % quantile of the normal distribution.
_Z = 1.959963984540054


class Share(NamedTuple):
    """A share with its 95 % interval; all NaN where there is none to speak of."""

    share: float
    low: float
    high: float


class Comparison(eqx.Module):
    """The result of `compare`.

    A final loss is here the mean of the `last` losses of a run.

    **Fields:**

    - `trajectories`: by name, on the same draws for all.
    - `learning_rates`: by name, the tuned ones; none of what diverges with all of them.
    - `tuning_losses`: by name, the median final loss over the tuning draws for every learning rate in
        `tried`, with whatever else suits it best; infinite where runs diverge, NaN for a rate not tried.
    - `tried`: the learning rates.
    - `settings`: by name, all that tuning chose: `learning_rate`, momentum or betas, `schedule`.
    - `learned`: the names of those with meta-parameters.
    - `last`: how many losses at the end of a run are averaged.
    - `result`: `"completed"`, or `"stopped"` if a callback ended it before all were run.
    - `best_so_far`: whether every loss in `trajectories` is the lowest of the run until then.
    """

    trajectories: dict[str, Trajectories]
    learning_rates: dict[str, float]
    tuning_losses: dict[str, Float[np.ndarray, " rates"]]
    tried: tuple[float, ...]
    settings: dict[str, dict[str, Any]] = eqx.field(default_factory=dict)
    learned: tuple[str, ...] = ()
    last: int = 1
    result: Literal["completed", "stopped"] = "completed"
    best_so_far: bool = False

    def final_losses(self, name: str) -> Float[np.ndarray, "restarts objectives"]:
        """The means of the last losses, infinite where they are not finite; one restart if there are none."""
        losses = np.asarray(self.trajectories[name].losses, np.float64)[..., -self.last :]
        return np.atleast_2d(_as_infinite(np.mean(losses, axis=-1)))

    def summary(self, by: str = "learned") -> list[dict[str, Any]]:
        """One row per optimizer, best first, to print or to store.

        Each has

        - `name`; `median`, `mean`, `q25` and `q75` of the final losses over all objectives (and restarts);
        - `diverged`, the share of them that is not finite (counted as infinite), and `broken`, whether that
            is half or more, so that there is no median;
        - `settings` and `learning_rate`, `None` if it was not tuned, or diverges with all, and `at_edge`,
            true if the best learning rate is the first or the last of those tried, so that a wider range
            might be better;
        - `evaluations_per_step` of f, and `median_per_evaluation`, the median loss once there have been as
            many evaluations as others have steps;
        - `beaten`, `beaten_low` and `beaten_high`: the share of objectives on which the optimizer `by` ends
            lower, and its 95 % interval. `None` for `by` itself, without it, and for what is broken.
        """
        return sorted((self._row(name, by) for name in self.trajectories), key=lambda row: row["median"])

    def _row(self, name: str, by: str) -> dict[str, Any]:
        final = self.final_losses(name)
        quartiles = _quartiles(final.ravel()).tolist()
        rate = self.learning_rates.get(name)
        beaten = None
        if by in self.trajectories and name != by and not self.is_broken(name):
            beaten = self.share_of_objectives(by, name)
        return {
            "name": name,
            **dict(zip(("q25", "median", "q75"), quartiles, strict=True)),
            "mean": float(np.mean(final)),
            "diverged": float(np.mean(np.isinf(final))),
            "broken": self.is_broken(name),
            "learning_rate": rate,
            "settings": self.settings.get(name),
            "at_edge": rate in (self.tried[0], self.tried[-1]),
            "evaluations_per_step": self.evaluations_per_step(name),
            "median_per_evaluation": float(_per_evaluation(self.trajectories[name])[1, -1]),
            "beaten": None if beaten is None else beaten.share,
            "beaten_low": None if beaten is None else beaten.low,
            "beaten_high": None if beaten is None else beaten.high,
        }

    def restart_medians(self, name: str) -> Float[np.ndarray, " restarts"]:
        """The median final loss over objectives of every restart of the optimizer `name`."""
        return _quartiles(self.final_losses(name).T)[1]

    def is_broken(self, name: str) -> bool:
        """Whether so many runs diverge that the median final loss is not finite."""
        return bool(np.isinf(_quartiles(self.final_losses(name).ravel())[1]))

    def share_beating(self, name: str, baseline: str) -> float:
        """The share of restarts of `name` whose median final loss is below that of `baseline`.

        Equal ones count half. NaN if that is broken: nothing is said by ending below what diverges.
        """
        if self.is_broken(baseline):
            return float("nan")
        bar = self.restart_medians(baseline)[0]
        medians = self.restart_medians(name)
        return float(np.mean((medians < bar) + 0.5 * (medians == bar)))

    def share_of_objectives(self, name: str, baseline: str) -> Share:
        """The share of objectives on which `name` ends below `baseline`, in the mean over its restarts.

        Where both end at the same loss, that counts half. The interval is Wilson's for as many objectives as
        there are: restarts on the same objectives are not independent. NaN if the baseline is broken.
        """
        if self.is_broken(baseline):
            return Share(*[float("nan")] * 3)
        own, other = self.final_losses(name), self.final_losses(baseline)[:1]
        wins = np.mean((own < other) + 0.5 * (own == other), axis=0)
        return _wilson(float(np.mean(wins)), len(wins))

    def evaluations_per_step(self, name: str) -> float:
        """How many evaluations of f a step takes in the mean; one without line search."""
        spent = self.trajectories[name].evaluations
        return 1.0 if spent is None else float(np.mean(np.asarray(spent)[..., -1])) / spent.shape[-1]

    def best_baseline(self) -> str | None:
        """The name with the lowest median final loss among those that are not learned nor broken.

        What evaluates f more than once a step is left out. `None` if nothing remains.
        """
        fair = [
            name
            for name in self.trajectories
            if name not in self.learned and not self.is_broken(name) and self.evaluations_per_step(name) <= 1
        ]
        return min(fair, key=lambda name: self.restart_medians(name)[0], default=None)

    def steps_to_pass(self, name: str, baseline: str) -> int | None:
        """After how many steps the median of `name` is at the final one of `baseline`, or below.

        Medians are over objectives and restarts; as for final losses, means of `last` steps are compared.

        **Returns:** the number of steps, or `None` if that never happens or the baseline is broken.
        """
        if self.is_broken(baseline):
            return None
        losses = np.asarray(self.trajectories[name].losses, np.float64)
        means = np.lib.stride_tricks.sliding_window_view(losses, self.last, axis=-1).mean(axis=-1)
        median = _quartiles(_as_infinite(means).reshape(-1, means.shape[-1]))[1]
        bar = _quartiles(self.final_losses(baseline).ravel())[1]
        passed = np.flatnonzero(median <= bar)
        return int(passed[0]) + self.last - 1 if passed.size else None

    def curves(self) -> dict[str, Float[np.ndarray, "quartile steps"]]:
        """By name, the quartiles (q25, median, q75) of the loss at every step."""
        return {
            name: _quartiles(_as_infinite(t.losses).reshape(-1, t.losses.shape[-1]))
            for name, t in self.trajectories.items()
        }

    def curves_by_evaluations(self) -> dict[str, Float[np.ndarray, "quartile evaluations"]]:
        """As `curves`, with the loss that is known after 1, 2, … evaluations of f instead of steps.

        The two differ for optimizers with line search, which take fewer steps for as many evaluations.
        """
        return {name: _per_evaluation(t) for name, t in self.trajectories.items()}

    def write_curves(self, path: str | Path, *, by_evaluations: bool = False) -> None:
        """Writes `curves`, or `curves_by_evaluations`, as CSV: `optimizer,step,q25,median,q75`.

        By evaluations, step 0 is the first evaluation.
        """
        curves = self.curves_by_evaluations() if by_evaluations else self.curves()
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["optimizer", "step", "q25", "median", "q75"])
            for name, quartiles in curves.items():
                writer.writerows([name, t, *values] for t, values in enumerate(quartiles.T.tolist()))

    def write_final_losses(self, path: str | Path) -> None:
        """Writes every final loss as CSV: `optimizer,restart,objective,final_loss`.

        It is that of the last step alone, as in `Trajectories.final_losses`.
        """
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["optimizer", "restart", "objective", "final_loss"])
            for name, trajectories in self.trajectories.items():
                final = np.atleast_2d(np.asarray(trajectories.final_losses))
                for (restart, objective), loss in np.ndenumerate(final):
                    writer.writerow([name, restart, objective, float(loss)])


def _per_evaluation(trajectories: Trajectories) -> Float[np.ndarray, "quartile evaluations"]:
    losses = _as_infinite(trajectories.losses)
    num_steps = losses.shape[-1]
    losses = losses.reshape(-1, num_steps)
    if trajectories.evaluations is not None:
        # The last step whose loss is known after as many evaluations; the first takes one.
        spent = np.asarray(trajectories.evaluations).reshape(-1, num_steps)
        budget = np.arange(1, num_steps + 1)
        steps = np.stack([np.searchsorted(row, budget, side="right") - 1 for row in spent])
        losses = np.take_along_axis(losses, steps, axis=1)
    return _quartiles(losses)


def _wilson(share: float, count: int) -> Share:
    # E. B. Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    shrunk = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / shrunk
    half = _Z / shrunk * float(np.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2))
    return Share(share, max(0.0, middle - half), min(1.0, middle + half))


def _as_infinite(losses):
    losses = np.asarray(losses)
    return np.where(np.isfinite(losses), losses, np.inf)


def _quartiles(values):
    # Interpolating between infinite entries would give NaN, so they are very large numbers meanwhile.
    finite = np.where(np.isinf(values), 1e300, values.astype(np.float64))
    quartiles = np.quantile(finite, (0.25, 0.5, 0.75), axis=0)
    return np.where(quartiles > 1e200, np.inf, quartiles)
