"""The settings of a baseline that end lowest on some draws."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ._baselines import Baseline, build
from ._devices import num_devices, sharded_over_devices
from ._draws import Draws, losses_of, run_over_draws
from ._evaluate import Trajectories
from .optimizers import AbstractOptimizer, FromOptax

TuningMode = Literal["auto", "full", "staged"]
# The numbers of a schedule, a choice of the grid, and a learning rate.
Index = tuple[int, int, int]

# Coordinates of all settings and draws that one device runs in parallel. More than `chunk_size` gives: all
# settings see the same minibatches, so that narrow products become one wide product.
_CHUNK_COORDINATES = 2**17
_CHUNK_COORDINATES_ACCELERATOR = 2**24
# What all settings of one baseline may cost in steps times coordinates: a few seconds.
_FULL_COST = 4e8
# The thorough search is for grids that are worth it; learning rates alone are always all tried.
_FEW_SETTINGS = 64
# What optax raises for a traced number where it wants a Python one.
_WANTS_PYTHON_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What became of a tuning.

    `losses[schedule, choice, rate]` is the median over the draws of the mean of the last losses; infinite if
    not finite, NaN if not tried. `best` is the index of the lowest, the first of equals.
    """

    baseline: Baseline
    rates: tuple[float, ...]
    losses: Float[np.ndarray, "schedules choices rates"]
    best: Index

    @property
    def learning_rate(self) -> float:
        return self.rates[self.best[2]]

    @property
    def settings(self) -> dict[str, Any]:
        """The winner's: `learning_rate`, the keywords of the grid, `schedule`."""
        schedule, choice, _ = self.best
        return {
            "learning_rate": self.learning_rate,
            **self.baseline.grid[choice],
            "schedule": self.baseline.schedules[schedule],
        }

    @property
    def losses_by_rate(self) -> Float[np.ndarray, " rates"]:
        """The lowest loss with every learning rate."""
        lowest = np.min(np.where(np.isnan(self.losses), np.inf, self.losses), axis=(0, 1))
        return np.where(np.all(np.isnan(self.losses), axis=(0, 1)), np.nan, lowest)


def tune(
    baseline: Baseline,
    draws: Draws,
    *,
    rates: Sequence[float],
    num_steps: int,
    last: int = 1,
    best_so_far: bool = False,
    mode: TuningMode = "auto",
    progress: Callable[[float], None] = lambda share: None,
) -> Tuning:
    """Tries the settings of a baseline.

    **Arguments:**

    - `baseline`: what to tune.
    - `draws`: what to run it on.
    - `rates`: the learning rates to try, ascending.
    - `num_steps`: of every run.
    - `last`: the mean of so many last losses counts.
    - `best_so_far`, `mode`: as in `compare`.
    - `progress`: called with the share of the work that is done, as far as that is known.
    """
    shape = (len(baseline.schedules), len(baseline.grid), len(rates))
    cost = float(np.prod(shape)) * draws.count * num_steps * draws.num_coordinates
    if mode == "auto":
        mode = "full" if cost <= _FULL_COST or np.prod(shape) <= _FEW_SETTINGS else "staged"
    # A search in stages tries so many after the first stage, more or less.
    expected = int(np.prod(shape)) if mode == "full" else len(_coarse(shape)) + 40
    score = _Scorer(baseline, tuple(rates), num_steps, (last, best_so_far), expected, progress)
    losses = np.full(shape, np.nan)
    if mode == "full":
        losses.ravel()[:] = score(list(np.ndindex(*shape)), draws)
    else:
        _search(score, draws, losses)
    return Tuning(baseline, tuple(rates), losses, _lowest(losses))


@eqx.filter_jit
def run_ready(optimizer: AbstractOptimizer, draws: Draws, num_steps: int) -> Trajectories:
    """What an optimizer that needs no tuning does on draws."""
    losses, evaluations = run_over_draws(optimizer, draws, num_steps)
    return Trajectories(losses, evaluations=evaluations)


