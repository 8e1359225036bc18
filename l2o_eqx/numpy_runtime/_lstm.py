"""LSTMs, one cell after the other, over columns."""

from typing import Any

from ._arrays import Array, library, sigmoid, wide

LSTMState = list[tuple[Array, Array]]


def zero_states(cells: list[dict[str, Any]], like: Array, columns: int) -> LSTMState:
    xp, states = library(like), []
    for cell in cells:
        shape = (cell["weight_hh"].shape[1], columns)
        states.append(tuple(xp.zeros(shape, dtype=wide(like), device=like.device) for _ in range(2)))
    return states


def run_cells(cells: list[dict[str, Any]], inputs: Array, states: LSTMState) -> tuple[Array, LSTMState]:
    xp, following = library(inputs), []
    for cell, (hidden, memory) in zip(cells, states, strict=True):
        gates = cell["weight_ih"] @ inputs + cell["weight_hh"] @ hidden
        if cell["bias"] is not None:
            gates = gates + cell["bias"][:, None]
        size = len(gates) // 4
        i, f, g, o = (gates[k * size : (k + 1) * size] for k in range(4))
        memory = sigmoid(f) * memory + sigmoid(i) * xp.tanh(g)
        inputs = sigmoid(o) * xp.tanh(memory)
        following.append((inputs, memory))
    return inputs, following
