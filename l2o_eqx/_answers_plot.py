"""The figure of what the networks of an optimizer answer along its runs, and the file it is drawn from."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ._errors import ArgumentError
from ._figure import new_figure, write_figure
from ._updates_plot import read_json, rounded
from .files import dumps, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ._record_answers import AnswerRecord

_COLUMNS = 4
# Okabe and Ito's. Of more groups, those whose lines come first.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
_LOSS, _ANSWERED, _SEEN = "#000000", "#B34700", "#00507D"
# From so many steps on, a hundredth of them may leave the picture on either side.
_MANY = 50
# Positive numbers that span more than this are drawn on a log scale.
_WIDE = 30.0
_NAMES = ("groups", "seen_names", "answered_names")


def write_answers(record: "AnswerRecord", path: str | Path, *, title: str | None = None) -> None:
    """Writes a record as JSON: losses, names, and numbers with six digits by name; null is NaN."""
    told = record.answers
    content = {name: getattr(told, name) for name in _NAMES}
    content |= {
        "losses": rounded(record.losses),
        "seen": rounded(told.seen),
        "answered": rounded(told.answered),
        "symbols": told.symbols,
    }
    write_text(path, dumps({"format": 1, "title": title, **content}) + "\n")


def read_answers(path: str | Path) -> "AnswerRecord":
    """Reads what `write_answers` wrote.

    **Raises:** `ValueError` if the file is another one.
    """
    import jax.numpy as jnp

    from ._record_answers import AnswerRecord
    from .optimizers import Answers

    content = read_json(path, ("losses", "seen", "answered", *_NAMES), "answers")
    try:
        arrays = {
            name: jnp.asarray(np.array(content[name], float), float)
            for name in ("losses", "seen", "answered")
        }
        groups, seen, answered = (tuple(map(str, content[name])) for name in _NAMES)
        for field, own in (("seen", seen), ("answered", answered)):
            wanted = (*arrays["losses"].shape, len(own), len(groups))
            if arrays[field].shape != wanted or arrays["losses"].ndim != 2:
                raise ValueError(f"{field} has the shape {arrays[field].shape}, not {wanted}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}.") from None
    symbols = str(content.get("symbols", ""))
    told = Answers(groups, seen, answered, arrays["seen"], arrays["answered"], symbols)
    return AnswerRecord(arrays["losses"], told)


def plot_answers(
    record: "AnswerRecord", path: str | Path | None = None, *, title: str | None = None
) -> "Figure":
    """Draws the loss of runs, what networks answered and what they saw, over the steps.

    Lines are medians over objectives, one for each group, bands their quartiles. What never changes, and what
    depends on the step alone, is told below the panels.

    **Arguments:**

    - `record`: of `record_answers` or `read_answers`.
    - `path`: where to write the figure, if anywhere.
    - `title`: the text above.

    **Returns:** the figure.

    **Raises:** `ValueError` if there is nothing in it.
    """
    if not np.size(record.losses):
        raise ArgumentError("`plot_answers(record)` has no step to draw.", argument="record")
    every = [*_panels(record)]
    of_time = [name for name, values, color in every if color == _SEEN and _is_of_time(values)]
    found = [
        (name, (_loss_quartiles if color == _LOSS else _quartiles)(values), color)
        for name, values, color in every
        if name not in of_time
    ]
    panels = [(name, values, color) for name, values, color in found if color == _LOSS or _moves(values)]
    still = [name for name, values, color in found if color != _LOSS and not _moves(values)]
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = new_figure(2.9 * _COLUMNS, 1.6 + 1.75 * rows, rows, _COLUMNS)
    places = np.ravel(axes)
    for place, (name, values, color) in zip(places, panels, strict=False):
        _draw(place, values, is_loss=color == _LOSS)
        place.set_title(name, fontsize=8.5, loc="left", color=color)
    for place in places[len(panels) :]:
        place.set_visible(False)
    for place in places[max(0, len(panels) - _COLUMNS) : len(panels)]:
        place.tick_params(labelbottom=True)
        place.set_xlabel("inner step", fontsize=8)
    _explain(figure, places[0], record, still, of_time)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return write_figure(figure, path)


def _panels(record: "AnswerRecord") -> Iterator[tuple[str, np.ndarray, str]]:
    # Title, numbers (objectives, steps, groups), and color of the title.
    told = record.answers
    yield "loss", np.asarray(record.losses, float)[..., None], _LOSS
    for i, name in enumerate(told.answered_names):
        yield f"answer: {name}", np.asarray(told.answered, float)[:, :, i], _ANSWERED
    for i, name in enumerate(told.seen_names):
        yield f"seen: {name}", np.asarray(told.seen, float)[:, :, i], _SEEN


def _loss_quartiles(values: np.ndarray) -> np.ndarray:
    # Of all runs, as in all comparisons: one that has diverged is above all others.
    from ._comparison import _as_infinite, _quartiles

    found = _quartiles(_as_infinite(values))
    return np.where(np.isfinite(found), found, np.nan)


def _quartiles(values: np.ndarray) -> np.ndarray:
    # Over the objectives that have a number, of as many groups as there are colors; NaN where none has.
    values = np.where(np.isfinite(values), values, np.nan)[..., : len(_COLORS)]
    some = ~np.isnan(values).all(axis=0)
    found = np.nanquantile(np.where(some, values, 0.0), (0.25, 0.5, 0.75), axis=0)
    return np.where(some, found, np.nan)


def _is_of_time(values: np.ndarray) -> bool:
    # The same in all runs and groups, of which there are several, at every step.
    runs = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
    return (
        runs.shape[1] > 1 and len(values) > 1 and bool(np.allclose(runs, runs[:, :1], rtol=1e-5, atol=1e-6))
    )


def _moves(quartiles: np.ndarray) -> bool:
    medians = quartiles[1]
    known = np.where(np.isfinite(medians), medians, 0.0)
    unknown = np.isnan(medians)
    # By more than rounding.
    return bool(np.any(unknown != unknown[:1])) or not np.allclose(known, known[:1], rtol=1e-5, atol=1e-6)


def _draw(axes: "Axes", quartiles: np.ndarray, *, is_loss: bool) -> None:
    steps, medians = np.arange(quartiles.shape[1]), quartiles[1]
    colors = (_LOSS,) if is_loss else _COLORS
    for (low, middle, high), color in zip(np.moveaxis(quartiles, 2, 0), colors, strict=False):
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, middle, color=color, linewidth=1.3)
    axes.set_xlim(0, max(1, len(steps) - 1))
    axes.tick_params(labelsize=8)
    known = medians[np.isfinite(medians)]
    if known.size:
        _set_limits(axes, known, is_loss=is_loss, many=len(steps) >= _MANY)


def _set_limits(axes: "Axes", known: np.ndarray, *, is_loss: bool, many: bool) -> None:
    # A few first steps may be far from all others, and would squash them: these leave the picture.
    low, high = np.quantile(known, (0.01, 0.99)) if many and not is_loss else (known.min(), known.max())
    if not high > low:
        return
    if known.min() > 0 and (is_loss or high > _WIDE * low):
        margin = (high / low) ** 0.1
        axes.set_yscale("log")
        axes.set_ylim(low / margin, high * margin)
    else:
        margin = 0.15 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _explain(
    figure: "Figure", axes: "Axes", record: "AnswerRecord", still: list[str], of_time: list[str]
) -> None:
    groups = record.answers.groups
    shown = groups[: len(_COLORS)]
    handles = [axes.plot([], [], color=color)[0] for color, _ in zip(_COLORS, shown, strict=False)]
    more = f" {len(groups) - len(shown)} more are not shown." if len(groups) > len(shown) else ""
    each = "one for each tensor or group of tensors that the network answers for, in the colors below"
    if len(groups) == 1:
        each = f"of all {groups[0]} together" if groups[0] == "params" else f"of {groups[0]}"
        handles, shown = [], ()
    sentences = [
        f"Lines: medians over {len(record.losses)} objectives, {each}; bands: quartiles.{more}",
        f"Titles in orange: what it answers; in blue: what it sees. {record.answers.symbols}",
        f"The same at all steps, and not drawn: {', '.join(still)}." if still else "",
        f"Told by the step alone, and not drawn: {', '.join(of_time)}." if of_time else "",
    ]
    text = "\n".join(line for one in sentences for line in textwrap.wrap(one, 150))
    figure.legend(
        handles,
        shown,
        title=text,
        title_fontsize=8,
        loc="outside lower center",
        ncols=max(1, min(len(shown), _COLUMNS)),
        frameon=False,
        fontsize=9,
    )
