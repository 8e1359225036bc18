import itertools
import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

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
from ._gru import run_gru

# Decays of the running means of the gradient.
_DECAYS = (0.5, 0.9, 0.97)
# Pairs of the directions g, u, y and the running means.
_PAIRS = tuple(itertools.combinations(range(3 + len(_DECAYS)), 2))
_SQUARES = tuple((k, k) for k in range(3 + len(_DECAYS)))
# Log of what the running largest curvature is multiplied by at each step.
_LOG_DECAY = math.log(0.99)
# Largest coefficient, logarithm of the factor, and logarithm of the way to another step that a gate opens.
_LARGEST_COEFFICIENT = 2.0
_LARGEST_FACTOR = 6.0
_LARGEST_PULL = 5.0
# Below this cosine of u and y their Barzilai–Borwein step means nothing.
_SMALLEST_COSINE = 1e-3
# Two gates, factor and momentum come first in the answers, then a coefficient for y and each running mean.
_NUM_ANSWERS = 5 + len(_DECAYS)
# Cosines; norms of u, y and the running means; change of ‖g‖; the Barzilai–Borwein step; the curvature.
_NUM_FEATURES = len(_PAIRS) + 2 + len(_DECAYS) + 3
_NAMES = ("g", "u", "y", *(f"mean {decay}" for decay in _DECAYS))
_FEATURES = (
    *(f"cos({_NAMES[i]}, {_NAMES[j]})" for i, j in _PAIRS),
    "log(|u| / η|g|) / 3",
    *(f"log(|{name}| / |g|) / 3" for name in _NAMES[2:]),
    "tanh log(|g| / |g before|)",
    "log(Barzilai–Borwein step / η) / 3",
    "log(1/Lη) / 3",
)
_SYMBOLS = (
    "rate = η·factor. g: gradient; u: last update; y: change of g; mean b: running mean of g; η: step in "
    "use; L: largest curvature |y|/|u| of late."
)


class SubspaceRNNState(eqx.Module):
    """What `SubspaceRNN` carries: directions of the recent past, and per group the rest.

    `length` and `first` are of the last gradient and of the first that was not zero. `log_step` and
    `log_curvature` are log η and log L, where `known`; `log_reference` the log of what the first move is
    relative to.
    """

    grads: Direction
    length: Lengths
    first: Lengths
    updates: Direction
    means: tuple[Direction, ...]
    step: Int[Array, ""]
    hidden: Float[Array, "hidden groups"]
    log_step: PerGroup
    log_curvature: PerGroup
    known: Bool[Array, " groups"]
    log_reference: PerGroup


