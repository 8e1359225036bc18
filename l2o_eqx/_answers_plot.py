"""The figure of what the networks of an optimizer answer along its runs, and the file it is drawn from."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_NAMES = ("groups", "seen_names", "answered_names")


def write_answers(record: "AnswerRecord", path: str | Path, *, title: str | None = None) -> None:
    """Writes a record as JSON: losses, names, and numbers with six digits by name; null is NaN."""
    told = record.answers
    content = {name: getattr(told, name) for name in _NAMES}
    content |= {
        "losses": rounded(record.losses),
        "seen": rounded(told.seen),
        "answered": rounded(told.answered),
    }
    write_text(path, dumps({"format": 1, "title": title, **content}) + "\n")


def read_answers(path: str | Path) -> "AnswerRecord":
    """Reads what `write_answers` wrote.

    **Raises:** `ValueError` if the file is another one.
    """
    from ._record_answers import AnswerRecord
    from .optimizers import Answers

    content = read_json(path, ("losses", "seen", "answered", *_NAMES), "answers")
    try:
        arrays: Any = {name: np.array(content[name], float) for name in ("losses", "seen", "answered")}
        groups, *names = (tuple(map(str, content[name])) for name in _NAMES)
        for field, own in zip(("seen", "answered"), names, strict=True):
            wanted = (*arrays["losses"].shape, len(own), len(groups))
            if arrays[field].shape != wanted or arrays["losses"].ndim != 2:
                raise ValueError(f"{field} has the shape {arrays[field].shape}, not {wanted}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}.") from None
    told = Answers(groups, *names, seen=arrays["seen"], answered=arrays["answered"])
    return AnswerRecord(arrays["losses"], told)


def plot_answers(
    record: "AnswerRecord", path: str | Path | None = None, *, title: str | None = None
) -> "Figure":
    """Draws what networks answered over the steps of runs, with the loss before it and what they saw behind.

    Lines are medians over objectives, one for each group, bands their quartiles.

    **Arguments:**

    - `record`: of `record_answers` or `read_answers`.
    - `path`: where to write the figure, if anywhere.
    - `title`: the text above.

    **Returns:** the figure.

    **Raises:** `ValueError` if there is nothing in it.
    """
    panels = [*_panels(record)]
    if not record.losses.size:
        raise ArgumentError("`plot_answers(record)` has no step to draw.", argument="record")
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = new_figure(2.9 * _COLUMNS, 1.3 + 1.75 * rows, rows, _COLUMNS)
    places = np.ravel(axes)
    for place, (name, values, color) in zip(places, panels, strict=False):
        _draw(place, values)
        place.set_title(name, fontsize=8.5, loc="left", color=color)
    for place in places[len(panels) :]:
        place.set_visible(False)
    for place in places[max(0, len(panels) - _COLUMNS) : len(panels)]:
        place.tick_params(labelbottom=True)
        place.set_xlabel("inner step", fontsize=9)
    _explain(figure, places[0], record)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return write_figure(figure, path)


_LOSS, _ANSWERED, _SEEN = "#000000", "#B34700", "#00507D"


def _panels(record: "AnswerRecord") -> Iterator[tuple[str, np.ndarray, str]]:
    # Title, numbers (objectives, steps, groups), and color of the title.
    told = record.answers
    yield "loss", np.asarray(record.losses, float)[..., None], _LOSS
    for i, name in enumerate(told.answered_names):
        yield f"answer: {name}", np.asarray(told.answered, float)[:, :, i], _ANSWERED
    for i, name in enumerate(told.seen_names):
        yield f"seen: {name}", np.asarray(told.seen, float)[:, :, i], _SEEN


def _draw(axes: "Axes", values: np.ndarray) -> None:
    values = np.where(np.isfinite(values), values, np.nan)[..., : len(_COLORS)]
    some = ~np.isnan(values).all(axis=0)
    quartiles = np.nanquantile(np.where(some, values, 0.0), (0.25, 0.5, 0.75), axis=0)
    quartiles = np.where(some, quartiles, np.nan)
    steps = np.arange(values.shape[1])
    single = values.shape[-1] == 1
    for group, color in zip(range(values.shape[-1]), _COLORS, strict=False):
        low, middle, high = quartiles[..., group]
        color = "#333333" if single and axes.get_subplotspec().num1 == 0 else color
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, middle, color=color, linewidth=1.3)
    finite = quartiles[np.isfinite(quartiles)]
    # What is positive and spans more than two decades.
    if finite.size and finite.min() > 0 and finite.max() / finite.min() > 100:
        axes.set_yscale("log")
    axes.set_xlim(0, max(1, len(steps) - 1))
    axes.tick_params(labelsize=8)


def _explain(figure: "Figure", axes: "Axes", record: "AnswerRecord") -> None:
    groups = record.answers.groups
    shown = groups[: len(_COLORS)]
    handles = [axes.plot([], [], color=c)[0] for c, _ in zip(_COLORS, shown, strict=False)]
    left_out = f"; {len(groups) - len(shown)} more are not shown" if len(groups) > len(shown) else ""
    what = (
        f"Lines: medians over {len(record.losses)} objectives, one line for each tensor or group of them"
        f"{left_out}; bands: quartiles. Orange titles: what the network answers; blue ones: what it sees."
    )
    figure.legend(
        handles,
        shown,
        title=what,
        title_fontsize=8,
        loc="outside lower center",
        ncols=min(len(shown), _COLUMNS),
        frameon=False,
        fontsize=9,
    )
