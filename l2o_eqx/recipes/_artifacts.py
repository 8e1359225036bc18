"""What is written of a figure: the picture, tables of numbers, statistics."""

import dataclasses
import functools
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._comparison import _quartiles
from .._environment import environment
from ._experiment import Experiment, Results
from ._figure import Figure, Panel, PanelResults
from ._files import replacing
from ._panels import draw_curves_panel, draw_histogram_panel, draw_map_panel, figure_of_panels
from ._setup import Scale
from ._statistics import Estimate, histogram_counts, median_interval, share_interval
from ._tables import write_tables
from ._thesis import CURVES, HISTOGRAMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def cut(results: Results, *, restarts: int | None = None, steps: int | None = None) -> Results:
    """The first restarts, and the first steps of the test, of some results."""
    return dataclasses.replace(
        results,
        losses=results.losses[:restarts, :steps],
        measured={name: values[:restarts] for name, values in results.measured.items()},
        metrics={name: values[:restarts] for name, values in results.metrics.items()},
    )


def write_figure(
    folder: Path,
    name: str,
    figure: Figure,
    results: PanelResults,
    *,
    asked: Mapping[str, int],
    scale: Scale,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Writes the picture and the tables of a figure.

    **Arguments:**

    - `folder`, `name`: the files are `<folder>/<name>.png` and so on.
    - `figure`, `results`: what there is to show.
    - `asked`: how many restarts were asked for, by panel.
    - `scale`: of the experiments.
    - `extra`: the numbers that the figure's `extra` gave.

    **Returns:** the files: `picture`, and those of `write_tables`, if there is anything to be in them.
    """
    files: dict[str, Path] = {}
    shown = {
        panel.name: {label: cut(r, steps=panel.steps) for label, r in results[panel.name].items()}
        for panel in figure.panels
    }
    drawn = [panel for panel in figure.panels if shown[panel.name] or panel.graph is not None]
    if drawn:
        files["picture"] = folder / f"{name}.png"
        with replacing(files["picture"]) as path:
            figure_of_panels(
                *(
                    functools.partial(_draw, panel=p, results=shown[p.name], asked=asked[p.name])
                    for p in drawn
                ),
                scale=scale if any(shown.values()) else None,
                path=path,
            )
    files |= write_tables(folder, name, figure, shown, extra)
    return files


def _draw(axes: "Axes", *, panel: Panel, results: Mapping[str, Results], asked: int) -> str:
    if panel.graph is not None:
        return draw_map_panel(axes, *panel.graph, title=panel.title)
    title = f"{panel.name}: {panel.title}, {_count(results, asked)}"
    if panel.kind == "histogram":
        reference = HISTOGRAMS.get(panel.name, {})
        return draw_histogram_panel(axes, {k: r.final for k, r in results.items()}, reference, title=title)
    reference = {
        label: curve
        for label, curve in CURVES.get(panel.name, {}).items()
        if label in results and results[label].losses.shape[1] == curve.steps
    }
    return draw_curves_panel(axes, {k: r.losses for k, r in results.items()}, reference, title=title)


def _count(results: Mapping[str, Results], asked: int) -> str:
    numbers = sorted({len(r.losses) for r in results.values()})
    there = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    of = "" if numbers == [asked] else f" of {asked}"
    return f"{there}{of} restart{'s' * (asked != 1)}"


def describe_series(
    panel: Panel, label: str, experiment: Experiment, results: Results, asked: int
) -> dict[str, Any]:
    """Statistics over the restarts of one series, and what the thesis has in its place.

    **Arguments:**

    - `panel`, `label`, `experiment`: which series.
    - `results`: of its restarts.
    - `asked`: how many restarts there should be.

    **Returns:** a dict as JSON has them.
    """
    shown = cut(results, steps=panel.steps)
    facts = {
        "panel": panel.name,
        "series": label,
        "digest": experiment.digest,
        "restarts": len(shown.losses),
        "restarts_asked": asked,
        "meta_updates": experiment.num_updates,
        "test_objectives": experiment.num_test_objectives,
        "training_examples": getattr(experiment.family, "num_examples", None),
        "steps": shown.losses.shape[1],
        "final_loss": _spread(shown.final),
        "mean_of_last_20": _spread(shown.last()),
        "measured": {name: _spread(values.astype(float)) for name, values in shown.measured.items()},
        "seconds": results.seconds,
        "thesis": None,
    }
    if panel.kind == "histogram":
        histogram = histogram_counts(shown.final)
        chance = shown.chance().shares()
        facts["histogram"] = {
            "counts": list(histogram.counts),
            "not_finite": histogram.not_finite,
            "shares": _shares(histogram.counts),
            "chance": {name: share.to_json() for name, share in chance.items()},
        }
        theirs = HISTOGRAMS.get(panel.name, {}).get(label)
        if theirs is not None:
            facts["thesis"] = {"counts": list(theirs), "shares": _shares(theirs)}
    elif label in CURVES.get(panel.name, {}):
        curve = CURVES[panel.name][label]
        facts["thesis"] = {
            "steps": curve.steps,
            "first_loss": curve.start,
            "final_loss": curve.final,
            "mean_of_last_20": curve.mean_last_20,
        }
    return facts


def _spread(values: np.ndarray) -> dict[str, Any]:
    # None is infinite; a single restart has no interval.
    values = np.where(np.isfinite(values), values, np.inf)
    median = median_interval(values)
    q25, _, q75 = map(float, _quartiles(values))
    ends = None if math.isnan(median.low) else [_finite(median.low), _finite(median.high)]
    return {"median": _finite(median.value), "interval": ends, "q25": _finite(q25), "q75": _finite(q75)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shares(counts: tuple[int, ...]) -> dict[str, Any]:
    # Of the thesis's bins, the last but one has ln 10 in it.
    parts: dict[str, int] = {
        "below 2": sum(counts[:-2]),
        "2 to 2.5": counts[-2],
        "2.5 or above": counts[-1],
    }
    estimates: dict[str, Estimate] = {
        name: share_interval(count, sum(counts), what=f"share {name}") for name, count in parts.items()
    }
    return {name: estimate.to_json() for name, estimate in estimates.items()}


def describe_environment() -> dict[str, Any]:
    """The versions and the machine that numbers and times may depend on."""
    found = environment(("scipy",))
    return {
        "versions": {"python": found["python"], **found["versions"]},
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": found["device_kind"],
    }