class SubspaceRNN(AbstractOptimizer):
    """A small GRU that combines the directions of the recent past, from the inner products between them.

    The network runs once per tensor, not per coordinate. Of the directions D = [g, u, y, three running means
    of g], with u the last update and y = g_t − g_{t−1}, it sees all cosines and the logs of the norms: u's
    relative to the step η in use, the others' relative to ‖g‖. Beside them it sees the change of log‖g‖, and
    log η relative to the Barzilai–Borwein step |⟨u, y⟩|/⟨y, y⟩ and to 1/L, with L the running largest
    curvature of `LearnedMomentum`; and the mean over tensors of its own hidden states of the step before.
    It answers two gates, a factor f within ±6, a momentum and coefficients c within ±2:

        log η ← log η + σ(gate_1)·(log of the Barzilai–Borwein step − log η) + σ(gate_2)·(log 1/L − log η)
        update = −η·e^f·(g + ‖g‖·Σ_k c_k·D_k/‖D_k‖) + σ(momentum)·u,    D_k ∈ {y, running means}

    The second gate is not in the prototype. With it the untrained optimizer is gradient descent at about 1/L
    with momentum, which on quadratics ends ten times lower than at Barzilai–Borwein steps with momentum,
    and training moves it to those where they are better. Where ‖g‖ is larger than it was at first, η·e^f is
    at most 1/L and c is 0: a network in the middle of its training may well drive an objective to infinity,
    with steps of 5/L. As `LearnedMomentum`, also in its first moves, it
    turns with the coordinates, does not change when the objective is multiplied by a number, and with
    `"relative"` first steps scales with the params.

    The running means begin as plain means, so that they are not shorter in the first steps. Arithmetic and
    state are in float32 or wider; updates come back in the dtype of the gradients.

    **Arguments:**

    - `hidden_size`: units of the GRU.
    - `per`, `first_move`, `first_step`: as in `LearnedMomentum`.
    - `momentum`, `gates`, `factor`: what they are in the untrained network, the factor as e^f.
    - `key`: draws the initial weights.

    **Raises:** `ValueError` for a size below 1, an unknown `per` or `first_step`, a momentum or a gate
    outside (0, 1), or a factor or first move that is not positive.

    Reference: a prototype of this project; Barzilai & Borwein 1988, "Two-point step size gradient methods";
    the mean over tensors is a level of Wichrowska et al. 2017 (arXiv:1703.04813).
    """

    cell: eqx.nn.GRUCell
    readout: Float[Array, "answers hidden"]
    offsets: Float[Array, " answers"]
    log_first_move: Float[Array, ""]
    per: Per = eqx.field(static=True)
    first_step: FirstStep = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int = 24,
        *,
        per: Per = "tensor",
        momentum: float = 0.9,
        gates: tuple[float, float] = (0.02, 0.5),
        factor: float = 1.0,
        first_move: float = 1e-3,
        first_step: FirstStep = "absolute",
        key: PRNGKeyArray,
    ):
        check_settings(
            "SubspaceRNN",
            per=per,
            first_step=first_step,
            below_one={"momentum": momentum, "gates[0]": gates[0], "gates[1]": gates[1]},
            positive={"hidden_size": hidden_size, "factor": factor, "first_move": first_move},
        )
        ckey, rkey = jr.split(key)
        self.cell = eqx.nn.GRUCell(_NUM_FEATURES + hidden_size, hidden_size, key=ckey)
        self.readout = 0.001 * jr.normal(rkey, (_NUM_ANSWERS, hidden_size))
        first, second, decay = (math.log(p / (1 - p)) for p in (*gates, momentum))
        coefficients = [0.0] * (_NUM_ANSWERS - 4)
        self.offsets = jnp.array([first, second, math.log(factor), decay, *coefficients])
        self.log_first_move = jnp.array(math.log(first_move))
        self.per = per
        self.first_step = first_step

    def init(self, params: Params) -> State:
        groups = groups_of(params, self.per)
        zeros = zero_direction(groups, params)
        nothing = jnp.zeros(len(groups), wide_dtype(params))
        return SubspaceRNNState(
            grads=zeros,
            length=zero_lengths(groups, nothing.dtype),
            first=zero_lengths(groups, nothing.dtype),
            updates=zeros,
            means=(zeros,) * len(_DECAYS),
            step=jnp.zeros((), jnp.int32),
            hidden=jnp.zeros((self.cell.hidden_size, len(groups)), self.readout.dtype),
            log_step=nothing,
            log_curvature=nothing,
            known=jnp.zeros(len(groups), bool),
            log_reference=log_rms(params, groups) if self.first_step == "relative" else nothing,
        )

    def update(
        self,
        grads: Params,
        state: SubspaceRNNState,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, SubspaceRNNState]:
        del params
        groups = groups_of(grads, self.per)
        thought = self._answer(groups, grads, state)
        directions, own, length = thought.directions, thought.lengths, thought.length
        weights = [-length * own[0].inverse, thought.momentum * state.updates.scale]
        weights += [-length * c * d.inverse for c, d in zip(thought.coefficients, own[2:], strict=True)]
        updates = combination(groups, weights, directions)
        state = SubspaceRNNState(
            grads=directions[0],
            length=own[0],
            first=first_of(state.first, own[0]),
            updates=updates,
            means=directions[3:],
            step=state.step + 1,
            hidden=thought.hidden,
            log_step=thought.log_step,
            log_curvature=thought.sight.log_curvature,
            known=thought.sight.known,
            log_reference=state.log_reference,
        )
        return as_tree(updates, grads), state

    def answers(
        self,
        grads: Params,
        state: SubspaceRNNState,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Answers:
        """The features; and rate = η·e^f, e^f, momentum, the two gates as σ(gate), and the coefficients c_k.

        The rate is what g is multiplied by, also while no curvature is known.
        """
        del params, value, key
        groups = groups_of(grads, self.per)
        thought = self._answer(groups, grads, state)
        rate = thought.length * thought.lengths[0].inverse / thought.directions[0].scale
        answered = {
            "rate": rate,
            "momentum": thought.momentum,
            "factor": jnp.exp(thought.factor),
            "gate to the Barzilai–Borwein step": thought.gates[0],
            "gate to 1/L": thought.gates[1],
            **{f"coefficient of {d}": c for d, c in zip(_NAMES[2:], thought.coefficients, strict=True)},
        }
        seen = dict(zip(_FEATURES, thought.sight.features, strict=True))
        return Answers.of(groups.names, seen, answered, _SYMBOLS)

    def _answer(self, groups: Groups, grads: Params, state: SubspaceRNNState) -> "_Thought":
        g, step = direction(groups, grads), state.step + 1
        means = tuple(_mean(groups, m, g, b, step) for m, b in zip(state.means, _DECAYS, strict=True))
        directions = (g, state.updates, difference(g, state.grads), *means)
        dots = inner_products(groups, directions, _SQUARES + _PAIRS)
        own = [lengths(d, dots[k, k]) for k, d in enumerate(directions)]
        sight = _look(dots, own, state)
        hidden = self._think(sight.features, state.hidden)
        # Times 4, so that the small weights need not move far. Small: coefficients of running means that are
        # random upset the momentum.
        answers = (4 * self.readout @ hidden + self.offsets[:, None]).astype(g.scale.dtype)

        gates = sigmoid(answers[:2])
        log_step = sight.log_step + jnp.sum(gates * sight.pulls, axis=0)
        factor = jnp.clip(answers[2], -_LARGEST_FACTOR, _LARGEST_FACTOR)
        first = first_move(groups, own[1], self.log_first_move, state.log_reference)
        rate, grown = log_step + factor, has_grown(own[0], state.first)
        rate = jnp.where(grown, jnp.minimum(rate, -sight.log_curvature), rate)
        length = bounded_exp(jnp.where(sight.known, rate + own[0].log, first))
        length = jnp.where(own[0].positive, length, 0.0)
        coefficients = jnp.clip(answers[4:], -_LARGEST_COEFFICIENT, _LARGEST_COEFFICIENT)
        coefficients = jnp.where(sight.known & ~grown, coefficients, 0.0)
        return _Thought(
            directions, own, sight, hidden, gates, factor, log_step, length, sigmoid(answers[3]), coefficients
        )

    def _think(self, features, hidden):
        # What the other tensors thought a step ago.
        others = jnp.broadcast_to(jnp.mean(hidden, axis=1, keepdims=True), hidden.shape)
        inputs = jnp.concatenate([features.astype(hidden.dtype), others])
        return run_gru(self.cell, inputs, hidden)


class _Thought(eqx.Module):
    """What the network answers in a step, from what it sees; the length is that of the part along g."""

    directions: tuple[Direction, ...]
    lengths: list[Lengths]
    sight: "_Sight"
    hidden: Float[Array, "hidden groups"]
    gates: Float[Array, "2 groups"]
    factor: PerGroup
    log_step: PerGroup
    length: PerGroup
    momentum: PerGroup
    coefficients: Float[Array, "coefficients groups"]


class _Sight(eqx.Module):
    """What the network sees, and what is known of the step before it answers."""

    features: Float[Array, "features groups"]
    log_step: PerGroup
    pulls: Float[Array, "2 groups"]
    log_curvature: PerGroup
    known: Bool[Array, " groups"]


def _mean(groups, mean, g, decay, step):
    new = jnp.maximum(1 - decay, 1 / step.astype(g.scale.dtype))
    return combination(groups, ((1 - new) * mean.scale, new * g.scale), (mean, g))


def _look(dots, own, state):
    g, u, y, *means = own
    cosines = {(i, j): cosine(dots[i, j], own[i].square, own[j].square) for i, j in _PAIRS}
    measured = u.positive & y.positive
    log_curvature, known = running_curvature(state.log_curvature, state.known, y, u, _LOG_DECAY)
    aligned = jnp.maximum(jnp.abs(cosines[1, 2]), _SMALLEST_COSINE)
    barzilai_borwein = jnp.where(measured, jnp.log(aligned) + u.log - y.log, 0.0)
    log_step = jnp.where(state.known, state.log_step, -log_curvature)
    pulls = jnp.stack([barzilai_borwein - log_step, -log_curvature - log_step])
    pulls = jnp.where(measured, jnp.clip(pulls, -_LARGEST_PULL, _LARGEST_PULL), 0.0)
    features = jnp.stack(
        [
            *cosines.values(),
            cut_log(u.log - log_step - g.log, u.positive & g.positive & known) / 3,
            *(log_ratio(d, g) / 3 for d in (y, *means)),
            jnp.tanh(log_ratio(g, state.length)),
            *(pulls / 3),
        ]
    )
    return _Sight(features, log_step, pulls, log_curvature, known)
