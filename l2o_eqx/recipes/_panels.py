"""Panels of the reproduced figures: many restarts, and the thesis's own numbers beside them."""

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from .._comparison import _as_infinite, _quartiles
from .._figure import new_figure, write_figure
from ..plots import _EMPHASIZED, _OTHERS
from ._statistics import histogram_counts, share_interval
from ._thesis import ReferenceCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue, vermilion, green: of the colors of Okabe and Ito those that differ most also in gray.
_COLORS = (_OTHERS[0], _EMPHASIZED[0], _OTHERS[1], *_OTHERS[2:])
_MARKERS = "os^Dv"
_BIN_NAMES = ("<0.5", "0.5–1", "1–1.5", "1.5–2", "2–2.5\n(chance)", "≥2.5")

# How many times as high as all starts and the thesis's curves a diverging one may lead the picture.
_HEADROOM = 1.5

_PANEL_INCHES = 5.4
_LETTERS_PER_INCH = 15

Panel = Callable[["Axes"], str]
"""Draws on the axes and returns what its marks mean, for the caption."""

Scale = Literal["quick", "full"]


def draw_curves_panel(
    axes: "Axes",
    curves: Mapping[str, Float[np.ndarray, "_restarts _steps"]],
    reference: Mapping[str, ReferenceCurve],
    *,
    title: str,
) -> str:
    """Draws losses over inner steps on linear axes: the median over restarts, the quartiles as a band.

    The thesis's values are hollow markers of the same color, joined by a dashed line. What diverges leaves
    the picture upwards.

    **Arguments:**

    - `axes`: where to draw.
    - `curves`: the losses by label.
    - `reference`: the thesis's curves by label, as in `CURVES`; either may have more labels.
    - `title`: of the panel.

    **Returns:** what the marks mean, for the caption.

    **Raises:** `ValueError` if there are no curves.
    """
    if not curves:
        raise ValueError("`draw_curves_panel(curves)` needs at least one curve. Got none.")
    quartiles = {label: _quartiles(_as_infinite(losses)) for label, losses in curves.items()}
    top = _top(quartiles, reference)
    for label, color, marker in _styles(curves, reference):
        finals = []
        if label in quartiles:
            ours = quartiles[label]
            finals.append(_loss(ours[1, -1]))
            shown = np.minimum(ours, 10 * top)
            steps = np.arange(ours.shape[1])
            axes.fill_between(steps, shown[0], shown[2], color=color, alpha=0.18, linewidth=0, zorder=2)
            axes.plot(steps, shown[1], color=color, linewidth=2, zorder=4)
        if label in reference:
            theirs = reference[label]
            finals.append(f"thesis {_loss(theirs.final)}")
            axes.plot(
                theirs.positions(),
                [loss for _, loss in theirs.points],
                color=color,
                linestyle=(0, (4, 3)),
                linewidth=1.1,
                marker=marker,
                markersize=6,
                markerfacecolor="white",
                markeredgewidth=1.3,
                clip_on=False,
                zorder=5,
            )
        # The first line of the two carries the label.
        axes.lines[-len(finals)].set_label(f"{label}: {', '.join(finals)}")
    axes.set_ylim(0, top)
    lengths = [q.shape[1] for q in quartiles.values()] + [theirs.steps for theirs in reference.values()]
    axes.set_xlim(0, max(1, max(lengths) - 1))
    axes.set_xlabel("inner step")
    axes.set_ylabel("loss")
    _finish(axes, title, below=0.55, legend_title="loss at the end")
    marks = "Line: median over restarts; band: quartiles"
    thesis = "hollow markers: the thesis's curve, of a single run or the best of ten"
    return f"{marks}; {thesis}." if reference else f"{marks}."


def draw_histogram_panel(
    axes: "Axes",
    series: Mapping[str, Float[np.ndarray, " _restarts"]],
    reference: Mapping[str, tuple[int, ...]],
    *,
    title: str,
) -> str:
    """Draws the share of restarts that end in each of the thesis's bins, with Wilson intervals.

    The thesis's share is a hollow bar beside it. What is not finite is in the last bin, and its number in the
    legend.

    **Arguments:**

    - `axes`: where to draw.
    - `series`: the final losses by label.
    - `reference`: the thesis's counts by label, as in `HISTOGRAMS`; either may have more labels.
    - `title`: of the panel.

    **Returns:** what the marks mean, for the caption.

    **Raises:** `ValueError` if there are no series.
    """
    if not series:
        raise ValueError("`draw_histogram_panel(series)` needs at least one series. Got none.")
    bins = np.arange(len(_BIN_NAMES))
    groups = [(label, color) for label, color, _ in _styles(series, reference)]
    num_bars = sum((label in series) + (label in reference) for label, _ in groups)
    width = 0.84 / num_bars
    left = bins - 0.42 + width / 2
    for label, color in groups:
        if label in series:
            histogram = histogram_counts(series[label])
            num_restarts = sum(histogram.counts)
            shares = [share_interval(count, num_restarts) for count in histogram.counts]
            values = np.array([share.value for share in shares])
            whiskers = [
                values - [share.low for share in shares],
                [share.high for share in shares] - values,
            ]
            lost = f", {histogram.not_finite} not finite" if histogram.not_finite else ""
            axes.bar(left, values, width, color=color, zorder=3, label=f"{label}{lost}")
            axes.errorbar(
                left,
                values,
                # Rounding takes some of them a little below zero.
                np.maximum(whiskers, 0),
                fmt="none",
                ecolor="#333333",
                elinewidth=1,
                capsize=min(2.5, 14 * width),
                zorder=4,
            )
            left = left + width
        if label in reference:
            counts = np.array(reference[label])
            # Within its own width, so that edges of neighbors do not lie on each other.
            axes.bar(
                left,
                counts / counts.sum(),
                0.8 * width,
                facecolor="white",
                edgecolor=color,
                linewidth=1.3,
                zorder=3,
                label=f"{label}, thesis",
            )
            left = left + width
    axes.set_xticks(bins, _BIN_NAMES)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.6, len(bins) - 0.4)
    axes.set_ylim(0, min(1.02, 1.05 * axes.dataLim.ymax))
    axes.set_xlabel("final loss")
    axes.set_ylabel("share of restarts")
    _finish(axes, title, below=0.72, columns=2)
    marks = "Bars: share of restarts; whiskers: 95 % intervals (Wilson)"
    return f"{marks}; hollow bars: the thesis's 100 runs." if reference else f"{marks}."


