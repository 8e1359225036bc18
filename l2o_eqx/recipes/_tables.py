"""The tables of a figure: every number in it, ours and the thesis's, as CSV."""

import csv
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .._comparison import _as_infinite, _quartiles
from ._figure import Figure, PanelResults
from ._files import replacing
from ._statistics import histogram_counts
from ._thesis import BIN_EDGES, CURVES, HISTOGRAMS

Rows = Iterable[list[Any]]


def write_tables(
    folder: Path, name: str, figure: Figure, shown: PanelResults, extra: Mapping[str, Any] | None
) -> dict[str, Path]:
    """Writes those tables that there is anything to be in.

    **Arguments:**

    - `folder`, `name`: the files are `<folder>/<name>-finals.csv` and so on.
    - `figure`: says the thesis's panels, and has graphs.
    - `shown`: the results by panel, then by label, as long as they are drawn.
    - `extra`: the numbers that the figure's `extra` gave.

    **Returns:** the files by kind: `finals`, a row per restart; `curves`, the quartiles of the losses at
    every step; `histogram`, the counts of final losses, and the thesis's; `thesis`, the points of its
    curves; `graph`; `measured`, what `extra` gave.
    """
    histograms = {p.name: shown[p.name] for p in figure.panels if p.kind == "histogram"}
    tables: dict[str, Callable[[], Rows]] = {
        "finals": functools.partial(_finals, shown),
        "curves": functools.partial(_curves, shown),
        "histogram": functools.partial(_histograms, histograms),
        "thesis": functools.partial(_thesis, figure),
        "graph": functools.partial(_graphs, figure),
        "measured": functools.partial(_measured, extra or {}),
    }
    files = {}
    for kind, make in tables.items():
        header, *rows = make()
        if not rows:
            continue
        files[kind] = folder / f"{name}-{kind}.csv"
        with replacing(files[kind]) as path, open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    return files


def _finals(panels: PanelResults) -> Iterator[list[Any]]:
    names = sorted({name for series in panels.values() for r in series.values() for name in r.measured})
    yield ["panel", "series", "restart", "final_loss", "mean_of_last_20", *names]
    for panel, series in panels.items():
        for label, r in series.items():
            columns = [r.losses[:, -1], r.last(), *(r.measured.get(name) for name in names)]
            for i in range(len(r.losses)):
                yield [panel, label, i, *("" if x is None else float(x[i]) for x in columns)]


def _curves(panels: PanelResults) -> Iterator[list[Any]]:
    yield ["panel", "series", "step", "q25", "median", "q75"]
    for panel, series in panels.items():
        for label, r in series.items():
            quartiles = _quartiles(_as_infinite(r.losses))
            yield from ([panel, label, i, *map(float, q)] for i, q in enumerate(quartiles.T))


def _histograms(panels: PanelResults) -> Iterator[list[Any]]:
    yield ["panel", "series", "source", "from", "below", "count"]
    for panel, series in panels.items():
        ours = {label: histogram_counts(r.final).counts for label, r in series.items()}
        for source, found in (("ours", ours), ("thesis", HISTOGRAMS.get(panel, {}))):
            for label, counts in found.items():
                for low, high, count in zip(BIN_EDGES[:-1], BIN_EDGES[1:], counts, strict=True):
                    yield [panel, label, source, low, high, count]


def _thesis(figure: Figure) -> Iterator[list[Any]]:
    yield ["panel", "series", "what", "step", "loss"]
    for panel in figure.panels:
        for label, curve in CURVES.get(panel.name, {}).items():
            for step, (_, loss) in zip(curve.positions(), curve.points, strict=True):
                yield [panel.name, label, "loss", step, loss]
            yield [panel.name, label, "mean_of_last_20", curve.steps - 1, curve.mean_last_20]


def _graphs(figure: Figure) -> Iterator[list[Any]]:
    yield ["panel", "x", "y"]
    for panel in figure.panels:
        if panel.graph is not None:
            yield from ([panel.name, float(x), float(y)] for x, y in zip(*panel.graph, strict=True))


def _measured(extra: Mapping[str, Any]) -> Iterator[list[Any]]:
    yield ["name", "number", "value"]
    yield from _flat(extra, ())


def _flat(value: Any, path: tuple[str, ...]) -> Iterator[list[Any]]:
    # A list has one number per repetition.
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, (*path, str(name)))
    elif isinstance(value, list):
        yield from (["/".join(path), i, inner] for i, inner in enumerate(value))
    else:
        yield ["/".join(path), "", "" if value is None else value]
