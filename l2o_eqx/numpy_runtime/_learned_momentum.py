import functools
import math
import operator
from dataclasses import dataclass
from typing import Any

from ._arrays import Array, Arrays, State, cast, in_order, library, own_dtype, shapes_of, sigmoid, wide, zeros
from ._groups import LABELS, grouped
from ._lstm import run_cells, zero_states

# As in l2o_eqx.optimizers.LearnedMomentum.
_DECAY, _LARGEST_ANSWER, _LONGEST_FIRST_MOVE = math.log(0.99), 6.0, math.log(1e6)


@dataclass
class LearnedMomentum:
    """`l2o_eqx.optimizers.LearnedMomentum`; the fields are those of the file."""

    cells: list[dict[str, Any]]
    readout: Array
    offsets: Array
    log_first_move: Array
    per: str
    first_step: str

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first step, however many there will be: last gradients and updates, and one
        number for each group of arrays."""
        shapes, first = shapes_of(params), next(iter(params.values()))
        xp, groups = library(first), self._groups(params)
        nothing = {name: zeros(x) for name, x in params.items()}
        none = xp.zeros(len(groups), dtype=wide(first), device=first.device)
        reference = 0 * none
        if self.first_step == "relative":
            square = sum(xp.sum(xp.square(cast(x, wide(x)))) for x in params.values())
            size = sum(math.prod(x.shape) for x in params.values())
            reference = reference + _log_root(square / size)
        return {
            "shapes": shapes,
            "grads": nothing,
            "updates": dict(nothing),
            "lstm": zero_states(self.cells, first, len(groups)),
            "log_curvature": none,
            "known": none > 0,
            # Of the first gradient that is not zero.
            "log_first": none - math.inf,
            "log_reference": reference,
        }

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        grads, shapes = in_order(grads, state), state["shapes"]
        groups, xp = self._groups(grads), library(next(iter(grads.values())))
        now = {name: cast(x, own_dtype(x)) for name, x in grads.items()}
        before, moved = state["grads"], state["updates"]
        products = {name: _products(now[name], before[name], moved[name]) for name in now}
        g2, b2, u2, y2, gu, gb, uy = xp.stack(
            [functools.reduce(operator.add, [products[name] for name in group]) for group in groups]
        ).T
        g, b, u, y = map(_Length, (g2, b2, u2, y2))
        measured = y.positive & u.positive
        seen = xp.where(measured, y.log - u.log, 0.0)
        last, known = state["log_curvature"], state["known"]
        later = xp.where(measured, xp.maximum(last + _DECAY, seen), last)
        curvature, known = xp.where(known, later, seen), known | measured
        along = _cosine(uy, u, y)
        log_along = xp.log(xp.clip(along, 1e-5, None)) + y.log - u.log - curvature
        moving = g.positive & u.positive & known
        features = [
            _cosine(gu, g, u),
            _cosine(gb, g, b),
            along,
            xp.tanh(_cut(g.log - b.log, g.positive & b.positive)),
            _cut(log_along, measured) / 5,
            _cut(u.log + curvature - g.log, moving) / 3,
        ]
        hidden, lstm = run_cells(self.cells, xp.stack(features), state["lstm"])
        answers = 4 * self.readout @ hidden + self.offsets[:, None]
        rate = xp.clip(answers[0], -_LARGEST_ANSWER, _LARGEST_ANSWER)
        log_first = state["log_first"]
        grown = g.positive & xp.isfinite(log_first) & (g.log > log_first)
        rate = xp.where(grown, xp.clip(rate, None, 0.0), rate) - curvature
        sizes = [max(1, sum(math.prod(now[name].shape) for name in group)) for group in groups]
        half_log_size = xp.asarray([0.5 * math.log(n) for n in sizes], dtype=rate.dtype, device=rate.device)
        shortest = self.log_first_move + state["log_reference"] + half_log_size
        again = xp.minimum(xp.maximum(u.log + math.log(2), shortest), shortest + _LONGEST_FIRST_MOVE)
        first = xp.where(u.positive, again, shortest)
        length = xp.exp(xp.clip(xp.where(known, rate + g.log, first), None, 85.0))
        step = xp.where(g.positive, length / xp.exp(g.log), 0.0)
        keep = sigmoid(answers[1])
        updates = {
            name: keep[i] * moved[name] - step[i] * now[name]
            for i, group in enumerate(groups)
            for name in group
        }
        following = {
            "shapes": shapes,
            "grads": now,
            "updates": updates,
            "lstm": lstm,
            "log_curvature": curvature,
            "known": known,
            "log_first": xp.where(xp.isfinite(log_first) | ~g.positive, log_first, g.log),
            "log_reference": state["log_reference"],
        }
        return {name: cast(updates[name], x.dtype) for name, x in grads.items()}, following

    def _groups(self, arrays: Arrays) -> list[list[str]]:
        # Which arrays share a network.
        labels = {"tensor": LABELS["by_leaf"], "layer": LABELS["by_layer"]}
        return [[*group] for group in grouped(arrays, labels.get(self.per, lambda name, x: "")).values()]


def _products(grad: Array, before: Array, moved: Array) -> Array:
    # Of one tensor: those of g, the gradient before, u and y with themselves, and of g·u, g·b, u·y.
    xp = library(grad)
    y = grad - before
    g, b, u, y = (cast(x.reshape(-1), wide(grad)) for x in (grad, before, moved, y))
    pairs = ((g, g), (b, b), (u, u), (y, y), (g, u), (g, b), (u, y))
    return xp.stack([xp.vdot(*pair) for pair in pairs])


class _Length:
    # Norms, by their squares: in float64 those of float32 stay in range.
    def __init__(self, square: Array):
        self.square, self.positive, self.log = square, square > 0, _log_root(square)


def _log_root(square: Array) -> Array:
    xp = library(square)
    return 0.5 * xp.log(xp.where(square > 0, square, 1.0))


def _cosine(product: Array, a: _Length, b: _Length) -> Array:
    xp, both = library(product), a.positive & b.positive
    return xp.where(both, product / xp.where(both, xp.sqrt(a.square) * xp.sqrt(b.square), 1.0), 0.0)


def _cut(x: Array, where: Array) -> Array:
    xp = library(x)
    return xp.where(where, xp.clip(x, -10.0, 10.0), 0.0)
