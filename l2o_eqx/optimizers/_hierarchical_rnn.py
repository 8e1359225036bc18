import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._errors import ArgumentError, check
from .._misc import ravel_wide, unravel_like
from .._types import Params, Scalar, State
from ._base import AbstractOptimizer
from ._hierarchical import mean_by_tensor

# Running means of the gradient, each over twice the time of the one before.
_NUM_SCALES = 4
_NUM_INPUTS = 3 * _NUM_SCALES
# At first the gates of all cells keep σ(2.2) = 0.9 of the state, and so does the fastest mean of gradients;
# mean squares and the logarithms of the rates keep σ(3.2) = 0.96.
_GATE_BIAS, _DECAY_LOGIT, _SQUARE_DECAY_LOGIT, _RATE_LOGIT = 2.2, 2.2, 3.2, 3.2
_LARGEST_LOG_RATE = 33.0


class _GRU(eqx.Module):
    # Columns are coordinates, tensors, or the one objective; `above` weighs the states of the levels above.
    inputs: Float[Array, "gates inputs"]
    state: Float[Array, "gates state"]
    above: Float[Array, "gates above"] | None
    bias: Float[Array, " gates"]

    def __init__(self, num_inputs: int, size: int, num_above: int, key: PRNGKeyArray):
        ikey, skey, akey = jr.split(key, 3)
        self.inputs = jr.normal(ikey, (3 * size, num_inputs)) / (2 * math.sqrt(num_inputs))
        self.state = jr.normal(skey, (3 * size, size)) / (2 * math.sqrt(size))
        above = jr.normal(akey, (3 * size, num_above)) / (2 * math.sqrt(num_above)) if num_above else None
        self.above = above
        self.bias = jnp.concatenate([jnp.full(2 * size, _GATE_BIAS), jnp.zeros(size)])

    def __call__(
        self,
        inputs: Float[Array, "inputs columns"],
        state: Float[Array, "state columns"],
        biases: Float[Array, "gates #columns"],
    ) -> Float[Array, "state columns"]:
        seen = self.inputs @ inputs + biases
        size = len(state)
        gates = jax.nn.sigmoid(seen[: 2 * size] + self.state[: 2 * size] @ state)
        keep, reset = gates[:size], gates[size:]
        new = jnp.tanh(seen[2 * size :] + reset * (self.state[2 * size :] @ state))
        return keep * state + (1 - keep) * new

    def biases(self, states: Float[Array, "above columns"] | None = None) -> Float[Array, "gates #columns"]:
        """Those of the gates, for as many columns as the states of the levels above have."""
        bias = self.bias[:, None]
        return bias if states is None or self.above is None else self.above @ states + bias


class _State(eqx.Module):
    # States of networks without where they start, which the first step adds: `update` is what is trained.
    is_first: Float[Array, ""]
    coordinates: Float[Array, "coordinate coordinates"]
    tensors: Float[Array, "tensor tensors"]
    objective: Float[Array, "global 1"]
    means: Float[Array, "scales coordinates"]
    roots: Float[Array, "scales coordinates"]
    decays: Float[Array, "2 coordinates"]
    log_rates: Float[Array, " coordinates"]
    offset: Float[Array, " coordinates"] | None


