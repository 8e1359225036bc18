"""The figure of a card of generalization."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import ArgumentError
from ._figure import explain, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's green, vermilion and grey.
_BETTER, _WORSE, _NONE = "#009E73", "#D55E00", "#7F7F7F"
# Beyond so many decades, a dot would squash the others: it is drawn as an arrow at the edge.
_DECADES = 8.0


def plot_card(
    rows: Sequence[Mapping[str, Any]], path: str | Path | None = None, *, title: str | None = None
) -> "Figure":
    """Draws how far a learned optimizer generalizes: its ratio to the best baseline of every variation.

    **Arguments:**

    - `rows`: of `Card.as_dict()["rows"]`, or of a `card.json`.
    - `path`, `title`: as in `plot_curves`.

    **Returns:** the figure.

    **Raises:** `ValueError` if there are no rows.
    """
    if not rows:
        raise ArgumentError("`plot_card(rows)` needs at least one row. Got none.", argument="rows")
    figure, axes = new_figure(8.5, 1.4 + 0.3 * len(rows))
    _draw(axes, rows)
    if title:
        axes.set_title(title, fontsize=11, loc="left")
    explain(
        figure,
        "Dot: the median final loss of learned over that of the best baseline, which is tuned for the row",
        "and named on the right. Green, left of 1: learned ends lower. Orange: it ends higher.",
        "Arrow: beyond the picture." if any(abs(_log_ratio(row)) > _DECADES for row in rows) else "",
    )
    return write_figure(figure, path)


def _draw(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    logs = [_log_ratio(row) for row in rows]
    finite = [x for x in logs if math.isfinite(x) and abs(x) <= _DECADES]
    low, high = min([-0.3, *finite]), max([0.3, *finite])
    margin = 0.06 * (high - low)
    known = [x for x in logs if not math.isnan(x)]
    low = low - margin if min(known, default=0) >= -_DECADES else low - 3 * margin
    high += 3 * margin
    axes.axvline(1.0, color="#000000", linewidth=1.2, zorder=2)
    for y, (row, x) in enumerate(zip(rows, logs, strict=True)):
        _draw_row(axes, y, row, x, low, high)
        _write_beside(axes, y, *_remark(row))
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("final loss of learned / of the best baseline")
    axes.grid(False, axis="y")


def _draw_row(axes: "Axes", y: int, row: Mapping[str, Any], x: float, low: float, high: float) -> None:
    if math.isnan(x):
        return
    color = _BETTER if x <= 0 else _WORSE
    # What is outside is an arrow at the edge.
    shown = min(max(x, low), high)
    marker = "<" if x < low else ">" if x > high else "o"
    axes.hlines(y, 1.0, 10**shown, color=color, linewidth=2, alpha=0.4, zorder=2)
    axes.plot([10**shown], [y], marker, color=color, markersize=8, zorder=4, clip_on=False)


def _write_beside(axes: "Axes", y: int, text: str, color: str) -> None:
    axes.annotate(text, (1.03, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=color)


def _remark(row: Mapping[str, Any]) -> tuple[str, str]:
    """What is beside a row, and its color."""
    if row["failure"] is not None:
        return "cannot be run", _NONE
    if row["best"] is None:
        return "all baselines diverge", _NONE
    diverged = f"; learned diverges: {row['diverged']:.0%}" if row["diverged"] else ""
    if row["ratio"] is None and row.get("learned") is not None:
        # Of losses below zero there is no ratio.
        lower = row["learned"] < row["best_loss"]
        text = f"{row['best']}; learned ends {'lower' if lower else 'higher'}{diverged}"
        return text, _BETTER if lower else _WORSE
    return row["best"] + diverged, _WORSE if diverged else "#333333"


def _log_ratio(row: Mapping[str, Any]) -> float:
    if row["failure"] is not None or row["best"] is None:
        return math.nan
    if row["ratio"] is None and row.get("learned") is not None:
        return math.nan
    ratio = math.inf if row["ratio"] is None else row["ratio"]
    return math.log10(ratio) if ratio > 0 else -math.inf
