import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import (
    Array,
    Arrays,
    State,
    cast,
    in_order,
    library,
    own_dtype,
    shapes_of,
    sigmoid,
    to_numpy,
    zeros,
)
from ._threefry import fold_in, split, uniform

# As in l2o_eqx.optimizers.HierarchicalRNN.
_NUM_SCALES, _LARGEST_LOG_RATE = 4, 33.0


@dataclass
class HierarchicalRNN:
    """`l2o_eqx.optimizers.HierarchicalRNN`; the fields are those of the file.

    The draws of its first rates are those of JAX, for the same params in the same order.
    """

    coordinate_cell: dict[str, Any]
    tensor_cell: dict[str, Any]
    global_cell: dict[str, Any]
    starts: list[Array]
    directions: Array
    shortcuts: Array
    decay_weights: Array
    decay_bias: Array
    rate_weights: Array
    rate_bias: Array
    rate_logit: Array
    log_step: Array
    key: Any
    first_rates: list[float]

    def __post_init__(self):
        # No array: of a float32 tensor not all would be left.
        self.key = [int(word) for word in self.key]

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first step, however many there will be.

        The first rates depend on where the params are: from a GPU they are fetched for that, once.
        """
        shapes, tensors = shapes_of(params), {}
        # As JAX does, in float32 unless there is float64.
        wide = any("float64" in str(x.dtype) for x in params.values())
        dtype = np.dtype(np.float64 if wide else np.float32)
        bits = [to_numpy(x, np.float32).view(np.uint32).sum(dtype=np.uint32) for x in params.values()]
        key = fold_in(np.array(self.key, np.uint32), sum(map(int, bits)) % 2**32)
        for own_key, (name, x) in zip(split(key, len(params)), params.items(), strict=True):
            none = zeros(x).reshape(-1)
            tensors[name] = {
                "units": cast(self.starts[0], none.dtype)[:, None] + none,
                "means": _rows(none, _NUM_SCALES),
                "roots": _rows(none, _NUM_SCALES),
                "decays": _rows(none, 2),
                "log_rates": self._first_log_rates(own_key, none, dtype),
            }
            if len(self.directions) > 1:
                tensors[name]["offset"] = none
        second, third = self.starts[1:]
        levels = {"tensors": library(second).stack([second] * len(params), axis=1), "objective": third}
        return {"shapes": shapes, "coordinates": tensors, **levels}

    def _first_log_rates(self, key: np.ndarray, like: Array, dtype: np.dtype) -> Array:
        # Half of it for each coordinate, half for the tensor.
        least, largest = (math.log(rate) / 2 for rate in self.first_rates)
        own_key, tensor_key = split(key, 2)
        drawn = uniform(own_key, tuple(like.shape), dtype, least, largest)
        drawn = drawn + uniform(tensor_key, (), dtype, least, largest)
        return library(like).asarray(drawn, dtype=like.dtype, device=like.device)

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        grads, before = in_order(grads, state), state["coordinates"]
        count = max(1, sum(math.prod(x.shape) for x in grads.values()))
        mean_rate = sum(own["log_rates"].sum() for own in before.values()) / count
        updates, coordinates, seen = {}, {}, []
        for i, (name, grad) in enumerate(grads.items()):
            xp, dtype = library(grad), own_dtype(grad)
            above = xp.concat([state["tensors"][:, i], state["objective"]])[:, None]
            step, coordinates[name], means = self._update_tensor(
                cast(grad, dtype).reshape(-1), before[name], cast(above, dtype), cast(mean_rate, dtype)
            )
            updates[name] = cast(step.reshape(grad.shape), grad.dtype)
            seen.append(means)
        objective = state["objective"]
        dtype = objective.dtype
        seen = library(objective).stack([cast(x, dtype) for x in seen], axis=1)
        tensors = _gru(self.tensor_cell, seen, state["tensors"], objective[:, None])
        objective = _gru(self.global_cell, tensors.mean(1)[:, None], objective[:, None])[:, 0]
        following = {"coordinates": coordinates, "tensors": tensors, "objective": objective}
        return updates, {"shapes": state["shapes"], **following}

    def _update_tensor(
        self, grad: Array, own: State, above: Array, mean_rate: Array
    ) -> tuple[Array, State, Array]:
        # The update, the next state, and what the tensor's network sees.
        xp, dtype = library(grad), grad.dtype
        means, roots = _next_means(grad, own)
        scaled = xp.arcsinh(means / xp.where(roots > 0, roots, 1.0))
        logs = 2 * xp.log(xp.where(roots > 0, roots, 1.0))
        relative_rates = (own["log_rates"] - mean_rate)[None]
        inputs = xp.concat([scaled, scaled[:-1] * scaled[1:], logs - logs.mean(0), relative_rates])
        units = _gru(self.coordinate_cell, inputs, own["units"], above)

        directions = cast(self.directions, dtype) @ units + cast(self.shortcuts, dtype) @ scaled
        mean_squares = _mean_of_entries(xp.square(directions))[:, None]
        directions = directions / xp.sqrt(xp.where(mean_squares > 0, mean_squares, 1.0))
        change = cast(self.rate_weights, dtype) @ units + cast(self.rate_bias, dtype)
        log_rates = xp.clip(own["log_rates"] + change, -_LARGEST_LOG_RATE, _LARGEST_LOG_RATE)
        update = -xp.exp(log_rates + cast(self.log_step, dtype)) * directions[0]
        logits = cast(self.decay_weights, dtype) @ units + cast(self.decay_bias, dtype)[:, None]
        keep = cast(sigmoid(self.rate_logit), dtype)
        following = {
            "units": units,
            "means": means,
            "roots": roots,
            "decays": sigmoid(logits),
            "log_rates": keep * own["log_rates"] + (1 - keep) * log_rates,
        }
        if "offset" in own:
            following["offset"] = -xp.exp(log_rates) * directions[1]
            update = update + following["offset"] - own["offset"]
        return update, following, _mean_of_entries(xp.concat([units, inputs]))


def _rows(row: Array, count: int) -> Array:
    return library(row).stack([row] * count)


def _gru(cell: dict[str, Any], inputs: Array, state: Array, above: Array | None = None) -> Array:
    # All of it with the columns behind.
    dtype, size = state.dtype, len(state)
    seen = cast(cell["inputs"], dtype) @ inputs + cast(cell["bias"], dtype)[:, None]
    if above is not None:
        seen = seen + cast(cell["above"], dtype) @ above
    own = cast(cell["state"], dtype)
    gates = sigmoid(seen[: 2 * size] + own[: 2 * size] @ state)
    keep, reset = gates[:size], gates[size:]
    new = library(state).tanh(seen[2 * size :] + reset * (own[2 * size :] @ state))
    return keep * state + (1 - keep) * new


def _mean_of_entries(x: Array) -> Array:
    # 0 where there are none.
    return x.sum(1) / max(1, x.shape[1])


def _next_means(grad: Array, own: State) -> tuple[Array, Array]:
    # ḡ_s and r_s, without squares that vanish.
    xp = library(grad)
    decay, square_decay = own["decays"][:1], own["decays"][1:]
    exponents = xp.asarray([0.5**s for s in range(_NUM_SCALES)], dtype=grad.dtype, device=grad.device)
    decays = xp.where(decay > 0, xp.where(decay > 0, decay, 1.0) ** exponents[:, None], 0.0)
    means = decays * own["means"] + (1 - decays) * grad[None]
    largest = xp.maximum(own["roots"], abs(means))
    unit = xp.where(largest > 0, largest, 1.0)
    squares = square_decay * (own["roots"] / unit) ** 2 + (1 - square_decay) * (means / unit) ** 2
    return means, xp.where(largest > 0, unit * xp.sqrt(squares), 0.0)
