import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._types import Params, Scalar, State
from ._answers import Answers
from ._base import AbstractOptimizer
from ._geometry import (
    Direction,
    FirstStep,
    Groups,
    Lengths,
    Per,
    PerGroup,
    as_tree,
    bounded_exp,
    check_settings,
    combination,
    cosine,
    cut_log,
    difference,
    direction,
    first_move,
    first_of,
    groups_of,
    has_grown,
    inner_products,
    lengths,
    log_ratio,
    log_rms,
    running_curvature,
    sigmoid,
    wide_dtype,
    zero_direction,
    zero_lengths,
)
from ._lstm import LSTMState, make_cells, run_cells, zero_states

# Log of what the running largest curvature is multiplied by at each step.
_LOG_DECAY = math.log(0.99)
# The inner products between g, the gradient before, u and y that are needed.
_PAIRS = ((0, 0), (2, 2), (3, 3), (0, 1), (0, 2), (2, 3))
# Largest |a|; e^6 = 400.
_LARGEST_ANSWER = 6.0
_FEATURES: tuple[str, ...] = ("cos(g, u)", "cos(g, g before)", "cos(y, u)", "tanh log(|g| / |g before|)")
_FEATURES += ("log(curvature along u / L) / 5", "log(|u| L / |g|) / 3")
_SYMBOLS = (
    "update = -rate·g + momentum·u. g: gradient; u: last update; y: change of g; L: largest curvature "
    "|y|/|u| of late."
)


class LearnedMomentumState(eqx.Module):
    """What `LearnedMomentum` carries: the last gradient and update, and per group the rest.

    `length` and `first` are of the last gradient and of the first that was not zero. `log_curvature` is
    log L, where `known`; `log_reference` the log of what the first move is relative to.
    """

    grads: Direction
    length: Lengths
    first: Lengths
    updates: Direction
    lstm: tuple[LSTMState, ...]
    log_curvature: PerGroup
    known: Bool[Array, " groups"]
    log_reference: PerGroup


