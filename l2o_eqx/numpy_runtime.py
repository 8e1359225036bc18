"""Trained optimizers without JAX: files of `l2o_eqx.save`, stepped on NumPy arrays.

    optimizer = numpy_runtime.load("optimizer.safetensors")
    state = optimizer.init(params)                    # a dict of arrays by name
    updates, state = optimizer.update(grads, state, params)
    params = {name: x + updates[name] for name, x in params.items()}

This file imports NumPy 2 and safetensors alone, and nothing of this package: copy it to where JAX is not.
That is why it reads files by itself. It knows `LearnedMomentum`, `AdamMLP`, `Equation`,
`CoordinatewiseLSTM` that sees gradients, their signed logarithms, or logarithms and signs, and `PerLayer` of
these; their equations are in the docstrings of these classes. All is computed in float64, and rounded to the
dtype of the gradients at the end.

The equations call only what NumPy and PyTorch both have: `l2o_eqx.torch_runtime` runs them on tensors.
"""

import functools
import hashlib
import json
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

if np.lib.NumpyVersion(np.__version__) < "2.0.0":
    raise ImportError(f"this module needs NumPy 2.0 or later, and here is {np.__version__}")
# NumPy's, or tensors of PyTorch.
Array = Any
# By name; "layers.0.weight" and "layers.0.bias" are of one layer.
Arrays = Mapping[str, Array]
State = dict[str, Any]
_FORMAT = 1
# As in l2o_eqx.optimizers.LearnedMomentum.
_DECAY, _LARGEST_ANSWER, _LONGEST_FIRST_MOVE = math.log(0.99), 6.0, math.log(1e6)
# As in l2o_eqx.optimizers.AdamMLP.
_DECAYS, _SQUARE_DECAY, _START, _NUM_DIRECTIONS = (0.5, 0.9, 0.97), 0.99, 2, 8
_MUON_STEPS, _MUON_FLOOR, _MUON_FAN_IN, _COEFFICIENTS = 3, 0.01, 1000, (3.4445, -4.7750, 2.0315)
# As in l2o_eqx.optimizers.Equation.
_MEANS, _FIRST_MOVE, _UNIT_STEPS = {"m0.5": 0.5, "m0.9": 0.9, "m0.99": 0.99}, 1e-3, 100
_FACTORS = ("cos*", "fan*", "run*")
# Entries of a tensor that go through the network of `AdamMLP` at once.
_BLOCK = 65_536


def load(
    path: str | os.PathLike[str],
) -> "LearnedMomentum | AdamMLP | Equation | CoordinatewiseLSTM | PerLayer":
    """The optimizer in a file of `l2o_eqx.save`.

    **Raises:** `FileNotFoundError`; `ValueError` for files that are damaged or from elsewhere, and for
    optimizers that this module does not know.
    """
    header, arrays = _read(path)
    try:
        return _rule(_value(header["structure"], arrays))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def _rule(found: Any) -> Any:
    found = dict(found) if isinstance(found, dict) else {}
    name = found.pop("class", "no class")
    kinds = (LearnedMomentum, AdamMLP, Equation, CoordinatewiseLSTM, PerLayer)
    known = {kind.__name__: kind for kind in kinds}
    if name not in known:
        raise ValueError(f"holds {name}; without JAX there are {', '.join(known)}")
    if found.pop("output", None) is not None:
        raise ValueError(f"a {name} with an `output` is not known without JAX")
    features = found.get("preprocessor", {"class": "Identity"})["class"]
    if features not in _FEATURES:
        raise ValueError(f"a {name} with the preprocessor {features} is not known without JAX")
    if name == "PerLayer":
        found["optimizers"] = {label: _rule(one) for label, one in found["optimizers"].items()}
    try:
        return known[name](**found)
    except TypeError as e:
        raise ValueError(f"its {name} has other settings than this module knows: {e}") from e


