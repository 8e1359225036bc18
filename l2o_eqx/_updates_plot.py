"""The figure of what optimizers make of a gradient and its past, and the file that it is drawn from."""

import json
import textwrap
from collections.abc import Mapping, Sequence
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

_SHARES = (0.25, 0.5, 0.75)
_STATIC = ("tensor", "past")
_ARRAYS = ("steps", "pasts", "gradients", "updates", "gradient_units", "update_units")
Probes = Mapping[str, "UpdateProbes"]


def write_updates(probes: Probes, path: str | Path, *, title: str | None = None) -> None:
    """Writes probes as JSON: by name the fields of `UpdateProbes`, with six digits; null is NaN."""
    optimizers = {
        name: {field: getattr(one, field) for field in _STATIC}
        | {field: rounded(getattr(one, field)) for field in _ARRAYS}
        for name, one in probes.items()
    }
    write_text(path, dumps({"format": 1, "title": title, "optimizers": optimizers}) + "\n")


def rounded(values: Any) -> Any:
    """An array as lists of numbers with six digits."""
    values = np.asarray(values)
    if values.dtype.kind in "iu":
        return values.tolist()
    short = [float(f"{x:.6g}") for x in values.ravel().tolist()]
    return np.array(short).reshape(values.shape).tolist()