def run_tuned(tuning: Tuning, draws: Draws, num_steps: int) -> Trajectories:
    """What the best settings do on other draws."""
    baseline, rates, best = tuning.baseline, tuning.rates, tuning.best
    point = jax.tree.map(lambda x: x[0], _points(baseline, rates, [best]))
    try:
        losses, evaluations = _run(baseline, point, draws, num_steps)
    except _WANTS_PYTHON_NUMBERS:
        return run_ready(_with_numbers(baseline, rates, best, num_steps), draws, num_steps)
    return Trajectories(losses, evaluations=evaluations)


def _coarse(shape: tuple[int, ...]) -> list[Index]:
    rates = sorted({*range(0, shape[2], 4), shape[2] - 1})
    return [(0, choice, rate) for choice in range(shape[1]) for rate in rates]


def _search(score: "_Scorer", draws: Draws, losses: np.ndarray) -> None:
    """Fills in the losses of a search in stages.

    First every choice of the grid at every fourth learning rate with the first schedule on half of the draws;
    then, on all draws, the neighbors of the best so far, until none is better.
    """
    coarse = _coarse(losses.shape)
    half = draws.take(jnp.arange(-(-draws.count // 2)))
    best = coarse[int(np.argmin(score(coarse, half)))]
    while True:
        new = [index for index in [best, *_neighbors(best, losses.shape)] if np.isnan(losses[index])]
        if new:
            losses[tuple(np.transpose(new))] = score(new, draws)
        before, best = best, _lowest(losses)
        if best == before:
            return


def _neighbors(index: Index, shape: tuple[int, ...]) -> list[Index]:
    """Other rates up to two steps away; other schedules and choices, alone and with the rate that suits.

    Decaying rates want to be larger, and the more momentum, the smaller.
    """
    schedule, choice, rate = index
    near = [(schedule, choice, rate + step) for step in (-2, -1, 1, 2)]
    near += [(s, choice, rate + step) for s in range(shape[0]) if s != schedule for step in (0, 1, 2, 4)]
    near += [(schedule, c, rate) for c in range(shape[1]) if c != choice]
    near += [(schedule, choice + 1, rate - 2), (schedule, choice - 1, rate + 2)]
    return [i for i in near if all(0 <= n < size for n, size in zip(i, shape, strict=True))]


def _lowest(losses: np.ndarray) -> Index:
    tried = [index for index in np.ndindex(losses.shape) if not np.isnan(losses[index])]
    schedule, choice, rate = min(tried, key=lambda index: losses[index])
    return schedule, choice, rate


class _Scorer:
    """Runs settings block by block, all blocks with one program, and says how they end."""

    def __init__(
        self,
        baseline: Baseline,
        rates: tuple[float, ...],
        num_steps: int,
        counting: tuple[int, bool],
        expected: int,
        progress: Callable[[float], None],
    ):
        self.baseline, self.rates, self.num_steps, self.counting = baseline, rates, num_steps, counting
        self.expected, self.progress, self.done = expected, progress, 0
        self.takes_traced = True
        # Picked for the first settings and kept, since another size would be another program.
        self.block_size: int | None = None

    def __call__(self, indices: Sequence[Index], draws: Draws) -> Float[np.ndarray, " settings"]:
        """The median over the draws; infinite losses and those that are no numbers are the largest."""
        ends = self._run(indices, draws)
        return np.median(np.where(np.isfinite(ends), ends, np.inf), axis=1)

    def _run(self, indices: Sequence[Index], draws: Draws) -> np.ndarray:
        if self.takes_traced:
            try:
                return self._traced(indices, draws)
            except _WANTS_PYTHON_NUMBERS:
                self.takes_traced = False
        return self._with_numbers(indices, draws)

    def _traced(self, indices: Sequence[Index], draws: Draws) -> np.ndarray:
        chunks = draws.chunks()
        if self.block_size is None:
            side_by_side = max(1, chunks[0].count * draws.num_coordinates)
            own = min(-(-len(indices) // num_devices()), max(1, _chunk_coordinates() // side_by_side))
            self.block_size = own * num_devices()
        size = self.block_size
        ends = []
        for begin in range(0, len(indices), size):
            # The last block is filled up with settings that are run again.
            block = [indices[i % len(indices)] for i in range(begin, begin + size)]
            points = _points(self.baseline, self.rates, block)
            parts = [_ends(self.baseline, points, chunk, self.num_steps, self.counting) for chunk in chunks]
            ends.append(np.concatenate([np.asarray(part) for part in parts], axis=1))
            self._report(size)
        return np.concatenate(ends)[: len(indices), : draws.count]

    def _with_numbers(self, indices: Sequence[Index], draws: Draws) -> np.ndarray:
        ends = []
        for index in indices:
            optimizer = _with_numbers(self.baseline, self.rates, index, self.num_steps)
            losses = run_ready(optimizer, draws, self.num_steps).losses
            ends.append(np.asarray(_final(losses, *self.counting)))
            self._report(1)
        return np.stack(ends)

    def _report(self, count: int) -> None:
        self.done = min(self.done + count, self.expected)
        self.progress(self.done / self.expected)


def _chunk_coordinates() -> int:
    return _CHUNK_COORDINATES if jax.default_backend() == "cpu" else _CHUNK_COORDINATES_ACCELERATOR


def _points(baseline: Baseline, rates: Sequence[float], indices: Sequence[Index]) -> dict[str, Any]:
    """Settings as arrays."""
    schedules, choices, numbers = zip(*indices, strict=True)
    dtype = jnp.result_type(float)
    return {
        "rate": jnp.asarray([rates[i] for i in numbers], dtype),
        "schedule": jnp.asarray(schedules, jnp.int32),
        "choice": {
            name: jnp.asarray([baseline.grid[i][name] for i in choices], dtype) for name in baseline.grid[0]
        },
    }


def _optimizer(baseline: Baseline, num_steps: int, point: Mapping[str, Any]) -> AbstractOptimizer:
    return FromOptax(build(baseline, num_steps, **point))


@eqx.filter_jit
def _ends(
    baseline: Baseline, points: dict[str, Any], draws: Draws, num_steps: int, counting: tuple[int, bool]
) -> Float[Array, "settings objectives"]:
    def run(point):
        return _final(losses_of(_optimizer(baseline, num_steps, point), draws, num_steps), *counting)

    count = points["rate"].shape[0]
    return sharded_over_devices(jax.vmap(run), count)(points)


def _final(
    losses: Float[Array, "objectives steps"], last: int, best_so_far: bool
) -> Float[Array, " objectives"]:
    losses = lowest_so_far(losses) if best_so_far else losses
    return jnp.mean(losses[:, -last:], axis=1)


def lowest_so_far(losses: Float[Array, "*leading steps"]) -> Float[Array, "*leading steps"]:
    """The lowest of the losses until then; one that is not a number counts as infinite."""
    return lax.cummin(jnp.where(jnp.isnan(losses), jnp.inf, losses), axis=losses.ndim - 1)


@eqx.filter_jit
def _run(
    baseline: Baseline, point: dict[str, Any], draws: Draws, num_steps: int
) -> tuple[Float[Array, "objectives steps"], Int[Array, "objectives steps"] | None]:
    return run_over_draws(_optimizer(baseline, num_steps, point), draws, num_steps)


def _with_numbers(
    baseline: Baseline, rates: Sequence[float], index: Index, num_steps: int
) -> AbstractOptimizer:
    schedule, choice, rate = index
    return FromOptax(build(baseline, num_steps, rates[rate], schedule, baseline.grid[choice]))
