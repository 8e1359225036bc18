import math
from dataclasses import dataclass
from typing import Any

from ._arrays import Array, Arrays, State, cast, in_order, library, shapes_of, wide
from ._lstm import run_cells, zero_states


@dataclass
class CoordinatewiseLSTM:
    """`l2o_eqx.optimizers.CoordinatewiseLSTM`; the fields are those of the file."""

    cells: list[dict[str, Any]]
    readout: dict[str, Any] | None
    preprocessor: dict[str, Any]
    learning_rate: float

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first step, however many there will be."""
        shapes = shapes_of(params)
        first = next(iter(params.values()))
        columns = sum(math.prod(x.shape) for x in params.values())
        return {"lstm": zero_states(self.cells, first, columns), "shapes": shapes}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        grads, shapes = in_order(grads, state), state["shapes"]
        first = next(iter(grads.values()))
        flat = library(first).concat([cast(x, wide(x)).reshape(-1) for x in grads.values()])
        features = FEATURES[self.preprocessor["class"]](flat, self.preprocessor.get("p"))
        hidden, lstm = run_cells(self.cells, features, state["lstm"])
        total = hidden.sum(0) if self.readout is None else (self.readout["weight"] @ hidden)[0]
        total, updates, start = self.learning_rate * total, {}, 0
        for name, x in grads.items():
            end = start + math.prod(x.shape)
            updates[name], start = cast(total[start:end].reshape(x.shape), x.dtype), end
        return updates, {"lstm": lstm, "shapes": shapes}


def _signed_log(g: Array, p: float) -> Array:
    xp, log, large = _logarithm(g, p)
    return xp.where(large, log * xp.sign(g), -math.exp(p) * g)[None]


def _log_and_sign(g: Array, p: float) -> Array:
    xp, log, large = _logarithm(g, p)
    return xp.stack([xp.where(large, log, -1.0), xp.where(large, xp.sign(g), math.exp(p) * g)])


def _logarithm(g: Array, p: float) -> tuple[Any, Array, Array]:
    xp = library(g)
    large = abs(g) >= math.exp(-p)
    return xp, xp.log(xp.where(large, abs(g), 1.0)) / p, large


FEATURES = {
    "Identity": lambda g, p: g[None],
    "SignedLog": _signed_log,
    "LogAndSign": _log_and_sign,
}
