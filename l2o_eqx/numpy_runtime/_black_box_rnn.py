import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np

from ._arrays import State, sigmoid
from ._lstm import run_cells, zero_states

# As in l2o_eqx.optimizers.BlackBoxRNN.
_FINE, _INSIDE = 1e-3, 0.99
_SQUASHES = {"sine": (np.sin, np.arcsin), "tanh": (np.tanh, np.arctanh)}
# As in l2o_eqx.Box.
_BOX, _LARGEST = {"low", "high", "log", "integer"}, 1e300
Point = dict[str, int | float]


@dataclass
class BlackBoxRNN:
    """`l2o_eqx.optimizers.BlackBoxRNN`, which searches by values alone; the fields are those of the file.

        state = optimizer.init({"rate": {"low": 1e-4, "high": 1.0, "log": True}, "width": {...}})
        point, state = optimizer.ask(state)                    # {"rate": 0.01, "width": 121}
        state = optimizer.tell(state, point, function(**point))   # or None: it failed
        state["best"]                                          # the point and the value

    States are explicit, as there.
    """

    cells: list[dict[str, Any]]
    readout: np.ndarray
    offset: np.ndarray
    starts: np.ndarray
    num_steps: int
    into_box: str = "tanh"

    def init(self, space: Mapping[str, Mapping[str, Any]], num_steps: int | None = None) -> State:
        """The state before the first of `num_steps` evaluations, by default as many as it was trained for.

        **Arguments:**

        - `space`: by name, a table with `low` and `high`, and, where they are true, `log` for a logarithmic
            scale and `integer` for whole numbers; what a file for `l2o minimize --space` has, without tables
            in tables.
        - `num_steps`: how many evaluations there are going to be.

        **Raises:** `ValueError` for another number of names than it was trained for, or ends that make no
            range.
        """
        workers, dim = self.starts.shape
        if len(space) != dim:
            raise ValueError(f"this BlackBoxRNN was trained for {dim} numbers. Got {[*space]}")
        horizon = self.num_steps if num_steps is None else num_steps
        if not horizon >= 1:
            raise ValueError(f"BlackBoxRNN needs at least one evaluation. Got num_steps={num_steps}")
        return {
            "space": {name: _Range.of(name, space[name]) for name in sorted(space)},
            "horizon": horizon,
            "told": 0,
            "best": None,
            "origin": None,
            "queries": _SQUASHES[self.into_box][0](self.starts),
            "busy": np.zeros(workers, bool),
            "lstm": zero_states(self.cells, self.starts, 1),
            # The lowest and the highest value so far, and where the lowest was, in the box.
            "seen": None,
        }

    def ask(self, state: State) -> tuple[Point, State]:
        """The next point to evaluate, for whichever worker is free, and the state in which it is busy.

        **Raises:** `ValueError` if all are busy: a point must be told before the next.
        """
        free = np.flatnonzero(~state["busy"])
        if not free.size:
            raise ValueError(f"`ask`: none of the {len(state['busy'])} workers is free. Tell a point first")
        busy = state["busy"].copy()
        busy[free[0]] = True
        ranges, query = state["space"], state["queries"][free[0]]
        point = {name: own.decode(x) for (name, own), x in zip(ranges.items(), query, strict=True)}
        return point, {**state, "busy": busy}

    def tell(
        self,
        state: State,
        point: Mapping[str, SupportsFloat],
        value: SupportsFloat | None,
        *,
        worker: int | None = None,
    ) -> State:
        """The state after an evaluation, of a point that was asked for or any other.

        **Arguments:**

        - `state`: of the last `ask` or `tell`.
        - `point`: what was evaluated.
        - `value`: the function there; `None`, or a number that is not finite, if the evaluation has failed.
        - `worker`: whose evaluation it was, by the order in which they were asked first; by default that of
            the query nearest to the point.

        **Raises:** `ValueError` for a point that is not in the space, or a worker that there is not.
        """
        ranges, workers = state["space"], len(state["busy"])
        if not isinstance(point, Mapping) or point.keys() != ranges.keys():
            raise ValueError(f"`tell`: a point is a dict with {[*ranges]}. Got {point!r:.100}")
        unit = np.array([own.encode(name, float(point[name])) for name, own in ranges.items()])
        worker = _nearest(state, unit) if worker is None else worker
        if not 0 <= worker < workers:
            raise ValueError(f"`tell`: there are {workers} workers, from 0 on. Got worker={worker}")
        number, origin = math.nan if value is None else float(value), state["origin"]
        # The first value is taken off all others, of which the difference must be finite, too.
        relative = number - (0.0 if origin is None else origin)
        got = math.isfinite(relative)
        if got and origin is None:
            origin, relative = number, 0.0
        features, seen = _look(state["seen"], unit, relative if got else None)
        told = state["told"] + 1
        left = 1 - 2 * min(told / state["horizon"], 1)
        flags = np.arange(workers) == worker if workers > 1 else []
        inputs = np.concatenate([unit, seen[2] if seen else 0 * unit, features, [left], flags])
        hidden, lstm = run_cells(self.cells, inputs[:, None], state["lstm"])
        answers = self.readout @ hidden[:, 0] + self.offset
        squash, inverse = _SQUASHES[self.into_box]
        best = inverse(_INSIDE * seen[2]) if seen else 0.0
        queries, busy = state["queries"].copy(), state["busy"].copy()
        queries[worker], busy[worker] = squash(answers[:-1] + sigmoid(answers[-1]) * best), False
        if got and (state["best"] is None or number < state["best"][1]):
            state = {**state, "best": (dict(point), number)}
        following = {"lstm": lstm, "queries": queries, "busy": busy, "seen": seen}
        return {**state, **following, "told": told, "origin": origin}