def draw_map_panel(
    axes: "Axes",
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    *,
    title: str,
    xlabel: str = "∇",
    ylabel: str = "ρ(∇)",
) -> str:
    """Draws a function as a line, e.g. the preprocessing of fig. 9.

    **Arguments:**

    - `axes`: where to draw.
    - `x`, `y`: points of the function, in ascending order of `x`.
    - `title`, `xlabel`, `ylabel`: the texts.

    **Returns:** an empty string: there is nothing to explain.
    """
    axes.plot(x, y, color=_COLORS[0], linewidth=1.8)
    axes.set_xlim(x[0], x[-1])
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4), useMathText=True)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=11, loc="left")
    return ""


def figure_of_panels(
    *panels: Panel,
    restarts: int | None = None,
    scale: Scale | None = None,
    path: str | Path | None = None,
) -> "Figure":
    """Draws one to three panels side by side, with a caption below.

    For example `figure_of_panels(lambda axes: draw_curves_panel(axes, ...), restarts=100, scale="full")`.

    **Arguments:**

    - `panels`: functions that draw on the axes they are given and return what the marks mean.
    - `restarts`: how many there are of each series; the caption says it if it is given.
    - `scale`: of the experiment; the caption says it if it is given.
    - `path`: where to write the figure, if anywhere; the suffix picks the format.

    **Returns:** the figure.

    **Raises:** `ValueError` unless there are one to three panels.
    """
    if not 1 <= len(panels) <= 3:
        raise ValueError(f"`figure_of_panels(*panels)` draws one to three panels. Got {len(panels)}.")
    width = _PANEL_INCHES * len(panels)
    figure, axes = new_figure(width, 4.8, columns=len(panels))
    figure.set_layout_engine("constrained", w_pad=0.1)
    marks = [panel(one) for panel, one in zip(panels, np.atleast_1d(axes), strict=True)]
    number = None if restarts is None else f"{restarts} restart{'s' * (restarts != 1)}"
    run = ", ".join(filter(None, (number, scale and f"{scale} scale")))
    # Panels of one kind mean the same; it is said once, and by the panel that has most to say.
    said = [m for m in dict.fromkeys(marks) if not any(m != o and o.startswith(m[:-1]) for o in marks)]
    sentences = filter(None, (run and f"{run[0].upper()}{run[1:]}.", *said))
    caption = textwrap.fill(" ".join(sentences), round(_LETTERS_PER_INCH * width))
    if caption:
        figure.supxlabel(caption, fontsize=9, color="#444444", x=0.01, ha="left", multialignment="left")
    return write_figure(figure, path)


def _styles(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    labels = list(dict.fromkeys([*ours, *theirs]))
    return [(label, _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]) for i, label in enumerate(labels)]


def _loss(value: float) -> str:
    if not np.isfinite(value):
        return "diverged"
    # Three decimals, as many as are known of the thesis's curves.
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def _top(quartiles: Mapping[str, np.ndarray], reference: Mapping[str, ReferenceCurve]) -> float:
    starts = [q[1, 0] for q in quartiles.values()]
    thesis = [loss for curve in reference.values() for _, loss in curve.points]
    known = max((x for x in (*starts, *thesis) if np.isfinite(x)), default=None)
    highest = max((float(q[np.isfinite(q)].max(initial=0)) for q in quartiles.values()), default=0.0)
    top = highest if known is None else max(known, min(highest, _HEADROOM * known))
    return 1.05 * top if top > 0 else 1.0


def _finish(
    axes: "Axes", title: str, *, below: float, legend_title: str | None = None, columns: int = 1
) -> None:
    from matplotlib.transforms import ScaledTranslation

    axes.set_title(title, fontsize=11, loc="left")
    # The labels of the x-axis take the same inches however high the axes are, and the legend begins there.
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.legend(
        title=legend_title,
        title_fontsize=9,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + ScaledTranslation(0, -below, figure.dpi_scale_trans),
        borderaxespad=0,
        frameon=False,
        fontsize=9,
        ncols=columns,
    )
