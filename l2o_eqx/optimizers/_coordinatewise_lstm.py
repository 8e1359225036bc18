from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._misc import unravel_like
from .._types import Features, Params, State
from ..outputs import AbstractOutput
from ..preprocessors import AbstractPreprocessor, Identity
from ._base import AbstractOptimizer
from ._lstm import make_cells, make_readout, run_cells, zero_states


class CoordinatewiseLSTM(AbstractOptimizer):
    """One small LSTM, the same for all coordinates; each coordinate has a state of its own.

    The update is θ_{t+1} = θ_t + α·Σ h_t, the sum of the last layer's hidden state times the learning
    rate, so that no coordinate moves further than α times the width in one step.

    **Arguments:**

    - `hidden_sizes`: widths of the stacked LSTM layers.
    - `preprocessor`: what the network sees of the gradient; `Identity()` by default.
    - `learning_rate`: α; not a meta-parameter. The thesis takes 0.001 for quadratics, 0.01 for networks.
    - `linear_readout`: replaces the sum by a trained linear layer. It has no bias: with one, every
        coordinate would drift alike, which the thesis found to make learning impossible (sec. 5, fn. 4).
    - `output`: makes the update of a linear layer's answers and the gradient, instead of the sum. The layer
        has no bias and starts at zero. `learning_rate` is then without meaning: outputs have their own.
    - `key`: draws the initial weights.

    **Raises:** `ValueError` for no layers, sizes below 1, or an `output` together with `linear_readout`.

    Reference: thesis eq. 3.6, 3.7; Andrychowicz et al. 2016, sec. 2.1 (arXiv:1606.04474).
    """

    coordinatewise: ClassVar[bool] = True

    cells: tuple[eqx.nn.LSTMCell, ...]
    readout: eqx.nn.Linear | None
    preprocessor: AbstractPreprocessor
    learning_rate: float = eqx.field(static=True)
    output: AbstractOutput | None = None

    def __init__(
        self,
        hidden_sizes: tuple[int, ...] = (20, 20),
        preprocessor: AbstractPreprocessor | None = None,
        learning_rate: float = 1e-3,
        *,
        linear_readout: bool = False,
        output: AbstractOutput | None = None,
        key: PRNGKeyArray,
    ):
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(
                "`CoordinatewiseLSTM(hidden_sizes=...)` needs at least one layer of at least one unit. "
                f"Got hidden_sizes={hidden_sizes}."
            )
        if linear_readout and output is not None:
            raise ValueError(
                "`CoordinatewiseLSTM(linear_readout=True)` is instead of an `output`, which has a read-out anyway."
            )
        ckey, rkey = jr.split(key)
        self.preprocessor = Identity() if preprocessor is None else preprocessor
        self.cells = make_cells(self.preprocessor.num_features, hidden_sizes, key=ckey)
        if output is not None:
            self.readout = make_readout(hidden_sizes[-1], output.num_answers)
        elif linear_readout:
            self.readout = eqx.nn.Linear(hidden_sizes[-1], 1, use_bias=False, key=rkey)
        else:
            self.readout = None
        self.learning_rate = learning_rate
        self.output = output

    def init(self, params: Params) -> State:
        num_coordinates = sum(leaf.size for leaf in jax.tree.leaves(params))
        output_state = None if self.output is None else self.output.init(params)
        return zero_states(self.cells, num_coordinates), self.preprocessor.init(params), output_state

    def update(self, grads: Params, state: State, params: Params | None) -> tuple[Params, State]:
        del params
        lstm_state, preprocessor_state, output_state = state
        features, preprocessor_state = self.preprocessor(grads, preprocessor_state)
        dtype = self.cells[0].weight_hh.dtype
        hidden, lstm_state = run_cells(self.cells, flatten_features(features, dtype), lstm_state)
        if self.readout is not None and self.output is not None:
            updates, output_state = self.output(self.readout.weight @ hidden, grads, output_state)
        else:
            total = jnp.sum(hidden, axis=0) if self.readout is None else (self.readout.weight @ hidden)[0]
            updates = unravel_like(self.learning_rate * total, grads)
        return updates, (lstm_state, preprocessor_state, output_state)


def flatten_features(features: Features, dtype: jnp.dtype) -> Float[Array, "features coordinates"]:
    """All coordinates of a tree side by side, features in front: contiguous along the coordinates."""
    rows = [leaf.reshape(-1, leaf.shape[-1]).astype(dtype) for leaf in jax.tree.leaves(features)]
    return jnp.concatenate(rows).T
