"""What all figures have in common. Matplotlib is imported when the first one is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def write_figure(figure: "Figure", path: str | Path | None) -> "Figure":
    """Writes a figure, if there is a path, and returns it."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
