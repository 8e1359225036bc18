import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._errors import ArgumentError, check
from .._misc import plain, tree_dtype, wide_dtype_of
from .._types import Params, Scalar, State
from ._answers import Answers
from ._base import AbstractOptimizer
from ._per_layer import by_leaf

# Running means of the gradient, each over twice the time of the one before.
_NUM_SCALES = 4
_NUM_INPUTS = 3 * _NUM_SCALES
# At first the gates of all cells keep σ(2.2) = 0.9 of the state, and so does the fastest mean of gradients;
# mean squares and the logarithms of the rates keep σ(3.2) = 0.96.
_GATE_BIAS, _DECAY_LOGIT, _SQUARE_DECAY_LOGIT, _RATE_LOGIT = 2.2, 2.2, 3.2, 3.2
_LARGEST_LOG_RATE = 33.0
_FEATURES = tuple(f"m_{s}" for s in range(_NUM_SCALES))
_FEATURES += tuple(f"m_{s} m_{s + 1}" for s in range(_NUM_SCALES - 1))
_FEATURES += (*(f"ln r_{s}² less its mean" for s in range(_NUM_SCALES)), "η less its mean")
_SYMBOLS = (
    "All are means over the entries of a tensor. m: running means of the gradient over four times, in units "
    "of r; r: root of their mean square; η: log rate."
)


class _GRU(eqx.Module):
    # Units come first, and behind them the axes of a tensor, all tensors, or nothing: entries of an array
    # that is spread over devices stay where they are. `above` weighs the states of the levels above.
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
        inputs: Float[Array, "inputs *shape"],
        state: Float[Array, "state *shape"],
        above: Float[Array, "above *#shape"] | None = None,
    ) -> Float[Array, "state *shape"]:
        seen = jnp.tensordot(self.inputs, inputs, 1) + _behind(self.bias, state.ndim)
        if self.above is not None and above is not None:
            seen += jnp.tensordot(self.above, above, 1)
        size = len(state)
        gates = jax.nn.sigmoid(seen[: 2 * size] + jnp.tensordot(self.state[: 2 * size], state, 1))
        keep, reset = gates[:size], gates[size:]
        new = jnp.tanh(seen[2 * size :] + reset * jnp.tensordot(self.state[2 * size :], state, 1))
        return keep * state + (1 - keep) * new


def _behind(row: Float[Array, " units"], ndim: int) -> Float[Array, "units ..."]:
    # With so many axes in all.
    return row.reshape(-1, *(1,) * (ndim - 1))


class _Tensor(eqx.Module):
    # Of one tensor, in its shape.
    units: Float[Array, "size *shape"]
    means: Float[Array, "scales *shape"]
    roots: Float[Array, "scales *shape"]
    decays: Float[Array, "2 *shape"]
    log_rates: Float[Array, "*shape"]
    offset: Float[Array, "*shape"] | None


