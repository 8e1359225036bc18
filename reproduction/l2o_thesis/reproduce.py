"""Figures of the thesis: their experiments run, drawn, kept as numbers, and their claims judged."""

import collections
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2o_eqx.data import Digits, load_mnist

from .draw import draw
from .experiment import Experiment, Results, no_results
from .figures import FIGURES, Figure, Scale, Source, read_figure
from .files import write_json
from .jobs import Job, Progress, do_all, make_jobs, num_processes
from .judge import PanelResults, Verdict, judge
from .kept import load_kept
from .measurements import describe_environment, measurement
from .numbers import describe_series, write_tables

FORMAT = 2
"""Version of the layout of the JSON files of figures."""

# Measured on the experiments of all figures at the quick scale.
_COMPILE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What there is to do.

    **Fields:**

    - `restarts`: of all experiments together, those that figures share counted once.
    - `kept`: how many of them earlier calls left on disk.
    - `seconds`: roughly what all of them take, in seconds of one core, with compiling.
    - `seconds_left`: the same of those that are not kept.
    """

    restarts: int
    kept: int
    seconds: float
    seconds_left: float


@dataclasses.dataclass(frozen=True)
class Request:
    """Figures, how they are to be run, and where everything about them is kept.

    **Fields:**

    - `names`: of the figures, entries of `FIGURES`.
    - `folder`: for pictures and numbers; `jobs` in it has the results of every finished job.
    - `scale`, `source`: of `read_figure`.
    - `seed`: same seed, same numbers.
    - `restarts`: of every experiment, in place of each panel's own number.
    - `data`, `data_dir`: of `l2o_eqx.data.load_mnist`.

    **Raises:** `ValueError` without figures or restarts.
    """

    names: Sequence[str]
    folder: str | Path
    scale: Scale = "full"
    source: Source = "figures"
    seed: int = 0
    restarts: int | None = None
    data: str = "auto"
    data_dir: str | Path | None = None

    def __post_init__(self):
        if not self.names:
            raise ValueError("`Request(names=...)` needs at least one figure. Got none.")
        if self.restarts is not None and self.restarts < 1:
            raise ValueError(f"`Request(restarts=...)` must be at least 1. Got restarts={self.restarts}.")

    @functools.cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures by name, in the order of `FIGURES`."""
        asked = [name for name in FIGURES if name in self.names] or self.names
        return {name: read_figure(name, self.scale, self.source) for name in asked}

    @functools.cached_property
    def digits(self) -> Digits:
        """MNIST, or part of it."""
        data: Any = self.data
        return load_mnist(data, None if self.data_dir is None else str(self.data_dir))

    @functools.cached_property
    def experiments(self) -> dict[str, tuple[Experiment, int]]:
        """All experiments and their numbers of restarts, by `figure/panel/label`."""
        return {
            key: (Experiment(spec, self.digits), self.restarts or panel.restarts)
            for figure in self.figures.values()
            for key, panel, spec in figure.experiments()
        }

    def jobs(self, *names: str) -> list[Job]:
        """What all figures, or those of these names, are cut into."""
        chosen = {k: e for k, e in self.experiments.items() if not names or k.partition("/")[0] in names}
        data_dir = None if self.data_dir is None else str(self.data_dir)
        return make_jobs(chosen, Path(self.folder), seed=self.seed, data=self.data, data_dir=data_dir)

    def outlook(self, *names: str) -> Outlook:
        """How many restarts there are of all figures, or of those of these names, and the time to expect."""
        jobs = self.jobs(*names)
        missing = [job for job in jobs if not job.path.exists()]
        restarts, left = (sum(job.restarts for job in some) for some in (jobs, missing))
        return Outlook(restarts, restarts - left, _seconds(jobs), _seconds(missing))


