import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._misc import unravel_like
from .._types import Params, Scalar, State
from ..outputs import AbstractOutput
from ..preprocessors import AbstractPreprocessor, Identity
from ._base import AbstractOptimizer
from ._blocks import Blocks
from ._ends import init_ends, look, make_readout, num_features, preprocessor_for
from ._layouts import AbstractLayout
from ._lstm import make_cells, run_cells, zero_states


class CoordinatewiseLSTM(AbstractOptimizer):
    """One small LSTM, the same for all coordinates; each coordinate has a state of its own.

    The update is θ_{t+1} = θ_t + α·Σ h_t, the sum of the last layer's hidden state times the learning
    rate, so that no coordinate moves further than α times the width in one step.

    **Arguments:**

    - `hidden_sizes`: widths of the stacked LSTM layers.
    - `preprocessor`: what the network sees of the gradient; `Identity()` by default. With an `output` that
        shows the network features of its own, by default nothing beside them.
    - `learning_rate`: α; not a meta-parameter. The thesis takes 0.001 for quadratics, 0.01 for networks.
    - `linear_readout`: replaces the sum by a trained linear layer. It has no bias: with one, every
        coordinate would drift alike, which the thesis found to make learning impossible (sec. 5, fn. 4).
    - `output`: makes the update of a linear layer's answers and the gradient, instead of the sum. The layer
        has no bias and starts at zero. `learning_rate` is then without meaning: outputs have their own.
    - `key`: draws the initial weights.

    **Raises:** `ValueError` for no layers, sizes below 1, or an `output` together with `linear_readout`.

    Reference: thesis eq. 3.6, 3.7; Andrychowicz et al. 2016, sec. 2.1 (arXiv:1606.04474).
    """

    cells: tuple[eqx.nn.LSTMCell, ...]
    readout: eqx.nn.Linear | None
    preprocessor: AbstractPreprocessor | None
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
            raise ArgumentError(
                "`CoordinatewiseLSTM(hidden_sizes=...)` needs at least one layer of at least one unit. "
                f"Got hidden_sizes={hidden_sizes}.",
                argument="hidden_sizes",
                given=hidden_sizes,
            )
        if linear_readout and output is not None:
            raise ArgumentError(
                "`CoordinatewiseLSTM(linear_readout=True)` is instead of an `output`, "
                "which has a read-out anyway.",
                argument="linear_readout",
                given=linear_readout,
            )
        ckey, rkey = jr.split(key)
        self.preprocessor = preprocessor_for(preprocessor, output, Identity())
        self.cells = make_cells(num_features(self.preprocessor, output), hidden_sizes, key=ckey)
        if output is not None:
            self.readout = make_readout(hidden_sizes[-1], output)
        elif linear_readout:
            self.readout = eqx.nn.Linear(hidden_sizes[-1], 1, use_bias=False, key=rkey)
        else:
            self.readout = None
        self.learning_rate = learning_rate
        self.output = output

    def layout(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> AbstractLayout:
        return Blocks()

    def init(self, params: Params) -> State:
        num_coordinates = sum(leaf.size for leaf in jax.tree.leaves(params))
        return zero_states(self.cells, num_coordinates), *init_ends(self.preprocessor, self.output, params)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        del params
        lstm_state, _, output_state = state
        dtype = self.cells[0].weight_hh.dtype
        inputs, preprocessor_state = look(self.preprocessor, self.output, grads, state[1:], dtype)
        hidden, lstm_state = run_cells(self.cells, inputs, lstm_state)
        if self.readout is not None and self.output is not None:
            updates, output_state = self.output(self.readout.weight @ hidden, grads, output_state)
        else:
            total = jnp.sum(hidden, axis=0) if self.readout is None else (self.readout.weight @ hidden)[0]
            updates = unravel_like(self.learning_rate * total, grads)
        return updates, (lstm_state, preprocessor_state, output_state)
