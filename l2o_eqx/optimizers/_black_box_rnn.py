import math
from typing import Any, Literal, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import check_sizes
from .._errors import ArgumentError
from .._misc import ravel_wide, tree_dtype, unravel_like, wide_dtype_of
from .._space import Space
from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractOptimizer
from ._lstm import LSTMState, make_cells, run_cells, zero_states
from ._search import Search, ask, begin, tell

# Of a value: its place in the range so far, and what it gains on the best before, twice; the time left.
_NUM_VALUE_FEATURES = 4
# Of the range: gains that the logarithm tells apart.
_FINE = 1e-3
# Of the first answers. Networks that hardly move at first come to ask for one point alone.
_SPREAD = 2.0
# The best point is kept so far inside of the box, where the inverse has a derivative.
_INSIDE = 0.99
# And inverse.
_SQUASHES = {"sine": (jnp.sin, jnp.arcsin), "tanh": (jnp.tanh, jnp.arctanh)}
IntoBox = Literal["sine", "tanh"]


class ValuesSeen(eqx.Module):
    """What was seen of the values so far: their range, where the lowest was, and how many there were."""

    low: Scalar
    high: Scalar
    best: Float[Array, " dim"]
    count: Int[Array, ""]


class BlackBoxState(eqx.Module):
    """What `BlackBoxRNN` carries.

    `queries` are those that the workers evaluate, once `step` is not 0: until then they are the learned first
    ones. `worker` is whose evaluation comes next. `step` counts evaluations, of `horizon`.
    """

    lstm: tuple[LSTMState, ...]
    queries: Float[Array, "workers dim"]
    worker: Int[Array, ""]
    seen: ValuesSeen
    step: Int[Array, ""]
    horizon: Scalar


