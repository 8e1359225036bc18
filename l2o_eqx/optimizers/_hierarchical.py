import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._devices._spread import is_spread
from .._errors import check
from .._misc import unravel_like
from .._types import Params, Scalar, State
from ..outputs import AbstractOutput
from ..preprocessors import AbstractPreprocessor, LogAndSign
from ._base import AbstractOptimizer
from ._by_entry import over_entries
from ._ends import init_ends, look, make_readout, num_features, preprocessor_for
from ._lstm import LSTMState, make_cells, run_cells, zero_states


class Hierarchical(AbstractOptimizer):
    """Three levels of LSTMs: one per coordinate, one per tensor, one for all; weights shared in a level.

    Each step goes up and its result comes down in the next: a coordinate's network sees its gradient and
    its tensor's last hidden state; a tensor's sees the mean hidden state of its coordinates and the last
    global one; the global one sees the mean over tensors. So coordinates can tell each other how the
    optimization goes, at little cost. The update is the learning rate times the sum of a coordinate's
    hidden state.

    **Arguments:**

    - `coordinate_size`, `tensor_size`, `global_size`: widths of the three networks.
    - `preprocessor`: what a coordinate sees of its gradient; `LogAndSign()` by default, nothing beside an
        `output` that shows features of its own.
    - `learning_rate`: as in `CoordinatewiseLSTM`.
    - `output`: as in `CoordinatewiseLSTM`, of a coordinate's hidden state.
    - `key`: draws the initial weights.

    **Raises:** `ValueError` for sizes below 1.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize", sec. 3.1
    (arXiv:1703.04813), with LSTMs for its GRUs and without its hand-designed features.
    """

    coordinate_cell: eqx.nn.LSTMCell
    tensor_cell: eqx.nn.LSTMCell
    global_cell: eqx.nn.LSTMCell
    preprocessor: AbstractPreprocessor | None
    learning_rate: float = eqx.field(static=True)
    readout: eqx.nn.Linear | None = None
    output: AbstractOutput | None = None

    def __init__(
        self,
        coordinate_size: int = 20,
        tensor_size: int = 20,
        global_size: int = 20,
        preprocessor: AbstractPreprocessor | None = None,
        learning_rate: float = 1e-3,
        *,
        output: AbstractOutput | None = None,
        key: PRNGKeyArray,
    ):
        check(
            "`Hierarchical(...)` needs at least one unit per level. Got "
            f"coordinate_size={coordinate_size}, tensor_size={tensor_size}, "
            f"global_size={global_size}.",
            coordinate_size=(coordinate_size, coordinate_size >= 1),
            tensor_size=(tensor_size, tensor_size >= 1),
            global_size=(global_size, global_size >= 1),
        )
        ckey, tkey, gkey = jr.split(key, 3)
        self.preprocessor = preprocessor_for(preprocessor, output, LogAndSign())
        num_inputs = num_features(self.preprocessor, output) + tensor_size
        (self.coordinate_cell,) = make_cells(num_inputs, (coordinate_size,), key=ckey)
        (self.tensor_cell,) = make_cells(coordinate_size + global_size, (tensor_size,), key=tkey)
        (self.global_cell,) = make_cells(tensor_size, (global_size,), key=gkey)
        self.learning_rate = learning_rate
        self.readout = None if output is None else make_readout(coordinate_size, output)
        self.output = output

    def parts(self) -> dict[str, PyTree]:
        cells = {"coordinate": self.coordinate_cell, "tensor": self.tensor_cell, "global": self.global_cell}
        return cells if self.output is None else {**cells, "output": (self.readout, self.output)}

    def init(self, params: Params) -> State:
        sizes = [leaf.size for leaf in jax.tree.leaves(params)]
        if is_spread(params):
            return self._init_by_entry(params)
        cells = (self.coordinate_cell, self.tensor_cell, self.global_cell)
        counts = (sum(sizes), len(sizes), 1)
        levels = tuple(zero_states((c,), n)[0] for c, n in zip(cells, counts, strict=True))
        return levels, *init_ends(self.preprocessor, self.output, params)

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
        if isinstance(state, _StateByEntry):
            return self._update_by_entry(grads, state)
        (coordinate_state, tensor_state, global_state), _, output_state = state
        sizes = np.array([leaf.size for leaf in jax.tree.leaves(grads)], int)
        tensor_of = np.repeat(np.arange(len(sizes)), sizes)

        dtype = self.coordinate_cell.weight_hh.dtype
        own, preprocessor_state = look(self.preprocessor, self.output, grads, state[1:], dtype)
        inputs = jnp.concatenate([own, tensor_state[0][:, tensor_of]])
        hidden, (coordinate_state,) = run_cells((self.coordinate_cell,), inputs, (coordinate_state,))

        means = _mean_by_tensor(hidden, tensor_of, sizes)
        tensor_state, global_state = self._run_upper_levels(means, tensor_state, global_state)
        updates, output_state = self._answer(hidden, grads, output_state)
        levels = (coordinate_state, tensor_state, global_state)
        return updates, (levels, preprocessor_state, output_state)

    def _run_upper_levels(self, means, tensor_state, global_state):
        num_tensors = means.shape[1]
        from_above = jnp.broadcast_to(global_state[0], (global_state[0].shape[0], num_tensors))
        inputs = jnp.concatenate([means, from_above])
        tensors, (tensor_state,) = run_cells((self.tensor_cell,), inputs, (tensor_state,))
        if num_tensors:
            inputs = jnp.mean(tensors, axis=1, keepdims=True)
            _, (global_state,) = run_cells((self.global_cell,), inputs, (global_state,))
        return tensor_state, global_state

    def _answer(self, hidden, grads, output_state):
        if self.readout is None or self.output is None:
            return unravel_like(self.learning_rate * jnp.sum(hidden, axis=0), grads), output_state
        return self.output(self.readout.weight @ hidden, grads, output_state)

    def _init_by_entry(self, params):
        def one(entry):
            (coordinate,) = zero_states((self.coordinate_cell,), 1)
            return coordinate, init_ends(self.preprocessor, self.output, entry[None])

        coordinates = jax.tree.map(lambda x: over_entries(one, x.ndim)(x), params)
        count = len(jax.tree.leaves(params))
        (tensors,), (whole,) = zero_states((self.tensor_cell,), count), zero_states((self.global_cell,), 1)
        return _StateByEntry(coordinates, tensors, whole)

    def _update_by_entry(self, grads, state):
        dtype = self.coordinate_cell.weight_hh.dtype

        def one(grad, state, from_above):
            coordinate, ends = state
            grad = grad[None]
            own, before = look(self.preprocessor, self.output, grad, ends, dtype)
            inputs = jnp.concatenate([own, from_above[:, None]])
            hidden, (coordinate,) = run_cells((self.coordinate_cell,), inputs, (coordinate,))
            update, after = self._answer(hidden, grad, ends[1])
            return update[0], (coordinate, (before, after)), hidden[:, 0]

        leaves, treedef = jax.tree.flatten(grads)
        updates, coordinates, means = [], [], []
        for i, (grad, own) in enumerate(zip(leaves, treedef.flatten_up_to(state.coordinates), strict=True)):
            run = functools.partial(one, from_above=state.tensors[0][:, i])
            update, own, hidden = over_entries(run, grad.ndim)(grad, own)
            updates.append(update)
            coordinates.append(own)
            means.append(jnp.sum(hidden, axis=range(grad.ndim)) / max(1, grad.size))
        means = jnp.stack(means, axis=1)
        tensors, whole = self._run_upper_levels(means, state.tensors, state.whole)
        state = _StateByEntry(treedef.unflatten(coordinates), tensors, whole)
        return treedef.unflatten(updates), state


class _StateByEntry(eqx.Module):
    # Of params that are spread over devices: coordinates stay entries of their arrays.
    coordinates: PyTree
    tensors: LSTMState
    whole: LSTMState


def _mean_by_tensor(
    hidden: Float[Array, "hidden coordinates"], tensor_of: np.ndarray, sizes: np.ndarray
) -> Float[Array, "hidden tensors"]:
    """The mean over the coordinates of every tensor, 0 where there are none.

    **Arguments:**

    - `tensor_of`: the number of each coordinate's tensor, in order.
    - `sizes`: how many each has.
    """
    sums = jax.ops.segment_sum(hidden.T, tensor_of, len(sizes), indices_are_sorted=True).T
    return sums / jnp.asarray(np.maximum(sizes, 1), hidden.dtype)[None]
