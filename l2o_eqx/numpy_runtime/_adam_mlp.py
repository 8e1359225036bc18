import math
from dataclasses import dataclass
from typing import Any

from ._arrays import Array, Arrays, State, cast, in_order, library, norm_of, own_dtype, shapes_of, zeros
from ._horizon import cosine_decay, horizon_of
from ._matrices import MUON_FAN_IN, MUON_FLOOR, is_matrix, near_orthogonal

# As in l2o_eqx.optimizers.AdamMLP.
_DECAYS, _SQUARE_DECAY, _START, _NUM_DIRECTIONS = (0.5, 0.9, 0.97), 0.99, 2, 8
# Entries of a tensor that go through the network at once.
_BLOCK = 65_536


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
        horizon = horizon_of("AdamMLP", self.num_steps, num_steps)
        shapes, moments = shapes_of(params), {}
        for name, x in params.items():
            none = zeros(x)
            # In units of `scale`, so that float32 suffices for squares.
            moments[name] = {"means": [none] * len(_DECAYS), "square": none, "scale": none.sum()}
            if self.matrices and is_matrix(x):
                moments[name]["muon_square"] = none
        return {"shapes": shapes, "step": 0, "horizon": horizon, "moments": moments}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state.

        **Raises:** `ValueError` without params.
        """
        if params is None:
            raise ValueError("AdamMLP looks at the params: hand them to `update`")
        grads = in_order(grads, state)
        updates, moments = {}, {}
        for name, x in grads.items():
            if math.prod(x.shape):
                own = state["moments"][name]
                update, moments[name] = self._update_tensor(x, own, params[name], state)
                updates[name] = cast(update, x.dtype)
            else:
                updates[name], moments[name] = x, state["moments"][name]
        return updates, {**state, "step": state["step"] + 1, "moments": moments}

    def _update_tensor(self, grad: Array, moments: State, param: Array, state: State) -> tuple[Array, State]:
        xp, dtype, size = library(grad), own_dtype(grad), math.prod(grad.shape)
        step, horizon = state["step"], state["horizon"]
        g, moments = _next_moments(cast(grad, dtype), moments)
        corrections = [1 / (1 - b ** (step + 1)) for b in (0.0, *_DECAYS, _SQUARE_DECAY)]
        means = [c * m for c, m in zip(corrections, (g, *moments["means"]), strict=False)]
        square = corrections[-1] * moments["square"]
        mean_square = xp.where(moments["scale"] > 0, square.mean(), 1.0)
        ratios = [0.5 * xp.log(xp.square(m).mean() / mean_square + 1e-24) for m in means]
        rms = xp.sqrt(xp.square(cast(param, dtype)).mean())
        fan_in, share = math.prod(grad.shape[1:]), min(step / horizon, 1.0)
        others = [math.log(fan_in) / 3 - 1, float(fan_in > 1), math.log(size) / 5 - 1]
        others += [2 * share - 1, math.tanh(step / 3), 0.5 * math.log(max(1.02 - share, 0.02))]
        others += [0.5 * math.log(horizon / 100)]
        facts = xp.asarray(others, dtype=dtype, device=grad.device)
        of_tensor = xp.concat([xp.stack([*ratios, 0.5 * xp.log(rms + 1e-3) + 1]), facts])

        decay = 1.0 if self.decay == "none" else cosine_decay(share)
        log_rate = cast(self.log_rate, dtype) + math.log(decay)
        log_rate = log_rate - self.horizon_power * math.log(horizon / 100)
        inverse = 1 / xp.sqrt(square + 1e-6 * mean_square)
        a, s = [m * inverse for m in means], [m / xp.sqrt(mean_square) for m in means]
        directions, start = [*a, *s], _START
        if self.matrices:
            directions, start = [*directions, a[_START]], _NUM_DIRECTIONS
        if "muon_square" in moments:
            norm = xp.maximum(norm_of(means[1]), xp.sqrt(mean_square * size))
            muon = near_orthogonal(means[1], norm)
            muon_square = _SQUARE_DECAY * moments["muon_square"] + (1 - _SQUARE_DECAY) * xp.square(muon)
            moments["muon_square"] = muon_square
            directions[-1] = muon / xp.sqrt(corrections[-1] * muon_square + MUON_FLOOR)
            log_rate = log_rate + math.log(MUON_FAN_IN / fan_in) / 4
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
        xp, dtype = library(of_entry), of_entry.dtype
        weights = [(cast(x["weight"], dtype), cast(x["bias"], dtype)[:, None]) for x in self.layers]
        (weight, bias), *others = weights
        # The tensor's features are one more bias of the first layer.
        split = len(of_tensor)
        x = weight[:, split:] @ of_entry + (weight[:, :split] @ of_tensor)[:, None] + bias
        for weight, bias in others:
            x = weight @ xp.clip(x, 0, None) + bias
        return x


def _next_moments(grad: Array, moments: State) -> tuple[Array, State]:
    # The gradient and the moments in units of the new scale, the power of two below the largest gradient;
    # it decays as the root of the mean square does.
    xp = library(grad)
    largest = xp.maximum(abs(grad).max(), math.sqrt(_SQUARE_DECAY) * moments["scale"])
    some = largest > 0
    unit = xp.exp2(xp.floor(xp.log2(xp.where(some, largest, 1.0))))
    g, change = grad / unit, moments["scale"] / unit
    means = [b * change * m + (1 - b) * g for b, m in zip(_DECAYS, moments["means"], strict=True)]
    square = _SQUARE_DECAY * change**2 * moments["square"] + (1 - _SQUARE_DECAY) * xp.square(g)
    return g, {**moments, "means": means, "square": square, "scale": xp.where(some, unit, 0.0)}