class BlackBoxRNN(AbstractOptimizer):
    """A recurrent network that searches by values alone: it never sees a gradient.

        h_t, x_{t+1} = RNN(h_{t−1}, x_t, y_t),    y_t = f(x_t)

    Queries lie in the box [−1, 1]^n; `ask` and `tell` put any other one around it. An LSTM sees

    - the query x_t, and x*, where the lowest value so far was, itself included;
    - 2·(y_t − low)/(high − low) − 1, the place of the value in the range seen so far, itself included;
        g = (y_t − the lowest before)/(high − low), below zero for an improvement, and
        sign(g)·ln(1 + 1000·|g|)/ln 1001; all 0 for the first value;
    - how much of the horizon is left, from 1 down to −1;

    and answers o and a gate c: x_{t+1} = sin(o + σ(c)·arcsin(0.99·x*)), so that searching near the best
    point is easy to learn. (With a tanh, many a network in training comes to ask for one corner alone, where
    it has no derivative, and stays there.) All that it sees is the same if f is multiplied by a positive
    number or shifted. To derivatives the range is no constant. The first query is learned.

    **Parallel.** With `workers` q > 1 each step is one evaluation that has finished, of one of q that are
    under way; the network then also sees q flags, 1 for the worker whose evaluation it is and 0 for those
    still at work, and answers that worker's next query. Whose evaluation comes next is drawn with the step's
    `key`, all being equally fast. The first q queries, made without any value, are learned points, one for
    each worker. Which of them comes first is that nearest to the starting point drawn.

    **Training.** Its meta-gradient flows through values and queries, dL/dφ = Σ_t w_t·∇f(x_t)·dx_t/dφ. So an
    estimator must not take these for constants: `Auto({"grads"})` or, as good and no dearer here, `Auto(())`;
    others refuse. Where f has no gradient, `ES`, `PES` and `NRES` need none. It is trained for a dimension, a
    horizon and functions of some kind: what it has learned of them is its strength, and all that it knows.

    Arithmetic and state are in float32 or wider; queries come back in the dtype of the params.

    **Arguments:**

    - `dim`: n, the number of coordinates.
    - `hidden_size`: units of the LSTM.
    - `workers`: q, how many evaluations run in parallel.
    - `num_steps`: the horizon where `init` is not told.
    - `into_box`: what makes queries of answers, `"sine"` or `"tanh"`.
    - `key`: draws the initial weights.

    **Raises:** `ValueError` for sizes below 1, another `into_box`, params of other than `dim` coordinates, or
    an `update` without params or value.

    Reference: Chen et al. 2017, "Learning to learn without gradient descent by gradient descent"
    (arXiv:1611.03824). There the LSTM sees x_t and y_t as they are, and answers x_{t+1}; what it is told of
    the best point, the range and the horizon is added here.
    """

    cells: tuple[eqx.nn.LSTMCell, ...]
    readout: Float[Array, "answers hidden"]
    offset: Float[Array, " answers"]
    starts: Float[Array, "workers dim"]
    num_steps: int = eqx.field(static=True)
    # In files that are older than it, all were.
    into_box: IntoBox = eqx.field(static=True, default="tanh")

    def __init__(
        self,
        dim: int,
        hidden_size: int = 64,
        *,
        workers: int = 1,
        num_steps: int = 30,
        into_box: IntoBox = "sine",
        key: PRNGKeyArray,
    ):
        check_sizes("BlackBoxRNN", dim=dim, hidden_size=hidden_size, workers=workers, num_steps=num_steps)
        if into_box not in _SQUASHES:
            raise ArgumentError(
                f"`BlackBoxRNN(into_box={into_box!r})` must be one of {', '.join(map(repr, _SQUASHES))}.",
                argument="into_box",
                given=into_box,
                possible=tuple(_SQUASHES),
            )
        ckey, rkey, skey = jr.split(key, 3)
        flags = workers if workers > 1 else 0
        self.cells = make_cells(2 * dim + _NUM_VALUE_FEATURES + flags, (hidden_size,), key=ckey)
        self.readout = _SPREAD * jr.normal(rkey, (dim + 1, hidden_size)) / math.sqrt(hidden_size)
        self.offset = jnp.zeros(dim + 1)
        # The middle of the box for a single one, places of their own for several.
        self.starts = (0.5 if workers > 1 else 0.0) * jr.normal(skey, (workers, dim))
        self.num_steps = num_steps
        self.into_box = into_box

    @classmethod
    def make(
        cls,
        params: PyTree,
        hidden_size: int = 64,
        *,
        workers: int = 1,
        num_steps: int = 30,
        into_box: IntoBox = "sine",
        key: PRNGKeyArray,
    ) -> "BlackBoxRNN":
        """One for params like these.

        **Arguments:**

        - `params`: of the objectives, or their shapes.
        - `hidden_size`, `workers`, `num_steps`, `into_box`, `key`: as above.
        """
        dim = sum(leaf.size for leaf in jax.tree.leaves(params))
        settings: dict[str, Any] = {"workers": workers, "num_steps": num_steps, "into_box": into_box}
        return cls(dim, hidden_size, **settings, key=key)

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return self.starts.shape[1]

    @property
    def workers(self) -> int:
        """How many evaluations run in parallel."""
        return self.starts.shape[0]

    def is_black_box(self) -> bool:
        return True

    def wants(self) -> frozenset[str]:
        return frozenset({"value"} if self.workers == 1 else {"value", "key"})

    def initial_params(self, params: Params) -> Params:
        self._check(params)
        starts = self._inside(self.starts)
        return unravel_like(starts[_nearest(starts, ravel_wide(params))], params)

    def init(self, params: Params | Space, num_steps: StepNumber | None = None) -> State:
        """The state before the first evaluation.

        **Arguments:**

        - `params`: where an inner run begins, for the verbs; or what is to be searched, a `Space`, for `ask`
            and `tell`, whose state this is then, a `Search`.
        - `num_steps`: how many evaluations there are going to be, by default as the constructor was told.
        """
        if isinstance(params, Space):
            return begin(self, params, None if num_steps is None else int(num_steps))
        self._check(params)
        dtype = wide_dtype_of(tree_dtype(params))
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return BlackBoxState(
            lstm=jax.tree.map(lambda x: x.astype(dtype), zero_states(self.cells, 1)),
            queries=jnp.zeros(self.starts.shape, dtype),
            worker=_nearest(self._inside(self.starts), ravel_wide(params)),
            seen=ValuesSeen(zero, zero, jnp.zeros(self.dim, dtype), none),
            step=none,
            horizon=jnp.asarray(self.num_steps if num_steps is None else num_steps, dtype),
        )

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        return self.init(params, num_steps)

    def update(
        self,
        grads: Params,
        state: BlackBoxState,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, BlackBoxState]:
        for name, given in (("params", params), ("value", value)):
            if given is None:
                raise ArgumentError(f"`BlackBoxRNN` lives on it: hand `{name}` to `update`.", argument=name)
        assert value is not None
        point = ravel_wide(params)
        state = self.told(state, state.worker, point, value.astype(point.dtype))
        if self.workers > 1:
            if key is None:
                raise ArgumentError(
                    "`BlackBoxRNN` draws whose evaluation comes next: hand `key` to `update`."
                )
            worker = jr.randint(key, (), 0, self.workers)
            state = eqx.tree_at(lambda s: s.worker, state, worker)
        return unravel_like(self.queries(state)[state.worker] - point, grads), state

    def ask(self, state: Search) -> tuple[Any, Search]:
        """The next point to evaluate, for whichever worker is free, and the state in which it is busy.

        **Arguments:**

        - `state`: of `init(space)`, or the last `ask` or `tell`.

        **Returns:** a tree like the space's, of Python numbers and NumPy arrays; and the next state.

        **Raises:** `ValueError` if all workers are busy: with one, every point must be told before the next.
        """
        return ask(state)

    def tell(
        self, state: Search, point: Any, value: SupportsFloat | None, *, worker: int | None = None
    ) -> Search:
        """The state after an evaluation.

        One compiled program that runs the network once. A point need not have been asked for: what is known
        of others may be told before.

        **Arguments:**

        - `state`: of the last `ask` or `tell`.
        - `point`: what was evaluated. It may differ from what was asked for.
        - `value`: f there; `None`, or a number that is not finite in the network's dtype, if the evaluation
            has failed, which is told to the network as a value as high as the highest so far.
        - `worker`: whose evaluation it was, by the order in which they were asked first; by default that of
            the query nearest to the point.

        **Raises:** `ValueError` for a point that is not in the space, or a worker that there is not.
        """
        return tell(self, state, point, value, worker)

    def queries(self, state: BlackBoxState) -> Float[Array, "workers dim"]:
        """What every worker is to evaluate, in the box [−1, 1]."""
        # Learned points are taken here and not in `init`: `update` is what is trained.
        starts = self._inside(self.starts).astype(state.queries.dtype)
        return jnp.where(state.step > 0, state.queries, starts)

    def told(
        self, state: BlackBoxState, worker: Int[Array, ""], point: Float[Array, " dim"], value: Scalar
    ) -> BlackBoxState:
        """The state once a worker has evaluated a point, with that worker's next query.

        A value that is not finite is one that could not be had. It counts as the highest so far, and changes
        nothing else.
        """
        features, seen = _look(state.seen, point, value)
        left = 1 - 2 * jnp.minimum((state.step + 1) / state.horizon, 1)
        flags = [jnp.arange(self.workers) == worker] if self.workers > 1 else []
        inputs = [point, seen.best, features, left[None], *flags]
        inputs = jnp.concatenate([x.astype(point.dtype) for x in inputs])
        hidden, lstm = run_cells(self.cells, inputs[:, None], state.lstm)
        answers = self.readout @ hidden[:, 0] + self.offset
        best = _SQUASHES[self.into_box][1](_INSIDE * seen.best)
        answer = self._inside(answers[:-1] + jax.nn.sigmoid(answers[-1]) * best)
        return BlackBoxState(
            lstm=lstm,
            queries=self.queries(state).at[worker].set(answer.astype(point.dtype)),
            worker=state.worker,
            seen=seen,
            step=state.step + 1,
            horizon=state.horizon,
        )

    def _inside(self, x):
        return _SQUASHES[self.into_box][0](x)

    def _check(self, params):
        found = sum(leaf.size for leaf in jax.tree.leaves(params))
        if found != self.dim:
            raise ArgumentError(
                f"This `BlackBoxRNN` was made for {self.dim} coordinates, but the params have {found}. Train "
                f"another one: `BlackBoxRNN(dim={found})`.",
                argument="params",
            )


