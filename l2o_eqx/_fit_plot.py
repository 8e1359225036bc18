"""What learners make of curves that they see a few points of: their fits, a file of them, and the figure."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._errors import ArgumentError
from ._figure import explain, new_figure, write_figure
from .files import read_rows

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .objectives import AbstractObjectiveFamily, FewShot
    from .optimizers import AbstractOptimizer

# By task, the points (x, y) of every series: ("support", 0), ("query", 0), and (learner, steps taken).
Series = dict[tuple[str, int], np.ndarray]
Fits = list[Series]
_COLUMNS = ["task", "series", "steps", "x", "y"]
_GRID = 200
# Okabe and Ito's, from before the first step to after the last one.
_STYLES = (
    {"color": "#7F7F7F", "linestyle": ":", "linewidth": 1.4},
    {"color": "#56B4E9", "linestyle": "--", "linewidth": 1.6},
    {"color": "#D55E00", "linestyle": "-", "linewidth": 2.0},
)


def fit_curves(
    learners: Mapping[str, "AbstractOptimizer"],
    family: "FewShot",
    *,
    steps: Sequence[int] = (0, 1, 10),
    num_tasks: int = 2,
    key: "PRNGKeyArray",
) -> Fits:
    """Lets learners adapt to curves, and says what their models answer all along these.

    **Arguments:**

    - `learners`: by name; as `adapt` takes them.
    - `family`: whose tasks are curves, such as `objectives.Sinusoid`: its model maps `(1,)` to `(1,)`, both
        sets of a task are pairs of arrays of shape `(points, 1)`. The query set is drawn as the truth: give
        it many points.
    - `steps`: how many are taken, for each a curve; 0 is the start.
    - `num_tasks`: how many are drawn.
    - `key`: draws them.

    **Returns:** by task, the points (x, y) of every series: `("support", 0)`, `("query", 0)`, and
    `(name, steps)` of every learner.

    **Raises:** `ValueError` for tasks that are no curves.
    """
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from ._adapt import adapt

    if not are_curves(family):
        raise ArgumentError(
            "`fit_curves(family=...)`: its tasks are no curves; support and query set must be pairs of "
            "arrays of shape (points, 1).",
            argument="family",
            given=family,
        )
    fits = []
    for k in jr.split(key, num_tasks):
        task = family.sample(k)
        low, high = (float(reach(task.query[0])) for reach in (jnp.min, jnp.max))
        grid = jnp.linspace(low, high, _GRID)[:, None]
        series = {("support", 0): _points(*task.support), ("query", 0): _points(*task.query)}
        for name, learner in learners.items():
            for count in steps:
                model = adapt(learner, task, steps=count, key=k)
                series[name, count] = _points(grid, jax.vmap(model)(grid))
        fits.append(series)
    return fits


def are_curves(family: "AbstractObjectiveFamily") -> bool:
    """Whether the tasks of a family are curves, as `fit_curves` needs them; nothing is computed."""
    import equinox as eqx
    import jax
    import jax.random as jr

    from .objectives import FewShot

    if not isinstance(family, FewShot):
        return False
    task = eqx.filter_eval_shape(family.sample, jr.key(0))
    sets = (task.support, task.query)
    return all(
        isinstance(points, tuple) and [x.shape[1:] for x in jax.tree.leaves(points)] == [(1,), (1,)]
        for points in sets
    )


def _points(x: Any, y: Any) -> np.ndarray:
    x, y = np.ravel(x), np.ravel(y)
    order = np.argsort(x)
    return np.stack([x[order], y[order]])


def write_fits(fits: Fits, path: str | Path) -> None:
    """Writes fits as CSV: `task,series,steps,x,y`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for number, task in enumerate(fits):
            for (name, steps), points in task.items():
                writer.writerows([number, name, steps, *point] for point in points.T.tolist())


def read_fits(path: str | Path) -> Fits:
    """Reads what `write_fits` wrote.

    **Raises:** `ValueError` if the file is another one.
    """
    found: dict[int, dict[tuple[str, int], list[list[float]]]] = {}
    for row in read_rows(path, _COLUMNS, "fits"):
        series = found.setdefault(int(row["task"]), {})
        point = [float(row["x"]), float(row["y"])]
        series.setdefault((row["series"], int(row["steps"])), []).append(point)
    return [{name: np.array(points).T for name, points in found[i].items()} for i in sorted(found)]


def plot_fits(fits: Fits, path: str | Path | None = None, *, title: str | None = None) -> "Figure":
    """Draws what learners make of curves: a row of axes for every task, a column for every learner.

    **Arguments:**

    - `fits`: of `fit_curves` or `read_fits`.
    - `path`: where to write the figure, if anywhere.
    - `title`: the text above.

    **Returns:** the figure.

    **Raises:** `ValueError` if there are none.
    """
    if not fits:
        raise ArgumentError("`plot_fits(fits)` needs at least one task. Got none.", argument="fits")
    names = list(dict.fromkeys(name for name, _ in fits[0] if name not in ("support", "query")))
    figure, axes = new_figure(1.5 + 4.0 * len(names), 0.6 + 2.9 * len(fits), len(fits), len(names))
    axes = np.asarray(axes).reshape(len(fits), len(names))
    for row, task in zip(axes, fits, strict=True):
        for one, name in zip(row, names, strict=True):
            _draw(one, task, name)
    for one, name in zip(axes[0], names, strict=True):
        one.set_title(name, fontsize=11, loc="left")
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=10)
    explain(
        figure,
        "Row: one unseen task. Triangles: the points that a learner sees. Black line: the right answers.",
        "Other lines: its own answers, before any step and after some.",
    )
    return write_figure(figure, path)


def _draw(axes: "Axes", task: Series, name: str) -> None:
    truth = task["query", 0]
    axes.plot(*truth, color="#000000", linewidth=1.2, label="truth", zorder=2)
    counts = sorted(steps for series, steps in task if series == name)
    for i, count in enumerate(counts):
        # The first style is that of the first, the last that of the last one.
        style = _STYLES[min(i, len(_STYLES) - 1)] if count != counts[-1] else _STYLES[-1]
        label = "before" if count == 0 else f"{count} step{'s' if count > 1 else ''}"
        axes.plot(*task[name, count], label=label, zorder=3, **style)
    axes.plot(*task["support", 0], "^", color="#7F3C8D", markersize=7, label="seen points", zorder=4)
    low, high = float(truth[1].min()), float(truth[1].max())
    margin = 0.35 * max(high - low, 1e-6)
    axes.set_ylim(low - margin, high + margin)
