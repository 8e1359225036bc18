"""Figures of the thesis: their experiments run, drawn, kept as numbers, and their claims judged."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._artifacts import cut, describe_environment, describe_series, replacing, write_figure, write_json
from ._experiment import Experiment, Results
from ._figure import Figure, PanelResults
from ._runner import Outlook, Plan, Progress, load_kept, outlook, run_all
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

    def outlook(self) -> Outlook:
        """How many restarts there are to run, how many are kept from earlier calls, and the time to expect."""
        plan = self.plan
        figures = {name: make(plan.setup()) for name, make in self.figures.items()}
        return outlook(plan, self._asked(figures))

    def _asked(self, figures: Mapping[str, Figure]) -> dict[str, int]:
        return {
            f"{name}/{key}": self.restarts or restarts
            for name, figure in figures.items()
            for key, (_, restarts) in figure.experiments().items()
        }


def experiments_of(setup: Setup, figures: Mapping[str, MakeFigure]) -> dict[str, Experiment]:
    """All experiments of some figures, by `figure/panel/label`."""
    return {
        f"{name}/{key}": experiment
        for name, make in figures.items()
        for key, (experiment, _) in make(setup).experiments().items()
    }


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """One figure as we found it.

    **Fields:**

    - `figure`: its recipe.
    - `results`: by panel, then by label.
    - `verdicts`: on its claims.
    - `files`: where what was written is: `facts`, and as far as there are experiments or graphs `picture`,
        `finals` and `curves`.
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
    writes `<name>.png`; `<name>-finals.csv` with a row per restart; `<name>-curves.csv` with the quartiles of
    the losses over the restarts; and `<name>.json` with all verdicts and statistics, the thesis's numbers
    and the settings.

    **Arguments:**

    - `request`: which figures, and how.
    - `processes`: as in `run_all`.
    - `partial`: runs nothing and takes the restarts that are on disk. Figures of which a series or a
        measurement has nothing yet are left out.
    - `progress`: is told how far the work is.

    **Returns:** the figures by name.

    **Raises:** `ValueError` for unknown settings; `l2o_eqx.data.DataError` if the digits cannot be had.
    """
    plan = request.plan
    setup = plan.setup()
    figures = {name: make(setup) for name, make in request.figures.items()}
    asked = request._asked(figures)
    if partial:
        found = load_kept(plan, asked)
    else:
        found = run_all(plan, asked, processes=processes, progress=progress)
    reproductions = {}
    for name, figure in figures.items():
        results = _by_panel(name, figure, found)
        extra = _extra(plan, setup, name, figure, measure=not partial)
        if results is not None and (extra is not None or figure.extra is None):
            reproductions[name] = _write(request, setup, name, figure, results, extra)
    return reproductions


def _by_panel(name: str, figure: Figure, found: Mapping[str, Results]) -> PanelResults | None:
    results: dict[str, dict[str, Results]] = {panel.name: {} for panel in figure.panels}
    for panel in figure.panels:
        for label in panel.series:
            key = f"{name}/{panel.name}/{label}"
            if key not in found:
                return None
            results[panel.name][label] = found[key]
    return results


def _extra(plan: Plan, setup: Setup, name: str, figure: Figure, *, measure: bool) -> dict[str, Any] | None:
    if figure.extra is None:
        return None
    kept = plan.folder / "-".join(
        ["extra", name, setup.scale, setup.source, setup.digits.sha256[:8], f"seed{plan.seed}.json"]
    )
    if not kept.exists():
        if not measure:
            return None
        write_json(kept, figure.extra(plan.seed))
    return json.loads(kept.read_text(encoding="utf-8"))


def _write(
    request: Request,
    setup: Setup,
    name: str,
    figure: Figure,
    results: PanelResults,
    extra: dict[str, Any] | None,
) -> Reproduction:
    asked = {panel.name: request.restarts or panel.restarts for panel in figure.panels}
    files = write_figure(Path(request.folder), name, figure, results, asked=asked, scale=setup.scale)
    judged = {panel: _common(series) for panel, series in results.items()}
    verdicts = list(figure.verdicts(judged, extra))
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
        "judged_on": {panel: _restarts(series) for panel, series in judged.items() if series},
        "series": [
            describe_series(panel, label, experiment, results[panel.name][label], asked[panel.name])
            for panel in figure.panels
            for label, experiment in panel.series.items()
        ],
        "extra": extra,
        "environment": describe_environment(),
    }
    path = Path(request.folder) / f"{name}.json"
    write_json(path, facts)
    return Reproduction(figure, results, verdicts, {**files, "facts": path})


def _common(series: Mapping[str, Results]) -> dict[str, Results]:
    # Claims on restart i of one series and of another need both; an interrupted run may have one of them.
    fewest = _restarts(series) if series else 0
    return {label: cut(results, restarts=fewest) for label, results in series.items()}


def _restarts(series: Mapping[str, Results]) -> int:
    return min(len(results.losses) for results in series.values())


def _settings(request: Request, setup: Setup) -> dict[str, Any]:
    return {
        "scale": setup.scale,
        "source": setup.source,
        "seed": request.seed,
        "restarts": request.restarts,
        "data": setup.digits.describe(),
        "data_sha256": setup.digits.sha256,
    }