def _read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["l2o_eqx"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if header["format"] > _FORMAT:
            raise ValueError(f"format {header['format']} is newer than this module")
        if header.pop("sha256") != _digest(header, arrays):
            raise ValueError("the content does not match its sha256")
    except FileNotFoundError:
        raise
    except (SafetensorError, LookupError, OSError, TypeError, ValueError, AttributeError) as e:
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
    if tag == "dict":
        return {key: _value(x, arrays) for key, x in value.items()}
    return value


# What NumPy and PyTorch call differently.


def _in_order(grads: Arrays, state: State) -> Arrays:
    # That of `init`, which the state is in.
    shapes, of_init = _shapes(grads), state["shapes"]
    if shapes != of_init:
        raise ValueError(f"`update` needs the names and shapes of `init`, {of_init}. Got {shapes}")
    return {name: grads[name] for name in of_init}


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    # By name.
    if not isinstance(arrays, Mapping) or not arrays:
        raise ValueError(f"arrays must be in a dict by name, at least one. Got {type(arrays).__name__}")
    for name, x in arrays.items():
        if "float" not in str(getattr(x, "dtype", "")):
            found = getattr(x, "dtype", type(x).__name__)
            raise ValueError(f"{name!r} must be an array of real floating-point numbers. Got {found}")
    return {name: tuple(x.shape) for name, x in arrays.items()}


def _library(x: Array) -> Any:
    return np if isinstance(x, np.ndarray | np.generic) else sys.modules["torch"]


def _cast(x: Array, dtype: Any) -> Array:
    return x.astype(dtype, copy=False) if isinstance(x, np.ndarray | np.generic) else x.to(dtype)


def _wide(x: Array) -> Any:
    # The dtype of norms and networks. Apple's GPUs have no float64.
    xp = _library(x)
    return xp.float32 if xp is not np and x.device.type == "mps" else xp.float64


def _own(x: Array) -> Any:
    # The dtype of what there is for every entry.
    xp = _library(x)
    return np.float64 if xp is np else xp.promote_types(x.dtype, xp.float32)


def _zeros(like: Array) -> Array:
    return _library(like).zeros_like(_cast(like, _own(like)))


def _sigmoid(x: Array) -> Array:
    return 0.5 * _library(x).tanh(0.5 * x) + 0.5


# The network of two of them.

LSTMState = list[tuple[Array, Array]]


def _zero_states(cells: list[dict[str, Any]], like: Array, columns: int) -> LSTMState:
    xp, states = _library(like), []
    for cell in cells:
        shape = (cell["weight_hh"].shape[1], columns)
        states.append(tuple(xp.zeros(shape, dtype=_wide(like), device=like.device) for _ in range(2)))
    return states


def _run_cells(cells: list[dict[str, Any]], inputs: Array, states: LSTMState) -> tuple[Array, LSTMState]:
    xp, following = _library(inputs), []
    for cell, (hidden, memory) in zip(cells, states, strict=True):
        gates = cell["weight_ih"] @ inputs + cell["weight_hh"] @ hidden
        if cell["bias"] is not None:
            gates = gates + cell["bias"][:, None]
        size = len(gates) // 4
        i, f, g, o = (gates[k * size : (k + 1) * size] for k in range(4))
        memory = _sigmoid(f) * memory + _sigmoid(i) * xp.tanh(g)
        inputs = _sigmoid(o) * xp.tanh(memory)
        following.append((inputs, memory))
    return inputs, following


@dataclass
class CoordinatewiseLSTM:
    """`l2o_eqx.optimizers.CoordinatewiseLSTM`; the fields are those of the file."""

    cells: list[dict[str, Any]]
    readout: dict[str, Any] | None
    preprocessor: dict[str, Any]
    learning_rate: float

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first step, however many there will be."""
        shapes = _shapes(params)
        first = next(iter(params.values()))
        columns = sum(math.prod(x.shape) for x in params.values())
        return {"lstm": _zero_states(self.cells, first, columns), "shapes": shapes}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        grads, shapes = _in_order(grads, state), state["shapes"]
        first = next(iter(grads.values()))
        flat = _library(first).concat([_cast(x, _wide(x)).reshape(-1) for x in grads.values()])
        features = _FEATURES[self.preprocessor["class"]](flat, self.preprocessor.get("p"))
        hidden, lstm = _run_cells(self.cells, features, state["lstm"])
        total = hidden.sum(0) if self.readout is None else (self.readout["weight"] @ hidden)[0]
        total, updates, start = self.learning_rate * total, {}, 0
        for name, x in grads.items():
            end = start + math.prod(x.shape)
            updates[name], start = _cast(total[start:end].reshape(x.shape), x.dtype), end
        return updates, {"lstm": lstm, "shapes": shapes}


def _signed_log(g: Array, p: float) -> Array:
    xp, log, large = _logarithm(g, p)
    return xp.where(large, log * xp.sign(g), -math.exp(p) * g)[None]


def _log_and_sign(g: Array, p: float) -> Array:
    xp, log, large = _logarithm(g, p)
    return xp.stack([xp.where(large, log, -1.0), xp.where(large, xp.sign(g), math.exp(p) * g)])


def _logarithm(g: Array, p: float) -> tuple[Any, Array, Array]:
    xp = _library(g)
    large = abs(g) >= math.exp(-p)
    return xp, xp.log(xp.where(large, abs(g), 1.0)) / p, large


_FEATURES = {
    "Identity": lambda g, p: g[None],
    "SignedLog": _signed_log,
    "LogAndSign": _log_and_sign,
}


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
        shapes, first = _shapes(params), next(iter(params.values()))
        xp, groups = _library(first), self._groups(params)
        zeros = {name: _zeros(x) for name, x in params.items()}
        none = xp.zeros(len(groups), dtype=_wide(first), device=first.device)
        reference = 0 * none
        if self.first_step == "relative":
            square = sum(xp.sum(xp.square(_cast(x, _wide(x)))) for x in params.values())
            size = sum(math.prod(x.shape) for x in params.values())
            reference = reference + _log_root(square / size)
        return {
            "shapes": shapes,
            "grads": zeros,
            "updates": dict(zeros),
            "lstm": _zero_states(self.cells, first, len(groups)),
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
        grads, shapes = _in_order(grads, state), state["shapes"]
        groups, xp = self._groups(grads), _library(next(iter(grads.values())))
        now = {name: _cast(x, _own(x)) for name, x in grads.items()}
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
        hidden, lstm = _run_cells(self.cells, xp.stack(features), state["lstm"])
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
        keep = _sigmoid(answers[1])
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
        return {name: _cast(updates[name], x.dtype) for name, x in grads.items()}, following

    def _groups(self, arrays: Arrays) -> list[list[str]]:
        # Which arrays share a network.
        labels = {"tensor": _LABELS["by_leaf"], "layer": _LABELS["by_layer"]}
        return [[*group] for group in _grouped(arrays, labels.get(self.per, lambda name, x: "")).values()]


def _products(grad: Array, before: Array, moved: Array) -> Array:
    # Of one tensor: those of g, the gradient before, u and y with themselves, and of g·u, g·b, u·y.
    xp = _library(grad)
    y = grad - before
    g, b, u, y = (_cast(x.reshape(-1), _wide(grad)) for x in (grad, before, moved, y))
    pairs = ((g, g), (b, b), (u, u), (y, y), (g, u), (g, b), (u, y))
    return xp.stack([xp.vdot(*pair) for pair in pairs])


class _Length:
    # Norms, by their squares: in float64 those of float32 stay in range.
    def __init__(self, square: Array):
        self.square, self.positive, self.log = square, square > 0, _log_root(square)


def _log_root(square: Array) -> Array:
    xp = _library(square)
    return 0.5 * xp.log(xp.where(square > 0, square, 1.0))


def _cosine(product: Array, a: _Length, b: _Length) -> Array:
    xp, both = _library(product), a.positive & b.positive
    return xp.where(both, product / xp.where(both, xp.sqrt(a.square) * xp.sqrt(b.square), 1.0), 0.0)


def _cut(x: Array, where: Array) -> Array:
    xp = _library(x)
    return xp.where(where, xp.clip(x, -10.0, 10.0), 0.0)


@dataclass
class AdamMLP:
    """`l2o_eqx.optimizers.AdamMLP`; the fields are those of the file."""

    layers: list[dict[str, Any]]
    log_rate: Array
    num_steps: int
    matrices: bool
    decay: str
    horizon_power: float = 0.0

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first of `num_steps` steps, by default as many as it was trained for.

        **Raises:** `ValueError` for a number of steps below 1.
        """
        horizon = _horizon("AdamMLP", self.num_steps, num_steps)
        shapes, moments = _shapes(params), {}
        for name, x in params.items():
            zeros = _zeros(x)
            # In units of `scale`, so that float32 suffices for squares.
            moments[name] = {"means": [zeros] * len(_DECAYS), "square": zeros, "scale": zeros.sum()}
            if self.matrices and _is_matrix(x):
                moments[name]["muon_square"] = zeros
        return {"shapes": shapes, "step": 0, "horizon": horizon, "moments": moments}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state.

        **Raises:** `ValueError` without params.
        """
        if params is None:
            raise ValueError("AdamMLP looks at the params: hand them to `update`")
        grads = _in_order(grads, state)
        updates, moments = {}, {}
        for name, x in grads.items():
            if math.prod(x.shape):
                own = state["moments"][name]
                update, moments[name] = self._update_tensor(x, own, params[name], state)
                updates[name] = _cast(update, x.dtype)
            else:
                updates[name], moments[name] = x, state["moments"][name]
        return updates, {**state, "step": state["step"] + 1, "moments": moments}

    def _update_tensor(self, grad: Array, moments: State, param: Array, state: State) -> tuple[Array, State]:
        xp, dtype, size = _library(grad), _own(grad), math.prod(grad.shape)
        step, horizon = state["step"], state["horizon"]
        g, moments = _next_moments(_cast(grad, dtype), moments)
        corrections = [1 / (1 - b ** (step + 1)) for b in (0.0, *_DECAYS, _SQUARE_DECAY)]
        means = [c * m for c, m in zip(corrections, (g, *moments["means"]), strict=False)]
        square = corrections[-1] * moments["square"]
        mean_square = xp.where(moments["scale"] > 0, square.mean(), 1.0)
        ratios = [0.5 * xp.log(xp.square(m).mean() / mean_square + 1e-24) for m in means]
        rms = xp.sqrt(xp.square(_cast(param, dtype)).mean())
        fan_in, share = math.prod(grad.shape[1:]), min(step / horizon, 1.0)
        others = [math.log(fan_in) / 3 - 1, float(fan_in > 1), math.log(size) / 5 - 1]
        others += [2 * share - 1, math.tanh(step / 3), 0.5 * math.log(max(1.02 - share, 0.02))]
        others += [0.5 * math.log(horizon / 100)]
        facts = xp.asarray(others, dtype=dtype, device=grad.device)
        of_tensor = xp.concat([xp.stack([*ratios, 0.5 * xp.log(rms + 1e-3) + 1]), facts])

        decay = 1.0 if self.decay == "none" else _cosine_decay(share)
        log_rate = _cast(self.log_rate, dtype) + math.log(decay)
        log_rate = log_rate - self.horizon_power * math.log(horizon / 100)
        inverse = 1 / xp.sqrt(square + 1e-6 * mean_square)
        a, s = [m * inverse for m in means], [m / xp.sqrt(mean_square) for m in means]
        directions, start = [*a, *s], _START
        if self.matrices:
            directions, start = [*directions, a[_START]], _NUM_DIRECTIONS
        if "muon_square" in moments:
            norm = xp.maximum(_norm(means[1]), xp.sqrt(mean_square * size))
            muon = _near_orthogonal(means[1], norm)
            muon_square = _SQUARE_DECAY * moments["muon_square"] + (1 - _SQUARE_DECAY) * xp.square(muon)
            moments["muon_square"] = muon_square
            directions[-1] = muon / xp.sqrt(corrections[-1] * muon_square + _MUON_FLOOR)
            log_rate = log_rate + math.log(_MUON_FAN_IN / fan_in) / 4
        flat, blocks = [d.reshape(-1) for d in directions], []
        for i in range(0, size, _BLOCK):
            block = [d[i : i + _BLOCK] for d in flat]
            seen = [xp.tanh(abs(x)) for x in block[:4]] + [xp.tanh(block[0] * x) for x in block[1:4]]
            rate, *coefficients = self._run(of_tensor, xp.stack(seen))
            coefficients[start] = coefficients[start] + 1
            direction = sum(c * d for c, d in zip(coefficients, block, strict=True))
            blocks.append(-xp.exp(log_rate + xp.clip(2 * rate, -8, 4)) * direction)
        return xp.concat(blocks).reshape(grad.shape), moments

    def _run(self, of_tensor: Array, of_entry: Array) -> Array:
        xp, dtype = _library(of_entry), of_entry.dtype
        weights = [(_cast(x["weight"], dtype), _cast(x["bias"], dtype)[:, None]) for x in self.layers]
        (weight, bias), *others = weights
        # The tensor's features are one more bias of the first layer.
        split = len(of_tensor)
        x = weight[:, split:] @ of_entry + (weight[:, :split] @ of_tensor)[:, None] + bias
        for weight, bias in others:
            x = weight @ xp.clip(x, 0, None) + bias
        return x


def _is_matrix(x: Array) -> bool:
    return len(x.shape) > 1 and x.shape[0] > 1 and math.prod(x.shape) > x.shape[0]


def _next_moments(grad: Array, moments: State) -> tuple[Array, State]:
    # The gradient and the moments in units of the new scale, the power of two below the largest gradient;
    # it decays as the root of the mean square does.
    xp = _library(grad)
    largest = xp.maximum(abs(grad).max(), math.sqrt(_SQUARE_DECAY) * moments["scale"])
    some = largest > 0
    unit = xp.exp2(xp.floor(xp.log2(xp.where(some, largest, 1.0))))
    g, change = grad / unit, moments["scale"] / unit
    means = [b * change * m + (1 - b) * g for b, m in zip(_DECAYS, moments["means"], strict=True)]
    square = _SQUARE_DECAY * change**2 * moments["square"] + (1 - _SQUARE_DECAY) * xp.square(g)
    return g, {**moments, "means": means, "square": square, "scale": xp.where(some, unit, 0.0)}


def _near_orthogonal(mean: Array, norm: Array) -> Array:
    matrix = mean.reshape(mean.shape[0], -1)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / norm
    a, b, c = _COEFFICIENTS
    for _ in range(_MUON_STEPS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    wide = math.sqrt(wide.shape[1]) * wide
    return (wide if matrix.shape == wide.shape else wide.T).reshape(mean.shape)


def _cosine_decay(share: float) -> float:
    # Of the steps that are done.
    return (1 + math.cos(math.pi * share)) / 2 + 0.01


def _norm(x: Array) -> Array:
    xp = _library(x)
    return xp.sqrt(xp.square(x).sum())


def _horizon(name: str, of_training: int, num_steps: int | None) -> float:
    horizon = of_training if num_steps is None else num_steps
    if not horizon >= 1:
        raise ValueError(f"{name} needs at least one step. Got num_steps={num_steps}")
    return float(horizon)


@dataclass
class Equation:
    """`l2o_eqx.optimizers.Equation`; the fields are those of the file."""

    weights: Array
    terms: list[str]
    units: list[float]
    num_steps: int

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first of `num_steps` steps, by default as many as it was trained for.

        **Raises:** `ValueError` for a number of steps below 1.
        """
        horizon, pasts = _horizon("Equation", self.num_steps, num_steps), {}
        names = " ".join(self.terms)
        kept = [mean for mean in _MEANS if mean in re.findall(r"m0\.\d+", names)]
        kept += [own for own, where in (("v", "/sqrt(v)"), ("w", "adamuon")) if where in names]
        if any(_without_factors(term) in ("u", "g/L") for term in self.terms):
            kept.append("last u")
        if "g/L" in names:
            kept.append("last g")
        for name, x in params.items():
            pasts[name] = {own: _zeros(x) for own in kept}
            if "g/L" in names:
                pasts[name]["L"] = _zeros(x).sum()
        return {"shapes": _shapes(params), "step": 0, "horizon": horizon, "pasts": pasts}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state.

        **Raises:** `ValueError` without params where a term needs them.
        """
        if params is None and any(_without_factors(term) == "theta" for term in self.terms):
            raise ValueError("this Equation has the params in it: hand them to `update`")
        grads = _in_order(grads, state)
        updates, pasts = {}, {}
        for name, x in grads.items():
            past = dict(state["pasts"][name])
            if not math.prod(x.shape):
                updates[name], pasts[name] = x, past
                continue
            param = x if params is None else params[name]
            update = self._update_tensor(_cast(x, _own(x)), _cast(param, _own(x)), past, state)
            if "last u" in past:
                past["last u"] = update
            updates[name], pasts[name] = _cast(update, x.dtype), past
        return updates, {**state, "step": state["step"] + 1, "pasts": pasts}

    def _update_tensor(self, g: Array, param: Array, past: State, state: State) -> Array:
        # `past` is filled with what follows, but for the update.
        xp, steps, horizon = _library(g), state["step"] + 1, state["horizon"]
        for own in _MEANS.keys() & past.keys():
            past[own] = _MEANS[own] * past[own] + (1 - _MEANS[own]) * g
        found = {own: past[own] / (1 - b**steps) for own, b in _MEANS.items() if own in past}
        found |= {"g": g, "theta": param}
        correction = 1 - _SQUARE_DECAY**steps
        if "v" in past:
            past["v"] = _SQUARE_DECAY * past["v"] + (1 - _SQUARE_DECAY) * xp.square(g)
            square = past["v"] / correction
            found["1/sqrt(v)"] = 1 / xp.sqrt(square + 1e-6 * square.mean() + 1e-37)
        if "w" in past:
            muon = _muon(found["m0.5"])
            past["w"] = _SQUARE_DECAY * past["w"] + (1 - _SQUARE_DECAY) * xp.square(muon)
            found["adamuon(m0.5)"] = muon / xp.sqrt(past["w"] / correction + _MUON_FLOOR)
        if "L" in past:
            moved, changed = _norm(past["last u"]), _norm(g - past["last g"])
            slope = xp.where(moved > 0, changed / xp.where(moved > 0, moved, 1.0), 0.0)
            past["L"], past["last g"] = xp.maximum(_SQUARE_DECAY * past["L"], slope), g
            some = past["L"] > 0
            found["g/L"] = xp.where(some, g / xp.where(some, past["L"], 1.0), _FIRST_MOVE * _of_rms_one(g))
        if "last u" in past:
            found["u"] = past["last u"]

        share, fan_in = min(state["step"] / horizon, 1.0), math.prod(g.shape[1:])
        factors = {
            "cos*": _cosine_decay(share),
            "fan*": (_MUON_FAN_IN / max(1, fan_in)) ** 0.25 if len(g.shape) > 1 else 1.0,
            "run*": (_UNIT_STEPS / horizon) ** 0.25,
        }
        total = 0 * g
        for weight, unit, term in zip(self.weights, self.units, self.terms, strict=True):
            factor = math.prod(x for name, x in factors.items() if name in term)
            direction = _direction(_without_factors(term), found)
            total = total + _cast(weight, g.dtype) * (unit * factor) * direction
        return total


def _without_factors(term: str) -> str:
    for factor in _FACTORS:
        term = term.removeprefix(factor)
    return term


def _direction(term: str, found: Arrays) -> Array:
    # Those that are made of others are computed here: x/sqrt(v), sign(x), x/rms(x) and muon(x).
    if term in found:
        return found[term]
    if term.endswith("/sqrt(v)"):
        return found[term.removesuffix("/sqrt(v)")] * found["1/sqrt(v)"]
    function, _, name = term.removesuffix(")").rpartition("(")
    x = found[name]
    if function == "sign":
        return _library(x).sign(x)
    return _muon(x) if function == "muon" else _of_rms_one(x)


def _of_rms_one(x: Array) -> Array:
    xp = _library(x)
    rms = xp.sqrt(xp.square(x).mean())
    return xp.where(rms > 0, x / xp.where(rms > 0, rms, 1.0), 0.0)


def _muon(x: Array) -> Array:
    if not _is_matrix(x):
        return _of_rms_one(x)
    norm = _norm(x)
    return _near_orthogonal(x, _library(x).where(norm > 0, norm, 1.0))


@dataclass
class PerLayer:
    """`l2o_eqx.optimizers.PerLayer`: one of the others for each group of arrays, which their names tell."""

    optimizers: dict[str, Any]
    label: str

    def __post_init__(self):
        self.label = self.label.rpartition(":")[2]
        if self.label not in _LABELS:
            raise ValueError(
                f"a PerLayer by {self.label!r} is not known without JAX; {', '.join(_LABELS)} are"
            )

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first of `num_steps` steps.

        **Raises:** `ValueError` if a group has no optimizer.
        """
        groups = _grouped(params, _LABELS[self.label])
        if missing := sorted(groups.keys() - self.optimizers.keys()):
            known = ", ".join(self.optimizers)
            raise ValueError(f"there is no optimizer for {', '.join(missing)}; the groups are {known}")
        states = {label: self.optimizers[label].init(own, num_steps) for label, own in groups.items()}
        return {"shapes": _shapes(params), "groups": states}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        grads = _in_order(grads, state)
        updates, states = {}, {}
        for label, own in _grouped(grads, _LABELS[self.label]).items():
            theirs = None if params is None else {name: params[name] for name in own}
            step, states[label] = self.optimizers[label].update(own, state["groups"][label], theirs)
            updates |= step
        return {name: updates[name] for name in grads}, {**state, "groups": states}


def _grouped(arrays: Arrays, label: Callable[[str, Array], str]) -> dict[str, dict[str, Array]]:
    groups: dict[str, dict[str, Array]] = {}
    for name, x in arrays.items():
        groups.setdefault(label(name, x), {})[name] = x
    return groups


_LABELS = {
    "by_layer": lambda name, x: name.rpartition(".")[0] or "params",
    "by_leaf": lambda name, x: name,
    "by_rank": lambda name, x: f"rank{len(x.shape)}",
    "by_shape": lambda name, x: "x".join(map(str, x.shape)) or "scalar",
    "by_kind": lambda name, x: "convolution" if len(x.shape) >= 3 else "dense",
}
