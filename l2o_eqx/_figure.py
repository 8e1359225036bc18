"""What all figures have in common. Matplotlib is imported when the first one is drawn."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the small letters of a note, at most so many are an inch long.
_LETTERS_PER_INCH = 15


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple["Figure", Any]:
    """An empty figure in the style of all, and its axes.

    **Arguments:**

    - `width`, `height`: in inches.
    - `rows`, `columns`: of axes.
    """
    # Not pyplot, which keeps figures alive and wants a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex="col")
    for one in np.ravel(axes):
        one.spines[["top", "right"]].set_visible(False)
        one.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def explain(figure: "Figure", *sentences: str) -> None:
    """Says below a figure, small and gray, what its lines, bands and markers are."""
    width = int(_LETTERS_PER_INCH * figure.get_figwidth())
    text = textwrap.fill(" ".join(filter(None, sentences)), width)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8.5, color="#666666")


def legend_above(axes: "Axes") -> None:
    """A legend in one row over the axes, where no line can be under it."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=10)


def write_figure(figure: "Figure", path: str | Path | None) -> "Figure":
    """Writes a figure, if there is a path, and returns it."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
