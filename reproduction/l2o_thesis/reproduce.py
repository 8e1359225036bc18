"""Figures of the thesis: their experiments run, drawn, kept as numbers, and their claims judged."""

import collections
import csv
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2o_eqx.data import Digits, load_mnist

from .describe import describe_series
from .draw import draw
from .experiment import Experiment, Results
from .figures import FIGURES, Figure, Scale, Source, read_figure
from .jobs import Job, Progress, do_all, make_jobs, num_processes
from .judge import PanelResults, Verdict, judge
from .kept import load_kept, replacing, write_json
from .measurements import describe_environment, measurement
from .statistics import quartiles

FORMAT = 2
"""Version of the layout of the JSON files of figures."""

# Measured on the experiments of all figures at the quick scale.
_COMPILE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What there is to do.

    **Fields:**

    - `restarts`, `kept`: of all experiments together, those that figures share counted once, and how many of
        them earlier calls left on disk.
    - `seconds`, `seconds_left`: roughly what all of them, and those that are not kept, take on one core, with
        compiling.
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
        asked = sorted(set(self.names), key=[*FIGURES, *self.names].index)
        return {name: read_figure(name, self.scale, self.source) for name in asked}

    @functools.cached_property
    def _source(self) -> dict[str, Any]:
        return {"data": self.data, "data_dir": None if self.data_dir is None else str(self.data_dir)}

    @functools.cached_property
    def digits(self) -> Digits:
        """MNIST, or part of it."""
        return load_mnist(**self._source)

    @functools.cached_property
    def experiments(self) -> dict[tuple[str, str, str], tuple[Experiment, int]]:
        """All experiments and their numbers of restarts, by figure, panel and label."""
        return {
            (name, panel.name, label): (Experiment(spec, self.digits), self.restarts or panel.restarts)
            for name, figure in self.figures.items()
            for panel, label, spec in figure.experiments()
        }

    def jobs(self, *names: str) -> list[Job]:
        """What all figures, or those of these names, are cut into."""
        chosen = {"/".join(k): e for k, e in self.experiments.items() if not names or k[0] in names}
        return make_jobs(chosen, Path(self.folder), seed=self.seed, **self._source)

    def outlook(self, *names: str) -> Outlook:
        """How much there is of all figures, or of those of these names, and the time to expect."""
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
    """One figure as we found it: results by panel and label, verdicts, and where what was written is.

    `files` are `facts`, and as far as there is anything to be in them `picture`, `finals`, `curves` and
    `measured`.
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
    restart, `-curves.csv` with quartiles of the losses, `-measured.csv`; and `<name>.json` with verdicts,
    statistics and settings, from which `write_report` makes its page.

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
        shown = _shown(request, figure)
        if figure.measurement is not None and not partial:
            progress(1.0, 1.0, f"{name}, measuring")
        measured = measurement(request, figure, measure=not partial)
        there = any(shown.values()) or not any(figure.experiments())
        if there and (measured is not None or figure.measurement is None):
            workers = None if partial else processes
            reproductions[name] = _write(request, figure, shown, measured, workers)
    return {name: reproductions[name] for name in request.figures if name in reproductions}


def _shown(request: Request, figure: Figure) -> PanelResults:
    # What there is, as long as it is drawn and judged.
    found: dict[str, dict[str, Results]] = {panel.name: {} for panel in figure.panels}
    for panel, label, _ in figure.experiments():
        experiment, restarts = request.experiments[figure.name, panel.name, label]
        one = load_kept(Path(request.folder), experiment, request.seed, restarts)
        if one is not None:
            found[panel.name][label] = one.cut(steps=panel.steps)
    return found


def _write(
    request: Request,
    figure: Figure,
    shown: PanelResults,
    measured: dict[str, Any] | None,
    processes: int | None,
) -> Reproduction:
    folder, numbers = Path(request.folder), measured["numbers"] if measured else {}
    asked = {panel.name: request.restarts or panel.restarts for panel in figure.panels}
    files = _write_tables(folder, figure, shown, numbers)
    picture = folder / f"{figure.name}.png"
    if draw(figure, shown, picture, asked=asked, scale=request.scale):
        files["picture"] = picture
    # Claims on restart i of one series and of another need both; an interrupted run may have one of them.
    least = {p: min(len(r.losses) for r in series.values()) for p, series in shown.items() if series}
    comparable = {
        panel: {label: r.cut(restarts=least[panel]) for label, r in series.items()}
        for panel, series in shown.items()
    }
    verdicts = judge(figure, comparable, numbers)
    there = [(p, label) for p, label, _ in figure.experiments() if label in shown[p.name]]
    facts = {
        "format": FORMAT,
        **{field: getattr(figure, field) for field in ("name", "title", "section", "notes")},
        "histograms": [panel.name for panel in figure.panels if panel.histogram],
        "files": {kind: path.name for kind, path in files.items()},
        "settings": _settings(request),
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "judged_on": least,
        "series": [
            describe_series(
                panel,
                label,
                request.experiments[figure.name, panel.name, label][0],
                shown[panel.name][label],
                asked[panel.name],
            )
            for panel, label in there
        ],
        "not_run": [f"{p.name}/{label}" for p, label, _ in figure.experiments() if (p, label) not in there],
        "measured": measured,
        "environment": describe_environment(),
        "processes": processes,
    }
    files["facts"] = folder / f"{figure.name}.json"
    write_json(files["facts"], facts)
    return Reproduction(figure, shown, verdicts, files)


def _settings(request: Request) -> dict[str, Any]:
    digits = request.digits
    return {
        **{field: getattr(request, field) for field in ("scale", "source", "seed", "restarts")},
        "data": "embedded" if digits.sha256 == load_mnist("embedded").sha256 else "tfds",
        "data_description": digits.describe(),
        "data_sha256": digits.sha256,
    }


def _write_tables(
    folder: Path, figure: Figure, shown: PanelResults, measured: Mapping[str, Any]
) -> dict[str, Path]:
    files = {}
    tables = {"finals": _finals(shown), "curves": _curves(shown), "measured": _measured(measured)}
    for kind, (header, *rows) in tables.items():
        if rows:
            files[kind] = folder / f"{figure.name}-{kind}.csv"
            with replacing(files[kind]) as path, open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *rows])
    return files


def _finals(panels: PanelResults) -> Iterator[list[Any]]:
    names = sorted({name for series in panels.values() for r in series.values() for name in r.measured})
    yield ["panel", "series", "restart", "final_loss", "mean_of_last_20", *names]
    for panel, series in panels.items():
        for label, r in series.items():
            columns = [r.final(), r.last(), *(r.measured.get(name) for name in names)]
            for i in range(len(r.losses)):
                yield [panel, label, i, *("" if x is None else _short(x[i]) for x in columns)]


def _curves(panels: PanelResults) -> Iterator[list[Any]]:
    yield ["panel", "series", "step", "q25", "median", "q75"]
    for panel, series in panels.items():
        for label, r in series.items():
            for step, q in zip(r.steps.tolist(), quartiles(r.losses).T, strict=True):
                yield [panel, label, step, *map(_short, q)]


def _short(value: float) -> float:
    # As many digits as results are kept with.
    return float(f"{value:.5g}")


def _measured(numbers: Mapping[str, Any], *path: str) -> Iterator[list[Any]]:
    if not path:
        yield ["name", "number", "value"]
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            yield from _measured(value, *path, str(name))
            continue
        # A list has one number per repetition.
        for i, one in enumerate(value) if isinstance(value, list) else [("", value)]:
            yield ["/".join((*path, str(name))), i, "" if one is None else one]