class HierarchicalRNN(AbstractOptimizer):
    """Three levels of recurrent networks: GRUs for every coordinate, every tensor, and the objective.

    A level's gates have biases that are affine in the states of the levels above; a tensor's network sees the
    mean over its coordinates of their states and inputs, the objective's the mean over the tensors' states.
    With everything of one coordinate but where said, scales s = 0 … 3, and h the coordinate's state,

        ḡ_s = d_s·ḡ_s + (1 − d_s)·g,   r_s² = c·r_s² + (1 − c)·ḡ_s²,   d_s = d^(2^−s),
        m_s = asinh(ḡ_s/r_s),
        inputs: m_s (4), m_s·m_(s+1) (3), ln r_s² less its mean over s (4), η less its mean over all (1),
        D = w·h + v·m,   η′ = η + a·h + b, kept within ±33,
        update = −e^(η′ + o)·D/rms(D) with the rms over the tensor,
        η ← σ(l)·η + (1 − σ(l))·η′,   d ← σ(w_d·h + b_d),   c ← σ(w_c·h + b_c).

    d and c are 0 in the first step. a and b are 0 before training, o is −1, and v one quarter each. The
    starting states of the networks are trained. The first η are drawn, anew for every starting point: half
    of it for each coordinate, half for each tensor.

    The update does not change if f is multiplied by a constant. On params it depends by their number, shapes
    and, through the draw, their starting point.

    **Arguments:**

    - `coordinate_size`, `tensor_size`, `global_size`: units of the three networks.
    - `first_rates`: the least and the largest of the first rates e^η, which are drawn log-uniformly.
    - `attention`: whether gradients are taken at another point than the params, e^η′·A/rms(A) before them,
        with A made as D is. What an inner run moves, and where it ends, is then that point.
    - `key`: draws the weights, and seeds the draws of the first rates.

    **Raises:** `ValueError` for sizes below 1, or rates that are not positive or in the wrong order.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize", sec. 3
    (arXiv:1703.04813); the numbers at the start and the clipping as in the code published with it.
    """

    coordinate_cell: _GRU
    tensor_cell: _GRU
    global_cell: _GRU
    starts: tuple[Float[Array, " coordinate"], Float[Array, " tensor"], Float[Array, " global"]]
    directions: Float[Array, "points coordinate"]
    shortcuts: Float[Array, "points scales"]
    decay_weights: Float[Array, "2 coordinate"]
    decay_bias: Float[Array, " 2"]
    rate_weights: Float[Array, " coordinate"]
    rate_bias: Float[Array, ""]
    rate_logit: Float[Array, ""]
    log_step: Float[Array, ""]
    key: PRNGKeyArray
    first_rates: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        coordinate_size: int = 10,
        tensor_size: int = 20,
        global_size: int = 20,
        first_rates: tuple[float, float] = (1e-6, 1e-2),
        *,
        attention: bool = False,
        key: PRNGKeyArray,
    ):
        sizes = (coordinate_size, tensor_size, global_size)
        check(
            f"`HierarchicalRNN(...)` needs at least one unit per level. Got {sizes}.",
            coordinate_size=(coordinate_size, coordinate_size >= 1),
            tensor_size=(tensor_size, tensor_size >= 1),
            global_size=(global_size, global_size >= 1),
        )
        least, largest = first_rates
        if not 0 < least <= largest:
            raise ArgumentError(
                "`HierarchicalRNN(first_rates=...)` are the least and the largest, both positive. "
                f"Got {first_rates}.",
                argument="first_rates",
                given=first_rates,
            )
        keys = jr.split(key, 9)
        self.coordinate_cell = _GRU(_NUM_INPUTS, coordinate_size, tensor_size + global_size, keys[0])
        self.tensor_cell = _GRU(coordinate_size + _NUM_INPUTS, tensor_size, global_size, keys[1])
        self.global_cell = _GRU(tensor_size, global_size, 0, keys[2])
        first, second, third = (
            jr.uniform(k, (n,), minval=-1, maxval=1) for k, n in zip(keys[3:6], sizes, strict=True)
        )
        self.starts = (first, second, third)
        scale = 1 / (2 * math.sqrt(coordinate_size))
        num_points = 1 + attention
        self.directions = scale * jr.normal(keys[6], (num_points, coordinate_size))
        self.shortcuts = jnp.full((num_points, _NUM_SCALES), 1 / _NUM_SCALES)
        self.decay_weights = scale * jr.normal(keys[7], (2, coordinate_size))
        self.decay_bias = jnp.array([_DECAY_LOGIT, _SQUARE_DECAY_LOGIT])
        self.rate_weights = jnp.zeros(coordinate_size)
        self.rate_bias = jnp.zeros(())
        self.rate_logit = jnp.asarray(_RATE_LOGIT)
        self.log_step = jnp.asarray(-1.0)
        self.key = keys[8]
        self.first_rates = (float(least), float(largest))

    def parts(self) -> dict[str, PyTree]:
        return {
            "coordinate": (self.coordinate_cell, self.starts[0]),
            "tensor": (self.tensor_cell, self.starts[1]),
            "global": (self.global_cell, self.starts[2]),
            "direction": (self.directions, self.shortcuts),
            "decays": (self.decay_weights, self.decay_bias),
            "rate": (self.rate_weights, self.rate_bias, self.rate_logit, self.log_step),
        }

    def init(self, params: Params) -> State:
        flat = ravel_wide(params)
        sizes, tensor_of = _tensors(params)
        first, second, third = (len(x) for x in self.starts)
        no_means = jnp.zeros((_NUM_SCALES, flat.size), flat.dtype)
        return _State(
            jnp.ones((), flat.dtype),
            jnp.zeros((first, flat.size), flat.dtype),
            jnp.zeros((second, len(sizes)), flat.dtype),
            jnp.zeros((third, 1), flat.dtype),
            no_means,
            no_means,
            jnp.zeros((2, flat.size), flat.dtype),
            self._first_log_rates(flat, len(sizes), tensor_of),
            jnp.zeros_like(flat) if len(self.directions) > 1 else None,
        )

    def _first_log_rates(self, flat, num_tensors, tensor_of):
        # The starting point's bits make other rates of every other one.
        bits = lax.bitcast_convert_type(jnp.sum(flat).astype(jnp.float32), jnp.uint32)
        own_key, tensor_key = jr.split(jr.fold_in(self.key, bits))
        least, largest = (math.log(rate) / 2 for rate in self.first_rates)
        own = jr.uniform(own_key, flat.shape, flat.dtype, least, largest)
        of_tensor = jr.uniform(tensor_key, (num_tensors,), flat.dtype, least, largest)
        return own + of_tensor[tensor_of]

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
        flat = ravel_wide(grads)
        if flat.size == 0:
            return grads, state
        # Own key aside, all in the dtype of the moments.
        weights = jax.tree.map(lambda x: x.astype(flat.dtype) if eqx.is_inexact_array(x) else x, self)
        updates, state = weights._step(flat, state, *_tensors(grads))
        return unravel_like(updates, grads), state

    def _step(self, grads, state, sizes, tensor_of):
        means, roots = _next_means(grads, state)
        scaled = jnp.arcsinh(means / jnp.where(roots > 0, roots, 1))
        inputs = _inputs(scaled, roots, state.log_rates)

        levels = (state.coordinates, state.tensors, state.objective)
        coordinates, tensors, objective = (
            x + state.is_first * start[:, None] for x, start in zip(levels, self.starts, strict=True)
        )
        above = jnp.concatenate([tensors, jnp.broadcast_to(objective, (len(objective), len(sizes)))])
        biases = self.coordinate_cell.biases(above)[:, tensor_of]
        hidden = self.coordinate_cell(inputs, coordinates, biases)
        seen = mean_by_tensor(jnp.concatenate([hidden, inputs]), tensor_of, sizes)
        tensors = self.tensor_cell(seen, tensors, self.tensor_cell.biases(objective))
        seen = jnp.mean(tensors, axis=1, keepdims=True)
        objective = self.global_cell(seen, objective, self.global_cell.biases())

        directions = self.directions @ hidden + self.shortcuts @ scaled
        mean_squares = mean_by_tensor(jnp.square(directions), tensor_of, sizes)
        directions /= jnp.sqrt(jnp.where(mean_squares > 0, mean_squares, 1))[:, tensor_of]

        log_rates = _kept_within(state.log_rates + self.rate_weights @ hidden + self.rate_bias)
        keep = jax.nn.sigmoid(self.rate_logit)
        updates, offset = -jnp.exp(log_rates + self.log_step) * directions[0], None
        if state.offset is not None:
            offset = -jnp.exp(log_rates) * directions[1]
            updates += offset - state.offset
        decays = jax.nn.sigmoid(self.decay_weights @ hidden + self.decay_bias[:, None])
        next_log_rates = keep * state.log_rates + (1 - keep) * log_rates
        levels = (jnp.zeros_like(state.is_first), hidden, tensors, objective)
        return updates, _State(*levels, means, roots, decays, next_log_rates, offset)


