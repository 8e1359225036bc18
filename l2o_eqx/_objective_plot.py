"""The figure of an objective of two coordinates."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._errors import ArgumentError
from ._figure import explain, new_figure, write_figure

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .objectives import AbstractObjective
    from .optimizers import AbstractOptimizer

# Okabe and Ito's vermilion, blue, green and purple, and the yellow of the minimum.
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
_MINIMUM = "#F0E442"
_GRID = 240
_STARTS = 256


def plot_objective(
    objective: "AbstractObjective",
    optimizers: Mapping[str, "AbstractOptimizer"],
    path: str | Path | None = None,
    *,
    num_steps: int = 200,
    title: str | None = None,
    key: "PRNGKeyArray",
) -> "Figure":
    """Draws an objective of two coordinates: contours, its minimum, and the paths of optimizers.

    Contours are of the outer loss, which has no noise of minibatches.

    **Arguments:**

    - `objective`: its params are one array of two entries.
    - `optimizers`: by name; all begin at the same point, or where they have learned to begin.
    - `path`: where to write the figure, if anywhere.
    - `num_steps`: of every path.
    - `title`: the text above.
    - `key`: draws the starting point and the minibatches.

    **Returns:** the figure.

    **Raises:** `ValueError` for an objective of another shape, or fewer than one step.
    """
    import jax
    import jax.random as jr

    params = jax.eval_shape(objective.init, key)
    if [leaf.shape for leaf in jax.tree.leaves(params)] != [(2,)]:
        raise ArgumentError(
            "`plot_objective(objective, ...)` needs params that are one array of two entries. Got shapes "
            f"{[leaf.shape for leaf in jax.tree.leaves(params)]}.",
            argument="objective",
        )
    ikey, lkey, skey = jr.split(key, 3)
    runs = {name: _run(o, objective, num_steps, ikey, lkey) for name, o in optimizers.items()}
    minimum = objective.minimum()
    point = None if minimum is None or minimum.params is None else np.ravel(jax.tree.leaves(minimum.params))
    starts = np.asarray(jax.vmap(lambda k: jax.tree.leaves(objective.init(k))[0])(jr.split(skey, _STARTS)))
    xs, ys = _window(starts, point, [points for points, _ in runs.values()])
    figure, axes = new_figure(7.5, 5.6)
    lowest = None if minimum is None else float(minimum.value)
    _draw_contours(figure, axes, xs, ys, _values(objective, xs, ys, lkey), lowest)
    for color, (name, (points, final)) in zip(_colors(len(runs)), runs.items(), strict=True):
        _draw_path(axes, points, f"{name}: {final:.3g} after {num_steps} steps", color)
    if point is not None:
        label = f"minimum {lowest:.3g}"
        axes.plot(*point, "*", color=_MINIMUM, markeredgecolor="black", markersize=15, label=label, zorder=6)
    axes.set_xlim(xs[0], xs[-1])
    axes.set_ylim(ys[0], ys[-1])
    axes.set_xlabel("first coordinate")
    axes.set_ylabel("second coordinate")
    axes.grid(False)
    if title:
        axes.set_title(title, fontsize=11, loc="left")
    if runs or point is not None:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.1), frameon=False, fontsize=10)
    explain(
        figure,
        "Dark: low, light: high, in equal steps of the logarithm; thin lines are contours.",
        "White circle: start. Dot: one step." if runs else "",
    )
    return write_figure(figure, path)


def _run(optimizer: Any, objective: Any, num_steps: int, ikey: Any, lkey: Any) -> tuple[np.ndarray, float]:
    """The points of a run, the first included, and the outer loss at the last one."""
    import jax

    from ._unroll import unroll

    params = optimizer.initial_params(objective.init(ikey))
    state = optimizer.init(params)
    points = [jax.tree.leaves(params)[0]]
    for step in range(num_steps):
        # One program for all steps.
        run = unroll(optimizer, objective, params, state, 1, start=step, key=lkey)
        params, state = run.params, run.state
        points.append(jax.tree.leaves(params)[0])
    return np.stack(points), float(objective.outer_loss(params, num_steps, lkey))


def _values(objective: Any, xs: np.ndarray, ys: np.ndarray, key: Any) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    treedef = jax.tree.structure(jax.eval_shape(objective.init, key))
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(xs), jnp.asarray(ys)), axis=-1)

    @jax.jit
    @jax.vmap
    @jax.vmap
    def value(x):
        return objective.outer_loss(jax.tree.unflatten(treedef, [x]), 0, key)

    return np.asarray(value(grid), float)


def _window(
    starts: np.ndarray, point: np.ndarray | None, runs: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    # Where optimizers start and should end; it grows with their paths up to three times its size.
    inner = starts if point is None else np.concatenate([starts, point[None]])
    low, high = inner.min(axis=0), inner.max(axis=0)
    size = np.maximum(high - low, 1e-6)
    for points in runs:
        points = points[np.all(np.isfinite(points), axis=1)]
        low = np.minimum(low, np.maximum(points.min(axis=0), low - size))
        high = np.maximum(high, np.minimum(points.max(axis=0), high + size))
    margin = 0.04 * (high - low)
    first, second = (np.linspace(a, b, _GRID) for a, b in zip(low - margin, high + margin, strict=True))
    return first, second


def _draw_contours(
    figure: "Figure", axes: "Axes", xs: np.ndarray, ys: np.ndarray, values: np.ndarray, lowest: float | None
) -> None:
    # Logarithms of how far f is above its minimum; what is not finite stays white.
    values = np.where(np.isfinite(values), values, np.nan)
    above = np.maximum(values - (np.nanmin(values) if lowest is None else lowest), 0)
    positive = above[np.isfinite(above) & (above > 0)]
    if not positive.size:
        return
    # The lowest of them are those of a few points of the grid that happen to lie near a minimum.
    floor = max(np.quantile(positive, 0.002), 1e-6 * np.max(positive))
    logs = np.log10(np.maximum(above, floor))
    filled = axes.contourf(xs, ys, logs, levels=24, cmap="Blues_r", alpha=0.85)
    lines = {"colors": "black", "linewidths": 0.4, "linestyles": "solid", "alpha": 0.35}
    axes.contour(xs, ys, logs, levels=12, **lines)
    what = "its lowest value" if lowest is not None else "the lowest value here"
    bar = figure.colorbar(filled, ax=axes, label=f"f above {what}")
    decades = np.arange(np.ceil(np.nanmin(logs)), np.floor(np.nanmax(logs)) + 1)
    if len(decades) > 1:
        bar.set_ticks(decades)
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{10**x:.3g}")


def _draw_path(axes: "Axes", points: np.ndarray, label: str, color: str) -> None:
    axes.plot(*points.T, "-", color="white", linewidth=3.2, alpha=0.7, zorder=3)
    axes.plot(*points.T, "-", color=color, linewidth=1.5, marker=".", markersize=4, label=label, zorder=4)
    axes.plot(*points[0], "o", color="white", markeredgecolor=color, markersize=8, zorder=5)


def _colors(count: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(count)]