def _nearest(state: State, unit: np.ndarray) -> int:
    busy = state["busy"]
    distances = np.sum((state["queries"] - unit) ** 2, axis=1)
    return int(np.argmin(np.where(busy | ~np.any(busy), distances, np.inf)))


def _look(seen: Any, unit: np.ndarray, value: float | None) -> tuple[list[float], Any]:
    # The features of a value, and what has been seen with it. A failure counts as the highest so far.
    if value is None:
        return [1.0, 1.0, 1.0], seen
    if seen is None:
        return [0.0, 0.0, 0.0], (value, value, unit)
    lowest, highest, best = seen
    low, high = min(lowest, value), max(highest, value)
    seen = (low, high, unit if value < lowest else best)
    if not high > low:
        return [0.0, 0.0, 0.0], seen
    gain = (value - lowest) / (high - low)
    fine = math.copysign(math.log1p(abs(gain) / _FINE) / math.log1p(1 / _FINE), gain)
    return [2 * (value - low) / (high - low) - 1, gain, fine], seen


@dataclass(frozen=True)
class _Range:
    # What a number of the box [−1, 1] stands for.
    low: float
    high: float
    log: bool
    integer: bool

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> "_Range":
        if not isinstance(given, Mapping) or not {"low", "high"} <= given.keys() <= _BOX:
            raise ValueError(f"{name!r} needs low and high, and may have log and integer. Got {given!r:.100}")
        own = cls(given["low"], given["high"], given.get("log", False), given.get("integer", False))
        ends = own.low, own.high
        inside = all(abs(end) <= _LARGEST for end in ends)
        if not (inside and own.low < own.high and (own.low > 0 or not own.log)):
            limits = f"low must be below high, above 0 with log, and both at most {_LARGEST}"
            raise ValueError(f"{name!r}: {limits}. Got {dict(given)}")
        if own.integer and not all(float(end).is_integer() for end in ends):
            raise ValueError(f"{name!r}: with integer, both ends must be whole. Got {dict(given)}")
        return own

    def _scaled(self) -> tuple[float, float]:
        # Half a step more on both sides, so that the ends are rounded to from as wide a range as others.
        more = 0.5 if self.integer else 0.0
        ends = self.low - more, self.high + more
        return (math.log(ends[0]), math.log(ends[1])) if self.log else ends

    def decode(self, unit: float) -> int | float:
        low, high = self._scaled()
        x = float(low + (unit + 1) / 2 * (high - low))
        x = math.exp(x) if self.log else x
        x = min(max(round(x) if self.integer else x, self.low), self.high)
        return int(x) if self.integer else float(x)

    def encode(self, name: str, x: float) -> float:
        slack = 1e-9 * max(abs(self.low), abs(self.high))
        if not self.low - slack <= x <= self.high + slack:
            raise ValueError(f"`tell`: {name!r} is from {self.low} to {self.high}. Got {x}")
        x = min(max(x, self.low), self.high)
        low, high = self._scaled()
        unit = 2 * ((math.log(x) if self.log else x) - low) / (high - low) - 1
        return min(max(unit, -1.0), 1.0)