def _tensors(tree: PyTree) -> tuple[np.ndarray, np.ndarray]:
    # The sizes of the tensors, and the tensor of every coordinate.
    sizes = np.array([leaf.size for leaf in jax.tree.leaves(tree)], dtype=int)
    return sizes, np.repeat(np.arange(len(sizes)), sizes)


def _next_means(
    grads: Float[Array, " coordinates"], state: _State
) -> tuple[Float[Array, "scales coordinates"], Float[Array, "scales coordinates"]]:
    # ḡ_s and r_s. No root is taken of 0, where it has no derivative, nor of squares that vanish.
    decay, square_decay = state.decays[:1], state.decays[1:]
    known = decay > 0
    exponents = 0.5 ** jnp.arange(_NUM_SCALES, dtype=grads.dtype)[:, None]
    decays = jnp.where(known, jnp.where(known, decay, 1) ** exponents, 0)
    means = decays * state.means + (1 - decays) * grads[None]
    largest = lax.stop_gradient(jnp.maximum(state.roots, jnp.abs(means)))
    moved = largest > 0
    unit = jnp.where(moved, largest, 1)
    squares = square_decay * (state.roots / unit) ** 2 + (1 - square_decay) * (means / unit) ** 2
    return means, jnp.where(moved, unit * jnp.sqrt(jnp.where(moved, squares, 1)), 0)


def _inputs(
    scaled: Float[Array, "scales coordinates"],
    roots: Float[Array, "scales coordinates"],
    log_rates: Float[Array, " coordinates"],
) -> Float[Array, "inputs coordinates"]:
    logs = 2 * jnp.log(jnp.where(roots > 0, roots, 1))
    relative = logs - jnp.mean(logs, axis=0, keepdims=True)
    rates = log_rates - jnp.mean(log_rates)
    return jnp.concatenate([scaled, scaled[:-1] * scaled[1:], relative, rates[None]])


def _kept_within(log_rates: Float[Array, " coordinates"]) -> Float[Array, " coordinates"]:
    # Clipped, with the derivative of what is not: a rate at the limit can still be trained away from it.
    clipped = jnp.clip(log_rates, -_LARGEST_LOG_RATE, _LARGEST_LOG_RATE)
    return log_rates + lax.stop_gradient(clipped - log_rates)