class _State(eqx.Module):
    # States of networks without where they start, which the first step adds: `update` is what is trained.
    is_first: Float[Array, ""]
    coordinates: list[_Tensor]
    tensors: Float[Array, "size tensors"]
    objective: Float[Array, " global"]


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
            "`HierarchicalRNN(...)` needs at least one unit per level. Got "
            f"coordinate_size={coordinate_size}, tensor_size={tensor_size}, global_size={global_size}.",
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
        leaves, dtype = jax.tree.leaves(params), wide_dtype_of(tree_dtype(params))
        # The starting point's bits make other rates of every other one; their sum is free of rounding.
        numbers = [lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32) for leaf in leaves]
        bits = sum((jnp.sum(x, dtype=jnp.uint32) for x in numbers), jnp.zeros((), jnp.uint32))
        keys = jr.split(jr.fold_in(self.key, bits), max(1, len(leaves)))
        _, second, third = (len(x) for x in self.starts)
        return _State(
            jnp.ones((), dtype),
            [self._init_tensor(leaf.shape, dtype, key) for leaf, key in zip(leaves, keys, strict=False)],
            jnp.zeros((second, len(leaves)), dtype),
            jnp.zeros(third, dtype),
        )

    def _init_tensor(self, shape, dtype, key):
        own_key, tensor_key = jr.split(key)
        least, largest = (math.log(rate) / 2 for rate in self.first_rates)
        own = jr.uniform(own_key, shape, dtype, least, largest)
        of_tensor = jr.uniform(tensor_key, (), dtype, least, largest)
        no_means = jnp.zeros((_NUM_SCALES, *shape), dtype)
        return _Tensor(
            jnp.zeros((len(self.starts[0]), *shape), dtype),
            no_means,
            no_means,
            jnp.zeros((2, *shape), dtype),
            own + of_tensor,
            jnp.zeros(shape, dtype) if len(self.directions) > 1 else None,
        )

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
        if not jax.tree.leaves(grads):
            return grads, state
        updates, state, _, _ = self._step(grads, state)
        return updates, state

    def answers(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Answers | None:
        """Means over the entries of every tensor: of the inputs, and of what the lowest network answers.

        That is the rate e^(η′ + o), by the mean of its logarithm; the change η′ − η; and the decays d and c
        for the next step.
        """
        del params, value, key
        # Tensors without any entry have no mean.
        names = [by_leaf(*each) for each in jtu.tree_leaves_with_path(plain(grads)) if each[1].size]
        if not names:
            return None
        _, after, seen, log_rates = self._step(grads, state)
        rows = [
            (
                jnp.exp(jnp.mean(now + self.log_step.astype(now.dtype))),
                jnp.mean(now - old.log_rates),
                *_mean_of_entries(new.decays),
            )
            for now, old, new in zip(log_rates, state.coordinates, after.coordinates, strict=True)
            if now.size
        ]
        titles = ("rate", "log rate, change", "decay of means, d", "decay of squares, c")
        inputs = [x[-_NUM_INPUTS:] for x, now in zip(seen, log_rates, strict=True) if now.size]
        return Answers.of(
            names,
            dict(zip(_FEATURES, jnp.stack(inputs, axis=1), strict=True)),
            {title: jnp.stack(row) for title, row in zip(titles, zip(*rows, strict=True), strict=True)},
            _SYMBOLS,
        )

    def _step(self, grads, state):
        # Updates and next state; and of every tensor what its network sees, and the η′ of its entries.
        leaves, treedef = jax.tree.flatten(grads)
        dtype = state.is_first.dtype
        # Own key aside, all in the dtype of the moments.
        own = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, self)
        first, *others = own.starts
        tensors = state.tensors + state.is_first * others[0][:, None]
        objective = state.objective + state.is_first * others[1]
        count = max(1, sum(leaf.size for leaf in leaves))
        mean_rate = sum(jnp.sum(tensor.log_rates) for tensor in state.coordinates) / count
        updates, coordinates, seen, rates = [], [], [], []
        for i, (leaf, tensor) in enumerate(zip(leaves, state.coordinates, strict=True)):
            units = tensor.units + state.is_first * _behind(first, tensor.units.ndim)
            above = _behind(jnp.concatenate([tensors[:, i], objective]), units.ndim)
            update, tensor, means, log_rates = own._update_tensor(
                leaf.astype(dtype), tensor, units, above, mean_rate
            )
            updates.append(update.astype(leaf.dtype))
            coordinates.append(tensor)
            seen.append(means)
            rates.append(log_rates)
        tensors = own.tensor_cell(jnp.stack(seen, axis=1), tensors, objective[:, None])
        objective = own.global_cell(jnp.mean(tensors, axis=1), objective)
        state = _State(jnp.zeros_like(state.is_first), coordinates, tensors, objective)
        return treedef.unflatten(updates), state, seen, rates

    def _update_tensor(self, grad, tensor, units, above, mean_rate):
        # The update, the next state, what the tensor's network sees, and η′.
        means, roots = _next_means(grad, tensor)
        scaled = jnp.arcsinh(means / jnp.where(roots > 0, roots, 1))
        inputs = _inputs(scaled, roots, tensor.log_rates - mean_rate)
        units = self.coordinate_cell(inputs, units, above)

        directions = jnp.tensordot(self.directions, units, 1) + jnp.tensordot(self.shortcuts, scaled, 1)
        mean_squares = _mean_of_entries(jnp.square(directions))
        directions /= _behind(jnp.sqrt(jnp.where(mean_squares > 0, mean_squares, 1)), directions.ndim)

        change = jnp.tensordot(self.rate_weights, units, 1) + self.rate_bias
        log_rates = _kept_within(tensor.log_rates + change)
        updates, offset = -jnp.exp(log_rates + self.log_step) * directions[0], None
        if tensor.offset is not None:
            offset = -jnp.exp(log_rates) * directions[1]
            updates += offset - tensor.offset
        logits = jnp.tensordot(self.decay_weights, units, 1) + _behind(self.decay_bias, units.ndim)
        keep = jax.nn.sigmoid(self.rate_logit)
        next_log_rates = keep * tensor.log_rates + (1 - keep) * log_rates
        seen = _mean_of_entries(jnp.concatenate([units, inputs]))
        tensor = _Tensor(units, means, roots, jax.nn.sigmoid(logits), next_log_rates, offset)
        return updates, tensor, seen, log_rates


def _mean_of_entries(x: Float[Array, "units *shape"]) -> Float[Array, " units"]:
    # 0 where there are none.
    return jnp.sum(x, axis=range(1, x.ndim)) / max(1, x[0].size)


def _next_means(
    grad: Float[Array, "*shape"], tensor: _Tensor
) -> tuple[Float[Array, "scales *shape"], Float[Array, "scales *shape"]]:
    # ḡ_s and r_s. No root is taken of 0, where it has no derivative, nor of squares that vanish.
    decay, square_decay = tensor.decays[:1], tensor.decays[1:]
    known = decay > 0
    exponents = _behind(0.5 ** jnp.arange(_NUM_SCALES, dtype=grad.dtype), decay.ndim)
    decays = jnp.where(known, jnp.where(known, decay, 1) ** exponents, 0)
    means = decays * tensor.means + (1 - decays) * grad[None]
    largest = lax.stop_gradient(jnp.maximum(tensor.roots, jnp.abs(means)))
    moved = largest > 0
    unit = jnp.where(moved, largest, 1)
    squares = square_decay * (tensor.roots / unit) ** 2 + (1 - square_decay) * (means / unit) ** 2
    return means, jnp.where(moved, unit * jnp.sqrt(jnp.where(moved, squares, 1)), 0)


def _inputs(
    scaled: Float[Array, "scales *shape"],
    roots: Float[Array, "scales *shape"],
    relative_rates: Float[Array, "*shape"],
) -> Float[Array, "inputs *shape"]:
    logs = 2 * jnp.log(jnp.where(roots > 0, roots, 1))
    relative = logs - jnp.mean(logs, axis=0, keepdims=True)
    return jnp.concatenate([scaled, scaled[:-1] * scaled[1:], relative, relative_rates[None]])


def _kept_within(log_rates: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # Clipped, with the derivative of what is not: a rate at the limit can still be trained away from it.
    clipped = jnp.clip(log_rates, -_LARGEST_LOG_RATE, _LARGEST_LOG_RATE)
    return log_rates + lax.stop_gradient(clipped - log_rates)
