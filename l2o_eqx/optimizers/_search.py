"""A search with a `BlackBoxRNN` on anybody's function: ask for points, tell their values."""

import dataclasses
import math
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._errors import ArgumentError
from .._space import Space

# A `BlackBoxRNN`, and its state, whose module needs this one.
RNN = Any
State = Any


@dataclasses.dataclass(frozen=True)
class Search:
    """Where a search stands: what `BlackBoxRNN.init` makes of a `Space`, and `ask` and `tell` of one another.

    It is not changed by them; keep it to go back there.

    **Fields:**

    - `space`: what is searched.
    - `best`: the point with the lowest value so far, and that value; `None` before there is any.
    - `told`: how many evaluations were told, failed ones included.
    - `inner`: the network's state.
    - `queries`: of every worker, in the box [−1, 1]; `busy`: which workers were asked for theirs.
    - `origin`: the first value, which is taken off all others before they are rounded to the network's dtype.
    """

    space: Space
    best: tuple[Any, float] | None
    told: int
    inner: State
    queries: Float[np.ndarray, "workers dim"]
    busy: Bool[np.ndarray, " workers"]
    origin: float | None = None


def begin(rnn: RNN, space: Space, num_steps: int | None) -> Search:
    """Before the first evaluation."""
    if space.dim != rnn.dim:
        raise ArgumentError(
            f"This `BlackBoxRNN` was made for {rnn.dim} coordinates, but the space has {space.dim}. Train "
            f"another one: `BlackBoxRNN(dim={space.dim})`, or in the shell "
            f"`l2o train --objective gp --dim {space.dim}`.",
            argument="params",
            given=space,
        )
    inner = rnn.init(jnp.zeros(rnn.dim), num_steps)
    busy = np.zeros(rnn.workers, bool)
    return Search(space, None, 0, inner, np.asarray(_queries(rnn, inner)), busy)


def ask(search: Search) -> tuple[Any, Search]:
    """The query of the first worker that is free, and the search in which it is busy."""
    free = np.flatnonzero(~search.busy)
    if not free.size:
        count = len(search.busy)
        which = "the evaluation asked for" if count == 1 else f"one of the {count} evaluations under way"
        raise ArgumentError(f"`ask`: no worker is free. Tell {which} first.", argument="state")
    busy = search.busy.copy()
    busy[free[0]] = True
    point = search.space.decode(search.queries[free[0]])
    return point, dataclasses.replace(search, busy=busy)


def tell(rnn: RNN, search: Search, point: Any, value: SupportsFloat | None, worker: int | None) -> Search:
    """The search after a value, or after a failure."""
    unit = search.space.encode(point)
    worker = _worker_of(search, unit) if worker is None else worker
    if not 0 <= worker < len(search.busy):
        raise ArgumentError(
            f"`tell(worker=...)`: there are {len(search.busy)} workers, from 0 on. Got worker={worker}.",
            argument="worker",
            given=worker,
        )
    dtype = search.queries.dtype
    number = math.nan if value is None else float(value)
    relative = number if search.origin is None else number - search.origin
    got = abs(relative) <= float(np.finfo(dtype).max)
    origin = number if got and search.origin is None else search.origin
    told = dtype.type((number - origin) if got and origin is not None else math.nan)
    inner, queries = _tell(rnn, search.inner, np.int32(worker), unit.astype(dtype), told)
    busy = search.busy.copy()
    busy[worker] = False
    best = search.best
    if got and (best is None or number < best[1]):
        best = (point, number)
    return Search(search.space, best, search.told + 1, inner, np.asarray(queries), busy, origin)


def _worker_of(search: Search, unit: Float[np.ndarray, " dim"]) -> int:
    if len(search.busy) == 1:
        return 0
    # Rounding may have moved the point from the query. If nobody is at work, the nearest of all is told.
    distances = np.sum((search.queries - unit) ** 2, axis=1)
    return int(np.argmin(np.where(search.busy | ~np.any(search.busy), distances, np.inf)))


# Not Equinox's `filter_jit`, which takes longer to call than the network to run.
@jax.jit
def _queries(rnn: RNN, inner: State) -> Float[Array, "workers dim"]:
    return rnn.queries(inner)


@jax.jit
def _tell(
    rnn: RNN, inner: State, worker: Array, point: Array, value: Array
) -> tuple[State, Float[Array, "workers dim"]]:
    inner = rnn.told(inner, worker, point, value)
    return inner, rnn.queries(inner)
