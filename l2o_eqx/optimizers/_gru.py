"""A GRU layer over many columns at once, features first and columns last, as `_lstm.py` has it."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._geometry import sigmoid


def run_gru(
    cell: eqx.nn.GRUCell, inputs: Float[Array, "features columns"], hidden: Float[Array, "hidden columns"]
) -> Float[Array, "hidden columns"]:
    """One step of `cell`, whose equations are Equinox's. Returns the next hidden state."""
    from_inputs = cell.weight_ih @ inputs
    if cell.bias is not None:
        from_inputs = from_inputs + cell.bias[:, None]
    reset_in, update_in, new_in = jnp.split(from_inputs, 3)
    reset_hidden, update_hidden, new_hidden = jnp.split(cell.weight_hh @ hidden, 3)
    if cell.bias_n is not None:
        new_hidden = new_hidden + cell.bias_n[:, None]
    reset, kept = sigmoid(reset_in + reset_hidden), sigmoid(update_in + update_hidden)
    new = jnp.tanh(new_in + reset * new_hidden)
    return new + kept * (hidden - new)
