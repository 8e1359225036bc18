"""Trained optimizers without JAX: files of `l2o_eqx.save`, stepped on NumPy arrays.

    optimizer = numpy_runtime.load("optimizer.safetensors")
    state = optimizer.init(params)                    # a dict of arrays by name
    updates, state = optimizer.update(grads, state)
    params = {name: x + updates[name] for name, x in params.items()}

This file imports NumPy and safetensors alone, and nothing of this package: copy it to where JAX is not. That
is why it reads files by itself. It knows `LearnedMomentum`, and `CoordinatewiseLSTM` that sees gradients,
their signed logarithms, or logarithms and signs; their equations are in the docstrings of these classes. All
is computed in float64, and rounded to the dtype of the gradients at the end.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

# By name; "layers.0.weight" and "layers.0.bias" are of one layer.
Arrays = Mapping[str, np.ndarray]
_FORMAT = 1
# As in l2o_eqx.optimizers.LearnedMomentum.
_DECAY, _LARGEST_ANSWER, _LONGEST_FIRST_MOVE = math.log(0.99), 6.0, math.log(1e6)


def load(path: str | os.PathLike[str]) -> "LearnedMomentum | CoordinatewiseLSTM":
    """The optimizer in a file of `l2o_eqx.save`.

    **Raises:** `FileNotFoundError`; `ValueError` for files that are damaged or from elsewhere, and for
    optimizers that this module does not know.
    """
    header, arrays = _read(path)
    found = _value(header["structure"], arrays)
    name = found.pop("class") if isinstance(found, dict) and "class" in found else "no class"
    kinds = {kind.__name__: kind for kind in (LearnedMomentum, CoordinatewiseLSTM)}
    if name not in kinds:
        raise ValueError(f"{path}: holds {name}; without JAX there are {', '.join(kinds)}")
    if found.pop("output", None) is not None:
        raise ValueError(f"{path}: a {name} with an `output` is not known without JAX")
    features = found.get("preprocessor", {"class": "Identity"})["class"]
    if features not in _FEATURES:
        raise ValueError(f"{path}: a {name} with the preprocessor {features} is not known without JAX")
    try:
        return kinds[name](**found)
    except TypeError as e:
        raise ValueError(f"{path}: its {name} has other settings than this module knows: {e}") from e


def _read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["l2o_eqx"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if header["format"] > _FORMAT:
            raise ValueError(f"format {header['format']} is newer than this module")
        if header.pop("sha256") != _digest(header, arrays):
            raise ValueError("the content does not match its sha256")
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"{path} is damaged or not from `l2o_eqx.save`: {e}") from e
    return header, arrays


def _digest(header: Mapping[str, Any], arrays: Arrays) -> str:
    dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    digest = hashlib.sha256(dumps(header).encode())
    for name, x in sorted(arrays.items()):
        digest.update(dumps([name, x.dtype.name, x.shape]).encode() + x.tobytes())
    return digest.hexdigest()


def _value(node: Any, arrays: Arrays) -> Any:
    # Modules become dicts with their class's name; arrays float64.
    if not isinstance(node, dict):
        return node
    ((tag, value),) = node.items()
    if tag == "array":
        return np.asarray(arrays[value], np.float64)
    if tag in ("list", "tuple"):
        return [_value(x, arrays) for x in value]
    if tag == "class":
        name, fields = value
        own = {field: _value(x, arrays) for field, x in fields.items()}
        return {"class": name.rpartition(":")[2], **own}
    return value


# The parts that both have.

LSTMState = list[tuple[np.ndarray, np.ndarray]]


def _zero_states(cells: list[dict[str, Any]], columns: int) -> LSTMState:
    sizes = [cell["weight_hh"].shape[1] for cell in cells]
    return [(np.zeros((size, columns)), np.zeros((size, columns))) for size in sizes]


def _run_cells(
    cells: list[dict[str, Any]], inputs: np.ndarray, states: LSTMState
) -> tuple[np.ndarray, LSTMState]:
    following = []
    for cell, (hidden, memory) in zip(cells, states, strict=True):
        gates = cell["weight_ih"] @ inputs + cell["weight_hh"] @ hidden
        if cell["bias"] is not None:
            gates = gates + cell["bias"][:, None]
        i, f, g, o = np.split(gates, 4)
        memory = _sigmoid(f) * memory + _sigmoid(i) * np.tanh(g)
        inputs = _sigmoid(o) * np.tanh(memory)
        following.append((inputs, memory))
    return inputs, following


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x) + 0.5


@dataclass
class CoordinatewiseLSTM:
    """`l2o_eqx.optimizers.CoordinatewiseLSTM`; the fields are those of the file."""

    cells: list[dict[str, Any]]
    readout: dict[str, Any] | None
    preprocessor: dict[str, Any]
    learning_rate: float

    def init(self, params: Arrays) -> LSTMState:
        """The state before the first step."""
        return _zero_states(self.cells, sum(x.size for x in params.values()))

    def update(self, grads: Arrays, state: LSTMState) -> tuple[dict[str, np.ndarray], LSTMState]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in grads.values()])
        features = _FEATURES[self.preprocessor["class"]](flat, self.preprocessor.get("p"))
        hidden, state = _run_cells(self.cells, features, state)
        total = hidden.sum(axis=0) if self.readout is None else (self.readout["weight"] @ hidden)[0]
        ends = np.cumsum([x.size for x in grads.values()])[:-1]
        parts = np.split(self.learning_rate * total, ends)
        updates = {
            name: part.reshape(x.shape).astype(x.dtype)
            for (name, x), part in zip(grads.items(), parts, strict=True)
        }
        return updates, state


def _signed_log(g: np.ndarray, p: float) -> np.ndarray:
    log, large = _logarithm(g, p)
    return np.where(large, log * np.sign(g), -math.exp(p) * g)[None]


def _log_and_sign(g: np.ndarray, p: float) -> np.ndarray:
    log, large = _logarithm(g, p)
    return np.stack([np.where(large, log, -1.0), np.where(large, np.sign(g), math.exp(p) * g)])


def _logarithm(g: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    large = np.abs(g) >= math.exp(-p)
    return np.log(np.where(large, np.abs(g), 1.0)) / p, large


_FEATURES = {
    "Identity": lambda g, p: g[None],
    "SignedLog": _signed_log,
    "LogAndSign": _log_and_sign,
}


@dataclass
class MomentumState:
    """Of `LearnedMomentum`: last gradients and updates, and one number for each group of arrays."""

    grads: dict[str, np.ndarray]
    updates: dict[str, np.ndarray]
    lstm: LSTMState
    log_curvature: np.ndarray
    known: np.ndarray
    log_first: np.ndarray  # of the first gradient that is not zero; −∞ before
    log_reference: float


@dataclass
class LearnedMomentum:
    """`l2o_eqx.optimizers.LearnedMomentum`; the fields are those of the file."""

    cells: list[dict[str, Any]]
    readout: np.ndarray
    offsets: np.ndarray
    log_first_move: np.ndarray
    per: str
    first_step: str

    def init(self, params: Arrays) -> MomentumState:
        """The state before the first step."""
        count = len(self._groups(params))
        zeros = {name: np.zeros(x.shape) for name, x in params.items()}
        reference = 0.0
        if self.first_step == "relative":
            square = sum(float(np.sum(np.square(x, dtype=np.float64))) for x in params.values())
            size = sum(x.size for x in params.values())
            reference = 0.5 * math.log(square / size) if square > 0 else 0.0
        return MomentumState(
            grads=zeros,
            updates=zeros,
            lstm=_zero_states(self.cells, count),
            log_curvature=np.zeros(count),
            known=np.zeros(count, bool),
            log_first=np.full(count, -np.inf),
            log_reference=reference,
        )

    def update(self, grads: Arrays, state: MomentumState) -> tuple[dict[str, np.ndarray], MomentumState]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        groups = self._groups(grads)
        now = {name: np.asarray(x, np.float64) for name, x in grads.items()}
        before, moved = state.grads, state.updates
        change = {name: now[name] - before[name] for name in now}

        def dot(a: Arrays, b: Arrays) -> np.ndarray:
            return np.array([sum(float(np.sum(a[name] * b[name])) for name in group) for group in groups])

        g, b, u, y = (_Length(dot(a, a)) for a in (now, before, moved, change))
        measured = y.positive & u.positive
        seen = np.where(measured, y.log - u.log, 0.0)
        later = np.where(measured, np.maximum(state.log_curvature + _DECAY, seen), state.log_curvature)
        curvature, known = np.where(state.known, later, seen), state.known | measured
        along = _cosine(dot(moved, change), u, y)
        log_along = np.log(np.maximum(along, 1e-5)) + y.log - u.log - curvature
        moving = g.positive & u.positive & known
        features = [
            _cosine(dot(now, moved), g, u),
            _cosine(dot(now, before), g, b),
            along,
            np.tanh(_cut(g.log - b.log, g.positive & b.positive)),
            _cut(log_along, measured) / 5,
            _cut(u.log + curvature - g.log, moving) / 3,
        ]
        hidden, lstm = _run_cells(self.cells, np.stack(features), state.lstm)
        answers = 4 * self.readout @ hidden + self.offsets[:, None]
        rate = np.clip(answers[0], -_LARGEST_ANSWER, _LARGEST_ANSWER)
        grown = g.positive & np.isfinite(state.log_first) & (g.log > state.log_first)
        rate = np.where(grown, np.minimum(rate, 0.0), rate) - curvature
        half_log_size = 0.5 * np.log([max(1, sum(now[name].size for name in group)) for group in groups])
        shortest = self.log_first_move + state.log_reference + half_log_size
        again = np.clip(u.log + math.log(2), shortest, shortest + _LONGEST_FIRST_MOVE)
        first = np.where(u.positive, again, shortest)
        length = np.exp(np.minimum(np.where(known, rate + g.log, first), 85.0))
        step = np.where(g.positive, length / np.exp(g.log), 0.0)
        keep = _sigmoid(answers[1])
        updates = {
            name: keep[i] * moved[name] - step[i] * now[name]
            for i, group in enumerate(groups)
            for name in group
        }
        log_first = np.where(np.isfinite(state.log_first) | ~g.positive, state.log_first, g.log)
        state = MomentumState(now, updates, lstm, curvature, known, log_first, state.log_reference)
        return {name: updates[name].astype(x.dtype) for name, x in grads.items()}, state

    def _groups(self, arrays: Arrays) -> list[list[str]]:
        # Which arrays share a network.
        labels = {"tensor": lambda name: name, "layer": lambda name: name.rpartition(".")[0]}
        label = labels.get(self.per, lambda name: "")
        groups: dict[str, list[str]] = {}
        for name in arrays:
            groups.setdefault(label(name), []).append(name)
        return list(groups.values())


class _Length:
    # Norms, by their squares: in float64 those of float32 stay in range.
    def __init__(self, square: np.ndarray):
        self.square, self.positive = square, square > 0
        self.log = 0.5 * np.log(np.where(self.positive, square, 1.0))


def _cosine(product: np.ndarray, a: _Length, b: _Length) -> np.ndarray:
    both = a.positive & b.positive
    return np.where(both, product / np.where(both, np.sqrt(a.square) * np.sqrt(b.square), 1.0), 0.0)


def _cut(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where, np.clip(x, -10.0, 10.0), 0.0)