class LearnedMomentum(AbstractOptimizer):
    """Momentum whose step and decay a small LSTM chooses at every step, from the geometry of the last one.

    The network runs once per tensor, not per coordinate: a step costs a few multiply-adds per coordinate.
    With y = g_t − g_{t−1} and u the last update, L = max(0.99·L, ‖y‖/‖u‖) is a running largest curvature.
    The network sees

        cos(g, u), cos(g, g_{t−1}), cos(y, u), tanh log(‖g‖/‖g_{t−1}‖),
        log(cos(y, u)·‖y‖/(‖u‖L))/5, log(‖u‖L/‖g‖)/3

    all zero at the first step, and answers a (within ±6) and b. The update is

        −e^a/L·g + σ(b)·u

    so that the untrained one is gradient descent at 1/L with momentum. Where ‖g‖ is larger than it was at
    first, a is at most 0: a network that is still being trained may otherwise drive an objective to infinity.
    What it does turns with the coordinates, does not change when the objective is multiplied by a number, and
    with `"relative"` first steps scales with the params. As long as no curvature was seen, it moves by e^c in
    root mean square along −g, with c learned, and by twice as much whenever the gradient has not changed
    at all. One step on, the curvature is known, so that a first move that is too short costs that one step
    only (down to 1e-6 of the params: then float32 no longer tells the gradients apart), while one that is too
    long costs many. So it is shorter here than the 0.01 of the prototype.

    Arithmetic and state are in float32 or wider; updates come back in the dtype of the gradients.

    **Arguments:**

    - `hidden_size`: units of the LSTM.
    - `per`: whether the network runs once per `"tensor"`, per `"layer"` (leaves whose path differs in its
        last part alone) or once for the whole `"tree"`. Norms and inner products are of these groups.
    - `momentum`: σ(b) of the untrained network.
    - `first_move`: e^c of the untrained network.
    - `first_step`: `"absolute"`, or `"relative"` to the root mean square of all params handed to `init`
        (absolute if they are zero).
    - `key`: draws the initial weights.

    **Raises:** `ValueError` for a size below 1, an unknown `per` or `first_step`, a momentum outside
    (0, 1), or a first move that is not positive.

    Reference: a prototype of this project. For steps from ‖y‖ and ‖u‖ see Barzilai & Borwein 1988, "Two-point
    step size gradient methods".
    """

    cells: tuple[eqx.nn.LSTMCell, ...]
    readout: Float[Array, "2 hidden"]
    offsets: Float[Array, " 2"]
    log_first_move: Float[Array, ""]
    per: Per = eqx.field(static=True)
    first_step: FirstStep = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int = 16,
        *,
        per: Per = "tensor",
        momentum: float = 0.9,
        first_move: float = 1e-3,
        first_step: FirstStep = "absolute",
        key: PRNGKeyArray,
    ):
        check_settings(
            "LearnedMomentum",
            per=per,
            first_step=first_step,
            below_one={"momentum": momentum},
            positive={"hidden_size": hidden_size, "first_move": first_move},
        )
        ckey, rkey = jr.split(key)
        self.cells = make_cells(6, (hidden_size,), key=ckey)
        self.readout = 0.01 * jr.normal(rkey, (2, hidden_size))
        self.offsets = jnp.array([0.0, math.log(momentum / (1 - momentum))])
        self.log_first_move = jnp.array(math.log(first_move))
        self.per = per
        self.first_step = first_step

    def init(self, params: Params) -> State:
        groups = groups_of(params, self.per)
        zeros = zero_direction(groups, params)
        nothing = jnp.zeros(len(groups), wide_dtype(params))
        reference = log_rms(params, groups) if self.first_step == "relative" else nothing
        length = zero_lengths(groups, nothing.dtype)
        unknown = jnp.zeros(len(groups), bool)
        lstm = zero_states(self.cells, len(groups))
        return LearnedMomentumState(zeros, length, length, zeros, lstm, nothing, unknown, reference)

    def update(
        self,
        grads: Params,
        state: LearnedMomentumState,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, LearnedMomentumState]:
        del params
        groups = groups_of(grads, self.per)
        thought = self._think(groups, grads, state)
        g, u, g_length = thought.grads, state.updates, thought.g_length
        weights = (-thought.length * g_length.inverse, thought.momentum * u.scale)
        updates = combination(groups, weights, (g, u))
        state = LearnedMomentumState(
            grads=g,
            length=g_length,
            first=first_of(state.first, g_length),
            updates=updates,
            lstm=thought.lstm,
            log_curvature=thought.log_curvature,
            known=thought.known,
            log_reference=state.log_reference,
        )
        return as_tree(updates, grads), state

    def answers(
        self,
        grads: Params,
        state: LearnedMomentumState,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Answers:
        """The six features; and what the update −rate·g + momentum·u is made of, and e^a = rate·L.

        e^a is NaN as long as no curvature is known.
        """
        del params, value, key
        groups = groups_of(grads, self.per)
        thought = self._think(groups, grads, state)
        rate = thought.length * thought.g_length.inverse / thought.grads.scale
        relative = jnp.where(thought.known, rate * jnp.exp(thought.log_curvature), jnp.nan)
        answered = {"rate": rate, "momentum": thought.momentum, "rate · L": relative}
        seen = dict(zip(_FEATURES, thought.features, strict=True))
        return Answers.of(groups.names, seen, answered, _SYMBOLS)

    def _think(self, groups: Groups, grads: Params, state: LearnedMomentumState) -> "_Thought":
        g = direction(groups, grads)
        features, g_length, u_length, log_curvature, known = _look(groups, g, state)
        hidden, lstm = run_cells(self.cells, features.astype(self.readout.dtype), state.lstm)
        # Times 4, so that the small weights need not move far.
        answers = (4 * self.readout @ hidden + self.offsets[:, None]).astype(g.scale.dtype)
        log_rate = jnp.clip(answers[0], -_LARGEST_ANSWER, _LARGEST_ANSWER)
        log_rate = jnp.where(has_grown(g_length, state.first), jnp.minimum(log_rate, 0.0), log_rate)
        log_rate = log_rate - log_curvature
        first = first_move(groups, u_length, self.log_first_move, state.log_reference)
        length = bounded_exp(jnp.where(known, log_rate + g_length.log, first))
        return _Thought(g, g_length, features, lstm, log_curvature, known, length, sigmoid(answers[1]))


class _Thought(eqx.Module):
    """What the network sees in a step and answers: the length of −rate·g, and the momentum."""

    grads: Direction
    g_length: Lengths
    features: Float[Array, "features groups"]
    lstm: tuple[LSTMState, ...]
    log_curvature: PerGroup
    known: Bool[Array, " groups"]
    length: PerGroup
    momentum: PerGroup


def _look(groups, g, state):
    """The features, the lengths of g and u, and the curvature with what the last step has shown of it."""
    before, u = state.grads, state.updates
    y = difference(g, before)
    dots = inner_products(groups, (g, before, u, y), _PAIRS)
    g_length, u_length, y_length = (lengths(d, dots[k, k]) for k, d in ((0, g), (2, u), (3, y)))
    log_curvature, known = running_curvature(state.log_curvature, state.known, y_length, u_length, _LOG_DECAY)
    along = cosine(dots[2, 3], u_length.square, y_length.square)
    # Curvature along u; where it is not positive, the third feature tells.
    log_along = jnp.log(jnp.maximum(along, 1e-5)) + y_length.log - u_length.log - log_curvature
    measured = y_length.positive & u_length.positive
    moving = g_length.positive & u_length.positive & known
    features = jnp.stack(
        [
            cosine(dots[0, 2], g_length.square, u_length.square),
            cosine(dots[0, 1], g_length.square, state.length.square),
            along,
            jnp.tanh(log_ratio(g_length, state.length)),
            cut_log(log_along, measured) / 5,
            cut_log(u_length.log + log_curvature - g_length.log, moving) / 3,
        ]
    )
    return features, g_length, u_length, log_curvature, known