def read_updates(path: str | Path) -> dict[str, "UpdateProbes"]:
    """Reads what `write_updates` wrote.

    **Raises:** `ValueError` if the file is another one.
    """
    content = read_json(path, ["optimizers"], "updates")
    try:
        return {str(name): _probes_of(fields) for name, fields in content["optimizers"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}.") from None


def _probes_of(fields: Mapping[str, Any]) -> "UpdateProbes":
    import jax.numpy as jnp

    from ._probe_updates import UpdateProbes

    arrays: dict[str, Any] = {
        name: jnp.asarray(np.array(fields[name], float), int if name == "steps" else float)
        for name in _ARRAYS
    }
    sizes = tuple(len(arrays[name]) for name in ("steps", "pasts", "gradients"))
    if arrays["updates"].shape[:-1] != sizes:
        raise ValueError(f"there are updates of the shape {arrays['updates'].shape}, not of {sizes}")
    for name in ("gradient_units", "update_units"):
        wanted = (len(arrays["steps"]), arrays["updates"].shape[-1])
        if arrays[name].shape != wanted:
            raise ValueError(f"{name} has the shape {arrays[name].shape}, not {wanted}")
    return UpdateProbes(str(fields["tensor"]), int(fields["past"]), **arrays)


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


def plot_updates(probes: Probes, path: str | Path | None = None, *, title: str | None = None) -> "Figure":
    """Draws updates over gradients: a row for a step, a column for an optimizer, a line for a past.

    Lines are medians of the probes, bands their quartiles.

    **Arguments:**

    - `probes`: by the optimizer's name those of `probe_updates`, all with the same settings; or of
        `read_updates`. What a name has in parentheses is written below it.
    - `path`: where to write the figure, if anywhere.
    - `title`: the text above.

    **Returns:** the figure.

    **Raises:** `ValueError` if there are no probes, or none that has a number.
    """
    quartiles = {name: _quartiles(np.asarray(one.updates, float)) for name, one in probes.items()}
    if not any(np.isfinite(q).any() for q in quartiles.values()):
        raise ArgumentError("`plot_updates(probes)` has no finite update to draw.", argument="probes")
    first = next(iter(probes.values()))
    steps, columns = np.asarray(first.steps).tolist(), len(probes)
    figure, panels = new_figure(1.0 + 2.6 * columns, 1.9 + 1.9 * len(steps), len(steps), columns)
    panels = np.asarray(panels).reshape(len(steps), columns)
    top = _top([q[1] for q in quartiles.values()])
    for column, (name, one) in zip(panels.T, probes.items(), strict=True):
        for row, axes in enumerate(column):
            _draw(axes, one, quartiles[name][:, row], np.asarray(one.update_units, float)[row])
            axes.set_ylim(-top, top)
            axes.tick_params(labelleft=axes is panels[row, 0])
        head, _, rest = name.partition(" (")
        text = "\n".join([head, *textwrap.wrap(rest.removesuffix(")"), 38, break_on_hyphens=False)[:2]])
        column[0].set_title(text, fontsize=9, loc="left")
        column[-1].set_xlabel("current gradient / rms", fontsize=9)
    for step, axes in zip(steps, panels[:, 0], strict=True):
        axes.set_ylabel(f"step {step}\nupdate / its rms", fontsize=9)
    _explain(figure, panels[0, 0], first)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return write_figure(figure, path)


def _quartiles(updates: np.ndarray) -> np.ndarray:
    # Of the probes that have a number; NaN where none has.
    known = np.isfinite(updates)
    some = np.asarray(known.any(axis=-1, keepdims=True))
    found = np.nanquantile(np.where(known | ~some, np.where(some, updates, 0.0), np.nan), _SHARES, axis=-1)
    return np.where(some[..., 0], found, np.nan)


def _top(medians: Sequence[np.ndarray]) -> float:
    # One scale for all panels; an optimizer whose medians are far out leaves the picture.
    highest = [np.nanmax(np.abs(x)) for x in medians if np.isfinite(x).any()]
    top = min(max(highest), 3 * float(np.median(highest)))
    return 1.2 * top if top > 0 else 1.0


def _draw(axes: "Axes", probes: "UpdateProbes", quartiles: np.ndarray, units: np.ndarray) -> None:
    gradients = np.asarray(probes.gradients)
    axes.axhline(0, color="#999999", linewidth=0.7, zorder=1)
    axes.axvline(0, color="#999999", linewidth=0.7, zorder=1)
    for style, own in zip(_styles(probes.pasts), np.moveaxis(quartiles, 1, 0), strict=True):
        axes.fill_between(gradients, own[0], own[2], color=style["color"], alpha=0.15, linewidth=0, zorder=2)
        axes.plot(gradients, own[1], **style, zorder=3)
    axes.set_xlim(gradients.min(), gradients.max())
    known = units[np.isfinite(units) & (units > 0)]
    text = f"its rms: {np.median(known):.2g}" if known.size else "it does not move"
    place = {"transform": axes.transAxes, "ha": "right", "va": "top", "fontsize": 8, "zorder": 4}
    axes.text(0.97, 0.97, text, color="#333333", **place)


def _styles(pasts: Any) -> list[dict[str, Any]]:
    # Lines that coincide, as those of SGD, can all be seen.
    below = {"color": "#0072B2", "linewidth": 2.8, "linestyle": "-"}
    zero = {"color": "#000000", "linewidth": 1.5, "linestyle": ":"}
    above = {"color": "#D55E00", "linewidth": 1.8, "linestyle": (0, (5, 3))}
    return [zero if x == 0 else above if x > 0 else below for x in np.asarray(pasts).tolist()]


def _explain(figure: "Figure", axes: "Axes", probes: "UpdateProbes") -> None:
    pasts = np.asarray(probes.pasts).tolist()
    handles = [axes.plot([], [], **style)[0] for style in _styles(pasts)]
    labels = [f"last {probes.past} gradients: {f'{x:+g} rms' if x else 'zero'}" for x in pasts]
    count = probes.updates.shape[-1]
    what = (
        f"Each optimizer on runs of its own, from the same points. Lines: medians of {count} coordinates of "
        f"{probes.tensor}, one at a time; bands: quartiles.\nrms: root mean square of that coordinate's last "
        f"{probes.past} gradients (all, where there were fewer), and of its updates then. All else stays as "
        "it was in the run."
    )
    figure.legend(
        handles,
        labels,
        title=what,
        title_fontsize=8,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