def _nearest(points: Float[Array, "points dim"], to: Float[Array, " dim"]) -> Int[Array, ""]:
    return jnp.argmin(jnp.sum((points - to[None]) ** 2, axis=1)).astype(jnp.int32)


def _look(
    seen: ValuesSeen, point: Float[Array, " dim"], value: Scalar
) -> tuple[Float[Array, " features"], ValuesSeen]:
    """The features of a value, and what has been seen with it."""
    known, got = seen.count > 0, jnp.isfinite(value)
    value = jnp.where(got, value, seen.high)
    low = jnp.where(known, jnp.minimum(seen.low, value), value)
    high = jnp.where(known, jnp.maximum(seen.high, value), value)
    spread = high - low
    wide = spread > 0
    unit = jnp.where(wide, spread, 1)
    place = jnp.where(wide, 2 * (value - low) / unit - 1, 0)
    gain = jnp.where(known & wide, (value - seen.low) / unit, 0)
    fine = jnp.sign(gain) * jnp.log1p(jnp.abs(gain) / _FINE) / math.log1p(1 / _FINE)
    features = jnp.where(got, jnp.stack([place, gain, fine]), 1)
    better = got & (~known | (value < seen.low))
    best = jnp.where(better, point, seen.best)
    now = ValuesSeen(low, high, best, seen.count + 1)
    return features, jax.tree.map(lambda new, old: jnp.where(got, new, old), now, seen)
