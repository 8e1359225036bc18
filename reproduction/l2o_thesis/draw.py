"""The pictures: many restarts, and the thesis's own numbers beside them."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from .build import rho
from .experiment import Results
from .facts import CURVES, HISTOGRAMS, Curve
from .figures import Figure, Panel, Scale
from .kept import replacing
from .statistics import histogram_counts, quartiles, share_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the colors of Okabe and Ito; the first three differ most also in gray.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = "os^Dv"
_BIN_NAMES = ("<0.5", "0.5–1", "1–1.5", "1.5–2", "2–2.5\n(chance)", "≥2.5")
_DASHED: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.1, "clip_on": False, "zorder": 5}
_DASHED |= {"markerfacecolor": "white", "markersize": 6, "markeredgewidth": 1.3}

# How many times as high as all starts and the thesis's curves a diverging one may lead the picture.
_HEADROOM = 1.5

_PANEL_INCHES = 5.4
_LETTERS_PER_INCH = 15

Shown = Mapping[str, Results]


def draw(
    figure: Figure, shown: Mapping[str, Shown], path: Path, *, asked: Mapping[str, int], scale: Scale
) -> bool:
    """Draws the panels of a figure that there is something to show in, in a row, with a caption.

    **Arguments:**

    - `figure`, `shown`: what it is about, and the results by panel and label.
    - `path`: where to write the picture; the suffix picks the format.
    - `asked`, `scale`: how many restarts there should be, by panel, and of which size, for the words.

    **Returns:** whether there was anything to draw.
    """
    # Not pyplot, which keeps figures alive and wants a display.
    from matplotlib.figure import Figure as Picture

    drawn = [panel for panel in figure.panels if shown[panel.name] or panel.graph is not None]
    if not drawn:
        return False
    width = _PANEL_INCHES * len(drawn)
    picture = Picture(figsize=(width, 4.8), layout="constrained")
    picture.set_layout_engine("constrained", w_pad=0.1)
    marks = [f"{scale.capitalize()} scale."] if any(shown.values()) else []
    for axes, panel in zip(np.atleast_1d(picture.subplots(1, len(drawn))), drawn, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        marks.append(_draw_panel(axes, panel, shown[panel.name], asked[panel.name]))
    # Panels of one kind mean the same; it is said once, and by the panel that has most to say.
    said = [m for m in dict.fromkeys(marks) if m and not any(m != o and o.startswith(m[:-1]) for o in marks)]
    caption = textwrap.fill(" ".join(said), round(_LETTERS_PER_INCH * width))
    picture.supxlabel(caption, fontsize=9, color="#444444", x=0.01, ha="left", multialignment="left")
    with replacing(path) as temporary:
        picture.savefig(temporary, dpi=150)
    return True


def _draw_panel(axes: "Axes", panel: Panel, results: Shown, asked: int) -> str:
    # Returns what the marks mean.
    if panel.graph is not None:
        return _draw_graph(axes, panel.title, panel.graph)
    numbers = sorted({len(r.losses) for r in results.values()})
    there = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    count = f"{there}{'' if numbers == [asked] else f' of {asked}'} restart{'s' * (asked != 1)}"
    axes.set_title(f"{panel.name}: {panel.title}, {count}", fontsize=11, loc="left")
    if panel.histogram:
        return _draw_histogram(axes, results, HISTOGRAMS.get(panel.name, {}))
    theirs = CURVES.get(panel.name, {})
    same = {k: c for k, c in theirs.items() if k in results and results[k].length == c.steps}
    return _draw_curves(axes, results, same)


def _draw_graph(axes: "Axes", title: str, largest: float) -> str:
    x, y = rho(largest)
    axes.plot(x, y, color=_COLORS[0], linewidth=1.8)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set(xlim=(x[0], x[-1]), xlabel="∇", ylabel="ρ(∇)")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4), useMathText=True)
    return ""


def _draw_curves(axes: "Axes", results: Shown, theirs: Mapping[str, Curve]) -> str:
    found = {label: quartiles(r.losses) for label, r in results.items()}
    top = _top(found, theirs)
    for i, (label, ours) in enumerate(found.items()):
        color = _COLORS[i % len(_COLORS)]
        steps, shown = results[label].steps, np.minimum(ours, 10 * top)
        axes.fill_between(steps, shown[0], shown[2], color=color, alpha=0.18, linewidth=0, zorder=2)
        (line,) = axes.plot(steps, shown[1], color=color, linewidth=2, zorder=4)
        said = _loss(ours[1, -1])
        if label in theirs:
            said += f", thesis {_loss(theirs[label].final)}"
            points, marker = theirs[label].points, _MARKERS[i % len(_MARKERS)]
            axes.plot(list(points), list(points.values()), color=color, marker=marker, **_DASHED)
        line.set_label(f"{label}: {said}")
    longest = max(1, *(r.length - 1 for r in results.values()))
    axes.set(xlim=(0, longest), ylim=(0, top), xlabel="inner step", ylabel="loss")
    _legend(axes, below=0.55, title="loss at the end")
    thesis = "; hollow markers: the thesis's curve, of a single run or the best of ten" if theirs else ""
    return f"Line: median over restarts; band: quartiles{thesis}."


def _loss(value: float) -> str:
    if not np.isfinite(value):
        return "diverged"
    # Three decimals, as many as are known of the thesis's curves.
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def _top(found: Mapping[str, Float[np.ndarray, "three kept"]], theirs: Mapping[str, Curve]) -> float:
    # What diverges leaves the picture upwards.
    starts = [q[1, 0] for q in found.values()]
    thesis = [loss for curve in theirs.values() for loss in curve.points.values()]
    known = max((x for x in (*starts, *thesis) if np.isfinite(x)), default=None)
    highest = max(float(q[np.isfinite(q)].max(initial=0)) for q in found.values())
    top = highest if known is None else max(known, min(highest, _HEADROOM * known))
    return 1.05 * top if top > 0 else 1.0


def _draw_histogram(axes: "Axes", results: Shown, theirs: Mapping[str, tuple[int, ...]]) -> str:
    bins = np.arange(len(_BIN_NAMES))
    labels = list(dict.fromkeys([*results, *theirs]))
    width = 0.84 / sum((label in results) + (label in theirs) for label in labels)
    left = bins - 0.42 + width / 2
    for label, color in zip(labels, _COLORS, strict=False):
        if label in results:
            _draw_shares(axes, left, width, results[label].final(), color, label)
            left = left + width
        if label in theirs:
            shares = np.array(theirs[label]) / sum(theirs[label])
            # Within its own width, so that edges of neighbors do not lie on each other.
            style: dict[str, Any] = {"facecolor": "white", "edgecolor": color, "linewidth": 1.3, "zorder": 3}
            axes.bar(left, shares, 0.8 * width, **style, label=f"{label}, thesis")
            left = left + width
    axes.set_xticks(bins, _BIN_NAMES)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    top = min(1.02, 1.05 * axes.dataLim.ymax)
    axes.set(xlim=(-0.6, len(bins) - 0.4), ylim=(0, top), xlabel="final loss", ylabel="share of restarts")
    _legend(axes, below=0.72, columns=2)
    thesis = "; hollow bars: the thesis's 100 runs" if theirs else ""
    return f"Bars: share of restarts; whiskers: 95 % intervals (Wilson){thesis}."


def _draw_shares(axes: "Axes", left: Any, width: float, losses: Any, color: str, label: str) -> None:
    counts = histogram_counts(losses)
    shares = [share_interval(count, sum(counts)) for count in counts]
    values, low, high = np.array([[s.value, s.low, s.high] for s in shares]).T
    lost = int(np.sum(~np.isfinite(losses)))
    label += f", {lost} not finite" if lost else ""
    axes.bar(left, values, width, color=color, zorder=3, label=label)
    # Rounding takes some ends a little beyond the share.
    ends = np.maximum([values - low, high - values], 0)
    style: dict[str, Any] = {"fmt": "none", "ecolor": "#333333", "elinewidth": 1, "zorder": 4}
    axes.errorbar(left, values, ends, capsize=min(2.5, 14 * width), **style)


def _legend(axes: "Axes", *, below: float, title: str | None = None, columns: int = 1) -> None:
    from matplotlib.transforms import ScaledTranslation

    # The labels of the x-axis take the same inches however high the axes are, and the legend begins there.
    figure = axes.get_figure(root=True)
    assert figure is not None
    place = axes.transAxes + ScaledTranslation(0, -below, figure.dpi_scale_trans)
    style: dict[str, Any] = {"fontsize": 9, "title_fontsize": 9, "frameon": False, "borderaxespad": 0}
    style |= {"loc": "upper left", "alignment": "left", "bbox_to_anchor": (0, 0), "bbox_transform": place}
    axes.legend(title=title, ncols=columns, **style)
