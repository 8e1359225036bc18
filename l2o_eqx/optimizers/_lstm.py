"""LSTM layers over many coordinates at once, features first and coordinates last.

With the coordinates on the last axis the four gates are contiguous slices and every element-wise
operation runs along memory; on a CPU this is a third faster than coordinates first.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._linear_algebra import orthonormal

# Rows of fewer coordinates are laid end to end for element-wise operations, which XLA vectorizes along the
# last axis only. Wide ones stay as they are: along with products they are faster in two dimensions.
_NARROW = 128

# Hidden and cell state of one layer, each as wide as the layer.
LSTMState = tuple[Float[Array, "_ coordinates"], Float[Array, "_ coordinates"]]


def make_cells(
    num_inputs: int, hidden_sizes: tuple[int, ...], *, key: PRNGKeyArray
) -> tuple[eqx.nn.LSTMCell, ...]:
    """Stacked cells with Keras's initial weights, which the thesis's code uses.

    Glorot-uniform input weights, orthogonal recurrent weights, zero biases but for 1 at the forget gate.
    """
    weights = _initial_weights(key, num_inputs, hidden_sizes)
    inputs = (num_inputs, *hidden_sizes[:-1])
    return tuple(map(_make_cell, inputs, hidden_sizes, weights))


def _make_cell(num_inputs: int, hidden_size: int, weights: tuple[Array, Array, Array]) -> eqx.nn.LSTMCell:
    # Only the structure: the cell's own random weights would be drawn for nothing.
    cell = eqx.filter_eval_shape(eqx.nn.LSTMCell, num_inputs, hidden_size, key=jr.key(0))
    return eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias), cell, weights)


# One program for all layers; drawn one by one they take seconds to compile.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _initial_weights(key, num_inputs, hidden_sizes):
    weights = []
    for size in hidden_sizes:
        key, ikey, hkey = jr.split(key, 3)
        weight_ih = jax.nn.initializers.glorot_uniform()(ikey, (num_inputs, 4 * size)).T
        weight_hh = orthonormal(jr.normal(hkey, (4 * size, size)))
        # Gate order i, f, g, o.
        bias = jnp.zeros(4 * size).at[size : 2 * size].set(1.0)
        weights.append((weight_ih, weight_hh, bias))
        num_inputs = size
    return weights


def zero_states(cells: tuple[eqx.nn.LSTMCell, ...], num_coordinates: int) -> tuple[LSTMState, ...]:
    """The state of every layer before the first step."""

    def zeros(cell):
        return jnp.zeros((cell.hidden_size, num_coordinates), cell.weight_hh.dtype)

    return tuple((zeros(cell), zeros(cell)) for cell in cells)


def run_cells(
    cells: tuple[eqx.nn.LSTMCell, ...],
    inputs: Float[Array, "features coordinates"],
    states: tuple[LSTMState, ...],
) -> tuple[Float[Array, "_ coordinates"], tuple[LSTMState, ...]]:
    """One step of all layers. Returns the last hidden state and the next states."""
    hidden = inputs
    next_states = []
    for cell, state in zip(cells, states, strict=True):
        hidden, memory = _run_cell(cell, hidden, state)
        next_states.append((hidden, memory))
    return hidden, tuple(next_states)


def _run_cell(cell: eqx.nn.LSTMCell, inputs, state):
    hidden, memory = state
    # One product in place of two, forward and (twice) backward.
    weight = jnp.concatenate([cell.weight_ih, cell.weight_hh], axis=1)
    gates = weight @ jnp.concatenate([inputs, hidden])
    if cell.bias is not None:
        gates = gates + cell.bias[:, None]
    shape = memory.shape
    if shape[1] < _NARROW:
        gates, memory = gates.reshape(-1), memory.reshape(-1)
    hidden, memory = _apply_gates(gates, memory)
    return hidden.reshape(shape), memory.reshape(shape)


def _sigmoid(x):
    # XLA's own divides by 1 + exp(−x), which takes a third longer on a CPU.
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


@jax.custom_jvp
def _apply_gates(gates, memory):
    i, f, g, o = jnp.split(gates, 4)
    memory = _sigmoid(f) * memory + _sigmoid(i) * jnp.tanh(g)
    return _sigmoid(o) * jnp.tanh(memory), memory


# The derivative with one factor per gate, so that six arrays are kept for the backward pass instead of the
# eleven that automatic differentiation keeps; along a window, moving them takes longer than computing them.
@_apply_gates.defjvp
def _apply_gates_jvp(primals, tangents):
    gates, memory = primals
    di, df, dg, do = jnp.split(tangents[0], 4)
    i, f, g, o = jnp.split(gates, 4)
    i, f, g, o = _sigmoid(i), _sigmoid(f), jnp.tanh(g), _sigmoid(o)
    next_memory = f * memory + i * g
    bounded = jnp.tanh(next_memory)
    dmemory = (g * i * (1 - i)) * di + (memory * f * (1 - f)) * df + (i * (1 - g**2)) * dg + f * tangents[1]
    dhidden = (bounded * o * (1 - o)) * do + (o * (1 - bounded**2)) * dmemory
    return (o * bounded, next_memory), (dhidden, dmemory)
