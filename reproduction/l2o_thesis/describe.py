"""Statistics over the restarts of a series, as JSON has them."""

import math
from typing import Any

import numpy as np

from .experiment import Experiment, Results
from .facts import CHANCE_LOSS, CURVES, HISTOGRAMS
from .figures import Panel
from .statistics import histogram_counts, median_interval, quartiles, share_interval, share_of


def describe_series(
    panel: Panel, label: str, experiment: Experiment, results: Results, asked: int
) -> dict[str, Any]:
    """Statistics over the restarts of one series, and what the thesis has in its place.

    **Arguments:**

    - `panel`, `label`, `experiment`: which series.
    - `results`: of its restarts, as long as they are drawn.
    - `asked`: how many restarts there should be.
    """
    thesis, counts = None, HISTOGRAMS.get(panel.name, {}).get(label)
    curve = CURVES.get(panel.name, {}).get(label)
    if panel.histogram and counts is not None:
        thesis = {"counts": list(counts), "shares": _shares(counts)}
    elif curve is not None:
        thesis = {"final_loss": curve.final, "mean_of_last_20": curve.mean_of_last_20}
    return {
        "panel": panel.name,
        "series": label,
        "digest": experiment.digest,
        "restarts": len(results.losses),
        "restarts_asked": asked,
        "meta_updates": experiment.num_updates,
        "test_objectives": experiment.spec["num_test_objectives"],
        "training_examples": getattr(experiment.family, "num_examples", None),
        "steps": results.length,
        "final_loss": _spread(results.final()),
        "mean_of_last_20": _spread(results.last()),
        "measured": {name: _spread(values) for name, values in results.measured.items()},
        "seconds": results.seconds,
        "histogram": _histogram(results) if panel.histogram else None,
        "thesis": thesis,
    }


def _histogram(results: Results) -> dict[str, Any]:
    final, near = results.final(), results.near_chance()
    below = ~near & (results.last() < CHANCE_LOSS)
    groups = {"below": below, "near": near, "above": ~near & ~below}
    counts = histogram_counts(final)
    return {
        "counts": list(counts),
        "not_finite": int(np.sum(~np.isfinite(final))),
        "shares": _shares(counts),
        "chance": {name: share_of(flags, f"share {name} chance").to_json() for name, flags in groups.items()},
    }


def _shares(counts: tuple[int, ...]) -> dict[str, Any]:
    # Of the thesis's bins, the last but one has ln 10 in it.
    parts = {"below 2": sum(counts[:-2]), "2 to 2.5": counts[-2], "2.5 or above": counts[-1]}
    return {name: share_interval(n, sum(counts), f"share {name}").to_json() for name, n in parts.items()}


def _spread(values: np.ndarray) -> dict[str, Any]:
    # None is infinite; a single restart has no interval.
    found = median_interval(values)
    q25, _, q75 = quartiles(values).tolist()
    value, low, high, q25, q75 = (
        x if math.isfinite(x) else None for x in (found.value, found.low, found.high, q25, q75)
    )
    interval = None if math.isnan(found.low) else [low, high]
    return {"median": value, "interval": interval, "q25": q25, "q75": q75}
