"""The figure of what optimizers make of a gradient and its past, and the file that it is drawn from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._errors import ArgumentError
from ._figure import new_figure, write_figure
from .files import dumps, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ._probe_updates import UpdateProbes

# Okabe and Ito's, from the lowest past to the highest; black for one of zero.
_BELOW, _ZERO, _ABOVE = ("#0072B2", "#56B4E9"), "#000000", ("#E69F00", "#D55E00")
_STATIC = ("names", "tensor", "past")
_ARRAYS = ("steps", "pasts", "gradients", "updates", "gradient_units", "update_units")


def write_updates(probes: "UpdateProbes", path: str | Path, *, title: str | None = None) -> None:
    """Writes probes as JSON: the fields of `UpdateProbes`, with six digits, and the title; null is NaN."""
    content = {name: getattr(probes, name) for name in _STATIC}
    content |= {name: rounded(getattr(probes, name)) for name in _ARRAYS}
    write_text(path, dumps({"format": 1, "title": title, **content}) + "\n")


def rounded(values: Any) -> Any:
    """An array as lists of numbers with six digits."""
    values = np.asarray(values)
    if values.dtype.kind in "iu":
        return values.tolist()
    short = [float(f"{x:.6g}") for x in values.ravel().tolist()]
    return np.array(short).reshape(values.shape).tolist()


def read_updates(path: str | Path) -> "UpdateProbes":
    """Reads what `write_updates` wrote.

    **Raises:** `ValueError` if the file is another one.
    """
    from ._probe_updates import UpdateProbes

    content = read_json(path, (*_STATIC, *_ARRAYS), "updates")
    try:
        arrays: Any = {name: np.array(content[name], float) for name in _ARRAYS}
        names = tuple(map(str, content["names"]))
        probes = UpdateProbes(names, str(content["tensor"]), int(content["past"]), **arrays)
        sizes = (len(names), len(probes.steps), len(probes.pasts), len(probes.gradients))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}.") from None
    if probes.updates.shape[:-1] != sizes:
        raise ValueError(f"{path} is damaged: updates of the shape {probes.updates.shape}, not of {sizes}.")
    return probes


def read_json(path: str | Path, names: Sequence[str], what: str) -> dict[str, Any]:
    """An object with these names in a file of JSON.

    **Raises:** `ValueError` if it is another one.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} is no file of {what}: it has no {missing[0]!r}.")
    return content


def plot_updates(
    probes: "UpdateProbes", path: str | Path | None = None, *, title: str | None = None
) -> "Figure":
    """Draws updates over gradients: a row for every step, a column for every optimizer, a line for every past.

    Lines are medians of the probes, bands their quartiles.

    **Arguments:**

    - `probes`: of `probe_updates`, or of `read_updates`. What an optimizer's name has in parentheses is
        written below it.
    - `path`: where to write the figure, if anywhere.
    - `title`: the text above.

    **Returns:** the figure.

    **Raises:** `ValueError` if no probe has a number.
    """
    updates = np.asarray(probes.updates, float)
    updates = np.where(np.isfinite(updates), updates, np.nan)
    if np.isnan(updates).all():
        raise ArgumentError("`plot_updates(probes)` has no finite update to draw.", argument="probes")
    steps = np.asarray(probes.steps).astype(int)
    columns, rows = len(probes.names), len(steps)
    figure, panels = new_figure(1.0 + 2.7 * columns, 1.9 + 2.0 * rows, rows, columns)
    panels = np.asarray(panels).reshape(rows, columns)
    quartiles = _quartiles(updates)
    top = _top(quartiles[1])
    for row in range(rows):
        for column in range(columns):
            units = np.asarray(probes.update_units, float)[column, row]
            _draw(panels[row, column], probes, quartiles[:, column, row], units, top)
        panels[row, 0].set_ylabel(f"step {steps[row]}\nupdate / its rms")
    for column, name in enumerate(probes.names):
        head, _, rest = name.partition(" (")
        text = f"{head}\n{_wrapped(rest.removesuffix(')'))}"
        panels[0, column].set_title(text, fontsize=9, loc="left")
        panels[-1, column].set_xlabel("current gradient / rms", fontsize=9)
    _explain(figure, panels[0, 0], probes, title)
    return write_figure(figure, path)


def _quartiles(updates: np.ndarray) -> np.ndarray:
    # Of the probes that have a number; NaN where none has.
    known = ~np.isnan(updates)
    filled = np.where(known.any(axis=-1, keepdims=True), updates, 0.0)
    found = np.nanquantile(filled, (0.25, 0.5, 0.75), axis=-1)
    return np.where(known.any(axis=-1), found, np.nan)


def _top(medians: np.ndarray) -> float:
    # One scale for all panels; an optimizer whose medians are far out leaves the picture.
    highest = np.nanmax(np.abs(medians), axis=(1, 2, 3))
    return 1.1 * float(min(np.nanmax(highest), 3 * np.nanmedian(highest)))


def _draw(axes: "Axes", probes: "UpdateProbes", quartiles: np.ndarray, units: np.ndarray, top: float) -> None:
    gradients = np.asarray(probes.gradients)
    axes.axhline(0, color="#999999", linewidth=0.7, zorder=1)
    axes.axvline(0, color="#999999", linewidth=0.7, zorder=1)
    for color, own in zip(_colors(probes.pasts), np.moveaxis(quartiles, 1, 0), strict=True):
        axes.fill_between(gradients, own[0], own[2], color=color, alpha=0.15, linewidth=0, zorder=2)
        axes.plot(gradients, own[1], color=color, linewidth=1.8, zorder=3)
    axes.set_xlim(gradients.min(), gradients.max())
    axes.set_ylim(-top, top)
    known = units[np.isfinite(units) & (units > 0)]
    text = f"its rms: {np.median(known):.2g}" if known.size else "does not move"
    axes.text(0.97, 0.95, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color="#555555")


def _colors(pasts: Any) -> list[str]:
    order = np.asarray(pasts, float)
    below, above = sorted(order[order < 0]), sorted(order[order > 0])
    places: dict[float, str] = {0.0: _ZERO}
    places |= {x: _BELOW[min(i, len(_BELOW) - 1)] for i, x in enumerate(below)}
    places |= {x: _ABOVE[::-1][min(i, len(_ABOVE) - 1)] for i, x in enumerate(reversed(above))}
    return [places[x] for x in order.tolist()]


def _wrapped(text: str, width: int = 34) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:2])


def _explain(figure: "Figure", axes: "Axes", probes: "UpdateProbes", title: str | None) -> None:
    colors = _colors(probes.pasts)
    handles = [axes.plot([], [], color=color, linewidth=1.8)[0] for color in colors]
    what = f"last {probes.past} gradients"
    labels = [f"{what} {f'{x:+g} rms' if x else 'zero'}" for x in np.asarray(probes.pasts).tolist()]
    count = probes.updates.shape[-1]
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        title=(
            f"Lines: medians of {count} coordinates of {probes.tensor}; bands: quartiles. rms: of a coordinate's "
            f"last {probes.past} gradients, and of the\nupdates that an optimizer gave for them; all see the "
            f"gradients of the run of {probes.names[0].partition(' (')[0]}. All other coordinates stay as they were."
        ),
        title_fontsize=8,
    )
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
