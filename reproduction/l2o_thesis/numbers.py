"""What is written of a figure in numbers: tables, and statistics over the restarts."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .experiment import Experiment, Results
from .facts import CHANCE_LOSS, CURVES, HISTOGRAMS
from .figures import Figure, Panel
from .files import write_csv
from .judge import PanelResults
from .statistics import histogram_counts, median_interval, quartiles, share_interval, share_of

Rows = Iterator[list[Any]]


def write_tables(
    folder: Path, figure: Figure, shown: PanelResults, measured: Mapping[str, Any]
) -> dict[str, Path]:
    """Writes those tables that there is anything to be in, as `<folder>/<name>-<kind>.csv`.

    **Arguments:**

    - `folder`: where to.
    - `figure`: whose name the files begin with.
    - `shown`: the results by panel, then by label, as long as they are drawn.
    - `measured`: the numbers of the figure's measurement.

    **Returns:** the files by kind: `finals`, a row per restart; `curves`, the quartiles of the losses at
    the steps that are kept; `measured`.
    """
    tables: dict[str, Rows] = {
        "finals": _finals(shown),
        "curves": _curves(shown),
        "measured": _measured(measured),
    }
    files = {}
    for kind, table in tables.items():
        header, *rows = table
        if rows:
            files[kind] = folder / f"{figure.name}-{kind}.csv"
            write_csv(files[kind], [header, *rows])
    return files


def _finals(panels: PanelResults) -> Rows:
    names = sorted({name for series in panels.values() for r in series.values() for name in r.measured})
    yield ["panel", "series", "restart", "final_loss", "mean_of_last_20", *names]
    for panel, series in panels.items():
        for label, r in series.items():
            columns = [r.final(), r.last(), *(r.measured.get(name) for name in names)]
            for i in range(len(r.losses)):
                yield [panel, label, i, *("" if x is None else _short(x[i]) for x in columns)]


def _curves(panels: PanelResults) -> Rows:
    yield ["panel", "series", "step", "q25", "median", "q75"]
    for panel, series in panels.items():
        for label, r in series.items():
            for step, q in zip(r.steps.tolist(), quartiles(r.losses).T, strict=True):
                yield [panel, label, step, *map(_short, q)]


def _short(value: float) -> float:
    # As many digits as results are kept with.
    return float(f"{value:.5g}")


def _measured(numbers: Mapping[str, Any]) -> Rows:
    yield ["name", "number", "value"]
    yield from _flat(numbers, ())


def _flat(value: Any, path: tuple[str, ...]) -> Rows:
    # A list has one number per repetition.
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, (*path, str(name)))
    elif isinstance(value, list):
        yield from (["/".join(path), i, inner] for i, inner in enumerate(value))
    else:
        yield ["/".join(path), "", "" if value is None else value]


def describe_series(
    panel: Panel, label: str, experiment: Experiment, results: Results, asked: Mapping[str, int]
) -> dict[str, Any]:
    """Statistics over the restarts of one series, and what the thesis has in its place, as JSON has them.

    **Arguments:**

    - `panel`, `label`, `experiment`: which series.
    - `results`: of its restarts, as long as they are drawn.
    - `asked`: how many restarts there should be, by panel.
    """
    facts = {
        "panel": panel.name,
        "series": label,
        "digest": experiment.digest,
        "restarts": len(results.losses),
        "restarts_asked": asked[panel.name],
        "meta_updates": experiment.num_updates,
        "test_objectives": experiment.spec["num_test_objectives"],
        "training_examples": getattr(experiment.family, "num_examples", None),
        "steps": results.length,
        "final_loss": _spread(results.final()),
        "mean_of_last_20": _spread(results.last()),
        "measured": {name: _spread(values) for name, values in results.measured.items()},
        "seconds": results.seconds,
        "thesis": None,
    }
    if panel.histogram:
        facts["histogram"] = _histogram(results)
        theirs = HISTOGRAMS.get(panel.name, {}).get(label)
        if theirs is not None:
            facts["thesis"] = {"counts": list(theirs), "shares": _shares(theirs)}
    elif label in CURVES.get(panel.name, {}):
        curve = CURVES[panel.name][label]
        facts["thesis"] = {
            "final_loss": list(curve.points.values())[-1],
            "mean_of_last_20": curve.mean_of_last_20,
        }
    return facts


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
    median = median_interval(values)
    q25, _, q75 = map(float, quartiles(values))
    ends = None if math.isnan(median.low) else [_finite(median.low), _finite(median.high)]
    return {"median": _finite(median.value), "interval": ends, "q25": _finite(q25), "q75": _finite(q75)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
