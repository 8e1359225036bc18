"""Figures of the thesis: their experiments run, drawn, kept as numbers, and their claims judged."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import load_mnist
from ._artifacts import cut, describe_environment, describe_series, write_figure
from ._experiment import Experiment, Results, no_results
from ._figure import Figure, Panel, PanelResults
from ._files import write_json
from ._kept import Outlook, load_kept, outlook
from ._measurements import measurements
from ._runner import Plan, Progress, num_processes, run_all
from ._setup import Scale, Setup, Source
from ._verdicts import Verdict

MakeFigure = Callable[[Setup], Figure]

FORMAT = 1
"""Version of the layout of the JSON files."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Figures, how they are to be run, and where everything about them is kept.

    **Fields:**

    - `figures`: functions by name, such as entries of `FIGURES`. Other processes import them, so that they
        must be functions at the top of a module.
    - `folder`: for pictures and numbers; `cells` in it has the results of every finished job.
    - `scale`, `source`: of `Setup`.
    - `seed`: same seed, same numbers.
    - `restarts`: of every experiment, in place of each panel's own number.
    - `data`, `data_dir`: of `l2o_eqx.data.load_mnist`.

    **Raises:** `ValueError` without figures or restarts.
    """

    figures: Mapping[str, MakeFigure]
    folder: str | Path
    scale: Scale = "full"
    source: Source = "figures"
    seed: int = 0
    restarts: int | None = None
    data: str = "auto"
    data_dir: str | Path | None = None

    def __post_init__(self):
        if not self.figures:
            raise ValueError("`Request(figures=...)` needs at least one figure. Got none.")
        if self.restarts is not None and self.restarts < 1:
            raise ValueError(f"`Request(restarts=...)` must be at least 1. Got restarts={self.restarts}.")

    @property
    def plan(self) -> Plan:
        """What to run, for `run_all`."""
        make_experiments = functools.partial(experiments_of, figures=dict(self.figures))
        data_dir = None if self.data_dir is None else str(self.data_dir)
        return Plan(
            make_experiments,
            Path(self.folder) / "cells",
            self.data,
            data_dir,
            self.scale,
            self.source,
            self.seed,
        )

    def make_figures(self) -> dict[str, Figure]:
        """The figures by name; loads the digits."""
        setup = self.plan.setup()
        return {name: make(setup) for name, make in self.figures.items()}

    def outlook(self, figures: Mapping[str, Figure]) -> Outlook:
        """How many restarts there are, how many earlier calls kept, and the time to expect.

        **Arguments:**

        - `figures`: all or some of what `make_figures` gives.
        """
        return outlook(self.plan, _experiments(figures), self._asked(figures))

    def _asked(self, figures: Mapping[str, Figure]) -> dict[str, int]:
        return {
            f"{name}/{key}": self.restarts or restarts
            for name, figure in figures.items()
            for key, (_, restarts) in figure.experiments().items()
        }


def experiments_of(setup: Setup, figures: Mapping[str, MakeFigure]) -> dict[str, Experiment]:
    """All experiments of some figures, by `figure/panel/label`."""
    return _experiments({name: make(setup) for name, make in figures.items()})


def _experiments(figures: Mapping[str, Figure]) -> dict[str, Experiment]:
    return {
        f"{name}/{key}": experiment
        for name, figure in figures.items()
        for key, (experiment, _) in figure.experiments().items()
    }


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """One figure as we found it.

    **Fields:**

    - `figure`: its recipe.
    - `results`: by panel, then by label.
    - `verdicts`: on its claims.
    - `files`: where what was written is: `facts`, and as far as there is anything to be in them `picture`
        and the tables, such as `finals`.
    """

    figure: Figure
    results: PanelResults
    verdicts: Sequence[Verdict]
    files: Mapping[str, Path]


def reproduce(
    request: Request,
    *,
    processes: int | None = None,
    partial: bool = False,
    progress: Progress = lambda done, total, text: None,
) -> dict[str, Reproduction]:
    """Runs what is missing of some figures, draws them, and judges the thesis's claims.

    What ended is on disk, so that an interrupted call is taken up by the same call. Of every figure it
    writes, as far as there is anything to be in them, `<name>.png`; `<name>-finals.csv` with a row per
    restart, `-curves.csv` with the quartiles of the losses over the restarts, `-histogram.csv` with our
    counts and the thesis's, `-thesis.csv` with the points of its curves, `-graph.csv`, and `-measured.csv`
    with what is no experiment's; and `<name>.json` with all verdicts and statistics, the thesis's numbers and
    the settings.

    **Arguments:**

    - `request`: which figures, and how.
    - `processes`: how many to work in; by default one per core, on an accelerator this one. Several import
        the calling script, which must be guarded by `if __name__ == "__main__":`.
    - `partial`: runs nothing and takes the restarts that are on disk. Series without any are not drawn, and
        claims that need them are undecided; figures of which there is nothing, or of which a measurement is
        missing, are left out.
    - `progress`: is told how far the work is.

    **Returns:** the figures by name.

    **Raises:** `ValueError` for unknown settings, and for several processes on an accelerator;
    `l2o_eqx.data.DataError` if the digits cannot be had.
    """
    plan = request.plan
    setup = plan.setup()
    figures = request.make_figures()
    asked = request._asked(figures)
    if partial:
        found = load_kept(plan, asked)
    else:
        found = run_all(plan, asked, processes=processes, progress=progress)
    reproductions = {}
    # Measurements may take long: what needs none is written first.
    for name, figure in sorted(figures.items(), key=lambda item: item[1].extra is not None):
        results = _by_panel(name, figure, found)
        if figure.extra is not None and not partial:
            progress(1.0, 1.0, f"{name}, measuring")
        extra = measurements(plan, setup, name, figure, measure=not partial)
        there = any(results.values()) or not figure.experiments()
        if there and (extra is not None or figure.extra is None):
            worked_in = None if partial else num_processes(processes)
            reproductions[name] = _write(request, setup, name, figure, results, extra, worked_in)
    return {name: reproductions[name] for name in figures if name in reproductions}


def _by_panel(name: str, figure: Figure, found: Mapping[str, Results]) -> PanelResults:
    keys = {p.name: {label: f"{name}/{p.name}/{label}" for label in p.series} for p in figure.panels}
    return {
        panel: {label: found[key] for label, key in labels.items() if key in found}
        for panel, labels in keys.items()
    }


def _write(
    request: Request,
    setup: Setup,
    name: str,
    figure: Figure,
    results: PanelResults,
    extra: dict[str, Any] | None,
    processes: int | None,
) -> Reproduction:
    asked = {panel.name: request.restarts or panel.restarts for panel in figure.panels}
    numbers = extra["numbers"] if extra else None
    files = write_figure(
        Path(request.folder), name, figure, results, asked=asked, scale=setup.scale, extra=numbers
    )
    judged = {panel.name: _common(panel, results[panel.name]) for panel in figure.panels}
    verdicts = list(figure.verdicts(judged, numbers))
    facts = {
        "format": FORMAT,
        "name": name,
        "title": figure.title,
        "section": figure.section,
        "notes": figure.notes,
        "claims": list(figure.claims),
        "panels": [{"name": panel.name, "title": panel.title, "kind": panel.kind} for panel in figure.panels],
        "files": {kind: path.name for kind, path in files.items()},
        "settings": _settings(request, setup),
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "judged_on": {panel: _restarts(series) for panel, series in results.items() if series},
        "series": [
            describe_series(panel, label, experiment, results[panel.name][label], asked[panel.name])
            for panel in figure.panels
            for label, experiment in panel.series.items()
            if label in results[panel.name]
        ],
        "not_run": [
            f"{panel.name}/{label}"
            for panel in figure.panels
            for label in panel.series
            if label not in results[panel.name]
        ],
        "extra": extra,
        "environment": describe_environment(),
        "processes": processes,
    }
    path = Path(request.folder) / f"{name}.json"
    write_json(path, facts)
    return Reproduction(figure, results, verdicts, {**files, "facts": path})


def _common(panel: Panel, found: Mapping[str, Results]) -> dict[str, Results]:
    # Claims on restart i of one series and of another need both; an interrupted run may have one of them.
    return {
        label: cut(found[label], restarts=_restarts(found)) if label in found else no_results(experiment)
        for label, experiment in panel.series.items()
    }


def _restarts(series: Mapping[str, Results]) -> int:
    return min(len(results.losses) for results in series.values())


def _settings(request: Request, setup: Setup) -> dict[str, Any]:
    digits = setup.digits
    return {
        "scale": setup.scale,
        "source": setup.source,
        "seed": request.seed,
        "restarts": request.restarts,
        "data": "embedded" if digits.sha256 == load_mnist("embedded").sha256 else "tfds",
        "data_description": digits.describe(),
        "data_sha256": digits.sha256,
    }