def _seconds(jobs: Sequence[Job]) -> float:
    # Every process compiles every experiment it has a job of.
    num_jobs = collections.Counter(job.path.parent for job in jobs)
    compiling = _COMPILE_SECONDS * sum(min(n, os.cpu_count() or 1) for n in num_jobs.values())
    return compiling + sum(job.work for job in jobs)


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """One figure as we found it.

    **Fields:**

    - `figure`: what it is.
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
    writes, as far as there is anything to be in them, `<name>.png`; the tables of `write_tables`, such as
    `<name>-finals.csv`; and `<name>.json` with verdicts, statistics and settings, from which `write_report`
    makes its page.

    **Arguments:**

    - `request`: which figures, and how.
    - `processes`: how many to work in; by default one per core.
    - `partial`: takes what earlier calls left and runs nothing: missing experiments are not drawn, and
        claims that need them are undecided; figures of which there is nothing, or of which a measurement is
        missing, are left out.
    - `progress`: is told how far the work is.

    **Returns:** the figures by name.

    **Raises:** `ValueError` for unknown settings, and for several processes on an accelerator;
    `l2o_eqx.data.DataError` if the digits cannot be had.
    """
    processes = num_processes(processes)
    if not partial:
        do_all([job for job in request.jobs() if not job.path.exists()], processes, progress)
    reproductions = {}
    # Measurements may take long: what needs none is written first.
    for name, figure in sorted(request.figures.items(), key=lambda item: item[1].measurement is not None):
        results = _results(request, figure)
        if figure.measurement is not None and not partial:
            progress(1.0, 1.0, f"{name}, measuring")
        measured = measurement(request, figure, measure=not partial)
        there = any(results.values()) or not any(figure.experiments())
        if there and (measured is not None or figure.measurement is None):
            workers = None if partial else processes
            reproductions[name] = _write(request, figure, results, measured, workers)
    return {name: reproductions[name] for name in request.figures if name in reproductions}


def _results(request: Request, figure: Figure) -> PanelResults:
    found: dict[str, dict[str, Results]] = {panel.name: {} for panel in figure.panels}
    for key, panel, _ in figure.experiments():
        experiment, restarts = request.experiments[key]
        one = load_kept(Path(request.folder), experiment, request.seed, restarts)
        if one is not None:
            found[panel.name][key.split("/", 2)[2]] = one
    return found


def _write(
    request: Request,
    figure: Figure,
    results: PanelResults,
    measured: dict[str, Any] | None,
    processes: int | None,
) -> Reproduction:
    folder = Path(request.folder)
    asked = {panel.name: request.restarts or panel.restarts for panel in figure.panels}
    shown = {
        panel.name: {label: one.cut(steps=panel.steps) for label, one in results[panel.name].items()}
        for panel in figure.panels
    }
    numbers = measured["numbers"] if measured else {}
    files = write_tables(folder, figure, shown, numbers)
    picture = folder / f"{figure.name}.png"
    if draw(figure, shown, picture, asked=asked, scale=request.scale):
        files["picture"] = picture
    judged_on = {panel: _restarts(series) for panel, series in shown.items() if series}
    verdicts = judge(figure, _comparable(request, figure, shown), numbers)
    facts = {
        "format": FORMAT,
        **{field: getattr(figure, field) for field in ("name", "title", "section", "notes")},
        "claims": list(figure.claims),
        "histograms": [panel.name for panel in figure.panels if panel.histogram],
        "files": {kind: path.name for kind, path in files.items()},
        "settings": _settings(request),
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "judged_on": judged_on,
        "series": [
            describe_series(panel, label, request.experiments[key][0], shown[panel.name][label], asked)
            for key, panel, _ in figure.experiments()
            if (label := key.split("/", 2)[2]) in shown[panel.name]
        ],
        "not_run": [
            key.partition("/")[2]
            for key, panel, _ in figure.experiments()
            if key.split("/", 2)[2] not in shown[panel.name]
        ],
        "measured": measured,
        "environment": describe_environment(),
        "processes": processes,
    }
    files["facts"] = folder / f"{figure.name}.json"
    write_json(files["facts"], facts)
    return Reproduction(figure, results, verdicts, files)


def _comparable(request: Request, figure: Figure, shown: PanelResults) -> PanelResults:
    # Claims on restart i of one series and of another need both; an interrupted run may have one of them.
    found: dict[str, dict[str, Results]] = {panel.name: {} for panel in figure.panels}
    for key, panel, _ in figure.experiments():
        label, series = key.split("/", 2)[2], shown[panel.name]
        missing = no_results(request.experiments[key][0])
        found[panel.name][label] = (
            series[label].cut(restarts=_restarts(series)) if label in series else missing
        )
    return found


def _restarts(series: Mapping[str, Results]) -> int:
    return min(len(results.losses) for results in series.values())


def _settings(request: Request) -> dict[str, Any]:
    digits = request.digits
    return {
        **{field: getattr(request, field) for field in ("scale", "source", "seed", "restarts")},
        "data": "embedded" if digits.sha256 == load_mnist("embedded").sha256 else "tfds",
        "data_description": digits.describe(),
        "data_sha256": digits.sha256,
    }
