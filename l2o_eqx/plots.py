"""Figures of comparisons, trainings, objectives and optimizers. The first one drawn imports Matplotlib."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._answers_plot import plot_answers as plot_answers
from ._answers_plot import read_answers as read_answers
from ._answers_plot import write_answers as write_answers
from ._card_plot import plot_card as plot_card
from ._errors import ArgumentError
from ._figure import explain, legend_above, new_figure, write_figure
from ._fit_plot import fit_curves as fit_curves
from ._fit_plot import plot_fits as plot_fits
from ._fit_plot import read_fits as read_fits
from ._fit_plot import write_fits as write_fits
from ._objective_plot import plot_objective as plot_objective
from ._updates_plot import plot_updates as plot_updates
from ._updates_plot import read_updates as read_updates
from ._updates_plot import write_updates as write_updates
from .files import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colors of Okabe and Ito, which color-blind people can tell apart.
_EMPHASIZED = ("#D55E00", "#000000", "#7F3C8D")
_OTHERS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_DASHES = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
# Hand-designed optimizers in the order of their colors and dashes.
_KNOWN = ("Adam", "momentum", "Muon", "Nesterov", "SGD", "RMSprop")
_KNOWN += ("AdamW", "Lion", "L-BFGS", "line search", "untrained", "random search")
_FLOOR = 1e-12
# Fewer super epochs than these are drawn as dots.
_WITH_DOTS = 30


def plot_curves(
    curves: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    title: str | None = None,
    ylabel: str = "loss",
    emphasize: Iterable[str] = ("learned",),
    several: Iterable[str] = (),
) -> "Figure":
    """Draws losses over inner steps: the median as a line, the quartiles as a band, on a log scale; on a
    linear one where most losses are below zero.

    **Arguments:**

    - `curves`: of `Comparison.curves`: by name, the quartiles (q25, median, q75) at every step.
    - `path`: where to write the figure, if anywhere; the suffix picks the format.
    - `title`, `ylabel`: the texts.
    - `emphasize`: the names to draw boldly, in front of the others.
    - `several`: the names of those that evaluate f more than once a step, for a mark and a note.

    **Returns:** the figure.

    **Raises:** `ValueError` if there are no curves.
    """
    if not curves:
        raise ArgumentError("`plot_curves(curves)` needs at least one curve. Got none.", argument="curves")
    figure, axes = new_figure(7.5, 4.8)
    marked = {*several} & {*curves}
    arrays = {n + "*" * (n in marked): np.asarray(quartiles, float) for n, quartiles in curves.items()}
    best_first = sorted(arrays, key=lambda name: _final(arrays[name]))
    styles = _styles(list(arrays), set(emphasize))
    bottom, top = _scale_losses(axes, arrays.values())
    for name in best_first:
        _draw_curve(axes, name, arrays[name], styles[name], bottom, top)
    if axes.get_yscale() == "log":
        _label_decades(axes)
    axes.set_xlim(0, max(1, *(q.shape[1] - 1 for q in arrays.values())))
    axes.set_xlabel("inner step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title, fontsize=11, loc="left")
    axes.legend(
        title="median at the end",
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        fontsize=10,
    )
    leaves = any(
        np.any(np.nan_to_num(q[1], nan=np.inf, posinf=np.inf) > axes.get_ylim()[1]) for q in arrays.values()
    )
    explain(
        figure,
        "Line: median of all runs. Band: their middle half, from 25 % to 75 %.",
        _thick(styles),
        "What leaves the picture at the top is worse than any start." if leaves else "",
        "*: evaluates f several times a step." if marked else "",
    )
    return write_figure(figure, path)


def plot_families(
    families: Mapping[str, Mapping[str, Any]],
    path: str | Path | None = None,
    *,
    title: str | None = None,
    emphasize: Iterable[str] = ("learned",),
) -> "Figure":
    """Draws the losses on several families, one panel each, with one legend: medians, on a log scale.

    **Arguments:**

    - `families`: by name, the curves as of `plot_curves`.
    - `path`, `title`, `emphasize`: as of `plot_curves`.

    **Returns:** the figure.

    **Raises:** `ValueError` if there are no families.
    """
    if not families:
        raise ArgumentError("`plot_families(families)` needs at least one. Got none.", argument="families")
    names = list(dict.fromkeys(name for curves in families.values() for name in curves))
    styles = _styles(names, set(emphasize))
    columns = min(4, len(families))
    rows = -(-len(families) // columns)
    figure, axes = new_figure(1.6 + 3.2 * columns, 0.8 + 2.6 * rows, rows, columns)
    panels = np.atleast_1d(axes).ravel()
    for panel, (family, curves) in zip(panels, families.items(), strict=False):
        arrays = {name: np.asarray(quartiles, float) for name, quartiles in curves.items()}
        _, top = _scale_losses(panel, arrays.values())
        for name in sorted(arrays, key=lambda name: _final(arrays[name])):
            style = {**styles[name], "label": None}
            panel.plot(np.clip(arrays[name][1], None, top), **style)
        panel.set_title(family, fontsize=10, loc="left")
    for panel in panels[: len(families)][-columns:]:
        panel.set_xlabel("inner step")
        panel.tick_params(labelbottom=True)
    for panel in panels[::columns]:
        panel.set_ylabel("loss")
    for panel in panels[len(families) :]:
        panel.set_visible(False)
    handles = [panels[0].plot([], [], **{**styles[name], "label": name})[0] for name in names]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    explain(figure, "Line: median of all runs on that family.", _thick(styles))
    return write_figure(figure, path)


def plot_training(metrics: Mapping[str, Any], path: str | Path | None = None) -> "Figure":
    """Draws how a meta-training went: losses, the meta-loss, and the norm of the meta-gradient; or how far a
    policy is from the controllers that it is fitted to.

    **Arguments:**

    - `metrics`: of `MetaSolution.metrics`, or from `callbacks.read_metrics`: one row per super epoch, or per
        `super_epoch` that they name, and a column per restart if there are several; these are drawn thin,
        their median bold. Of super epochs of one step the meta-loss is drawn in place of the last loss.
    - `path`: where to write the figure, if anywhere.

    **Returns:** the figure.
    """
    one_step = np.array_equal(metrics["mean_loss"], metrics["final_loss"], equal_nan=True)
    apart = "meta_loss" in metrics and not one_step and "teacher_loss" not in metrics
    figure, axes = new_figure(7.5, 6.0 + 1.6 * apart, rows=2 + apart)
    losses, norms = axes[0], axes[-1]
    epochs = metrics.get("super_epoch", 1 + np.arange(len(metrics["mean_loss"])))
    _draw_metric(losses, epochs, metrics["mean_loss"], _OTHERS[0], "mean over the steps")
    if apart:
        _draw_metric(axes[1], epochs, metrics["meta_loss"], "#333333", None)
        axes[1].set_ylabel("meta-loss")
    if one_step and "meta_loss" in metrics:
        # Of super epochs of one step; what counts comes after it.
        _draw_metric(losses, epochs, metrics["meta_loss"], _EMPHASIZED[0], "meta-loss")
    else:
        _draw_metric(losses, epochs, metrics["final_loss"], _EMPHASIZED[0], "last step")
    losses.set_ylabel("loss in training")
    if "teacher_loss" in metrics:
        # Of a policy search, which has no meta-gradient.
        _draw_metric(losses, epochs, metrics["teacher_loss"], "#333333", "controllers")
        _draw_metric(norms, epochs, metrics["disagreement"], "#333333", None)
        norms.set_ylabel("policy from controllers\n(nats per step)")
    else:
        _draw_metric(norms, epochs, metrics["grad_norm"], "#333333", None)
        norms.set_ylabel("norm of meta-gradient")
    legend_above(losses)
    explain(figure, *_training_notes(metrics, np.asarray(epochs)))
    norms.set_xlabel("super epoch")
    norms.xaxis.get_major_locator().set_params(integer=True)
    for one in axes:
        _log_if_positive(one)
    return write_figure(figure, path)


def plot_pretraining(losses: Any, path: str | Path | None = None) -> "Figure":
    """Draws the losses of a pretraining: each update's thin, medians of neighbors bold.

    **Arguments:**

    - `losses`: of `PretrainSolution`, or from `read_pretraining`; with restarts, the bold line is that of
        their medians.
    - `path`: where to write the figure, if anywhere.

    **Returns:** the figure.
    """
    figure, axes = new_figure(7.5, 4.2)
    rows = np.atleast_2d(np.asarray(losses, float))
    rows = np.where(np.isfinite(rows), rows, np.nan)
    updates = 1 + np.arange(rows.shape[1])
    axes.plot(updates, rows.T, color=_OTHERS[0], linewidth=0.6, alpha=0.35)
    width = max(1, len(updates) // 50)
    neighbors = np.lib.stride_tricks.sliding_window_view(np.median(rows, axis=0), width)
    middle = updates[: len(neighbors)] + (width - 1) / 2
    axes.plot(middle, np.median(neighbors, axis=1), color=_OTHERS[0], linewidth=2)
    each = "each update of each restart" if len(rows) > 1 else "each update"
    of_restarts = " of the restarts' medians" if len(rows) > 1 else ""
    explain(figure, f"Thin: {each}. Thick: median over {width} neighboring updates{of_restarts}.")
    axes.set_ylabel("loss in pretraining")
    axes.set_xlabel("update")
    _log_if_positive(axes)
    return write_figure(figure, path)


def read_curves(path: str | Path) -> dict[str, np.ndarray]:
    """Reads what `Comparison.write_curves` wrote.

    **Arguments:**

    - `path`: the CSV file.

    **Returns:** the curves by name, as `plot_curves` takes them.

    **Raises:** `ValueError` if the file is another one.
    """
    rows: dict[str, list[list[float]]] = {}
    for row in read_rows(path, ["optimizer", "step", "q25", "median", "q75"], "curves"):
        values = [float(row[column]) for column in ("q25", "median", "q75")]
        rows.setdefault(row["optimizer"], []).append(values)
    return {name: np.array(values).T for name, values in rows.items()}


def read_pretraining(path: str | Path) -> np.ndarray:
    """Reads what `PretrainSolution.write_losses` wrote.

    **Arguments:**

    - `path`: the CSV file.

    **Returns:** the losses, as `plot_pretraining` takes them.

    **Raises:** `ValueError` if the file is another one.
    """
    rows: dict[str, list[float]] = {}
    for row in read_rows(path, ["restart", "update", "loss"], "a pretraining"):
        rows.setdefault(row["restart"], []).append(float(row["loss"]))
    losses = np.array(list(rows.values()))
    return losses[0] if len(losses) == 1 else losses


def _styles(names: list[str], emphasized: set[str]) -> dict[str, dict[str, Any]]:
    bold = [name for name in names if name in emphasized]
    plain = [name for name in names if name not in emphasized]
    styles: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(bold):
        color = _EMPHASIZED[i % len(_EMPHASIZED)]
        styles[name] = {"color": color, "linewidth": 2.6, "linestyle": "-", "zorder": 5}
    # The same in all pictures, whatever else is in them.
    known = [name for name in plain if name.rstrip("*") in _KNOWN]
    others = [name for name in plain if name not in known]
    places = [_KNOWN.index(name.rstrip("*")) for name in known]
    free = (i for i in range(len(_KNOWN) + len(others)) if i not in places)
    for i, name in zip([*places, *free], [*known, *others], strict=False):
        # Beyond as many as there are colors, each color comes again with other dashes.
        color, dashes = _OTHERS[i % len(_OTHERS)], _DASHES[(i + i // len(_OTHERS)) % len(_DASHES)]
        styles[name] = {"color": color, "linewidth": 1.5, "linestyle": dashes, "zorder": 3}
    return styles


def _thick(styles: Mapping[str, Mapping[str, Any]]) -> str:
    names = [name for name, style in styles.items() if style["linewidth"] > 2]
    return f"Thick: {', '.join(names)}." if names else ""


def _draw_curve(
    axes: "Axes", name: str, quartiles: np.ndarray, style: dict[str, Any], bottom: float | None, top: float
) -> None:
    # What diverged leaves the picture upwards; on a log scale zero and below leave it downwards.
    shown = np.clip(np.nan_to_num(quartiles, nan=np.inf, posinf=np.inf), bottom, top)
    steps = np.arange(quartiles.shape[1])
    axes.fill_between(
        steps,
        shown[0],
        shown[2],
        color=style["color"],
        alpha=0.2 if style["zorder"] > 3 else 0.07,
        linewidth=0,
        zorder=style["zorder"] - 2,
    )
    final = _final(quartiles)
    value = f"{final:.3g}" if np.isfinite(final) else "diverged"
    axes.plot(steps, shown[1], label=f"{name}  {value}", **style)


def _final(quartiles: np.ndarray) -> float:
    final = float(quartiles[1, -1])
    return final if np.isfinite(final) else np.inf


def _scale_losses(axes: "Axes", curves: Iterable[np.ndarray]) -> tuple[float | None, float]:
    # Logarithmic, but for losses that are below zero most of the time; between what curves are clipped to.
    curves = list(curves)
    medians = np.concatenate([q[1][np.isfinite(q[1])] for q in curves])
    if medians.size and np.mean(medians < 0) > 0.5:
        lows, starts = (np.concatenate(x) for x in zip(*((q[0], q[:, 0]) for q in curves), strict=True))
        low, high = np.min(lows[np.isfinite(lows)]), _highest(starts, medians)
        margin = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        return None, high + 10 * margin
    low, high = _limits(curves)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    return _FLOOR / 10, 10 * high


def _highest(starts: np.ndarray, medians: np.ndarray) -> float:
    known = starts[np.isfinite(starts)]
    return float(np.max(known) if known.size else np.nanmax(medians))


def _limits(curves: Iterable[np.ndarray]) -> tuple[float, float]:
    # Up to the highest starting point, so that one that diverges does not squash the rest.
    curves = [np.where(np.isfinite(q) & (q > 0), q, np.nan) for q in curves]
    starts = np.concatenate([q[:, 0] for q in curves])
    medians = np.concatenate([q[1] for q in curves])
    lows = np.concatenate([q[0] for q in curves])
    if np.all(np.isnan(medians)):
        return _FLOOR, 1.0
    high = _highest(starts, medians)
    # The lower quartile may dive on a few steps; it may take a factor of ten below the medians.
    low = max(np.nanmin(lows), np.nanmin(medians) / 10) if np.any(np.isfinite(lows)) else high / 10
    low, high = max(float(low), _FLOOR), max(float(high), 10 * _FLOOR)
    return min(low, high / 3) / 1.5, high * 2


def _training_notes(metrics: Mapping[str, Any], epochs: np.ndarray) -> list[str]:
    dot = "Dot" if len(epochs) < _WITH_DOTS else "Value"
    one_each = np.all(np.diff(epochs, prepend=0) <= 1)
    which = "each super epoch" if one_each else f"the super epochs since the {dot.lower()} before"
    lines = ["Thin: one restart each. Thick: their median."] if np.ndim(metrics["mean_loss"]) > 1 else []
    lines.append(f"{dot}: mean over the objectives of {which}.")
    if "teacher_loss" in metrics:
        return [*lines, "Controllers are what the policy learns from; their loss is a mean over the steps."]
    return [*lines, "Objectives are new each time, which makes lines rough."]


def _draw_metric(axes: "Axes", epochs: Any, values: Any, color: str, label: str | None) -> None:
    values = np.asarray(values, float)
    values = np.where(np.isfinite(values), values, np.nan)
    marker = "o" if len(values) < _WITH_DOTS else None
    middle = values
    if values.ndim > 1:
        axes.plot(epochs, values, color=color, linewidth=0.6, alpha=0.35)
        middle = np.median(values, axis=1)
    axes.plot(epochs, middle, color=color, linewidth=2, label=label, marker=marker, markersize=3.5)


def _log_if_positive(axes: "Axes") -> None:
    drawn = np.concatenate([np.ravel(line.get_ydata()) for line in axes.lines])
    drawn = drawn[np.isfinite(drawn)]
    # Between close numbers a log scale may have no label.
    if np.any(drawn > 0) and np.min(drawn) >= 0 and np.max(drawn) > 5 * np.min(drawn):
        axes.set_yscale("log")
        _label_decades(axes)


def _label_decades(axes: "Axes") -> None:
    # Where there are but one or two powers of ten, 2 and 5 times them are labeled, too.
    low, high = axes.get_ylim()
    few = high / low < 200

    def between(value: Any, position: Any) -> str:
        del position
        digit = round(value / 10.0 ** np.floor(np.log10(value) + 1e-9))
        return f"{value:g}" if few and digit in (2, 5) else ""

    axes.yaxis.set_minor_formatter(between)
    if few:
        axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
