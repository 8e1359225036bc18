import dataclasses
import functools
import math
from collections.abc import Callable
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._devices._spread import is_spread
from .._errors import ArgumentError, check
from .._misc import plain, root_mean_square, tree_norm
from .._types import Params, Scalar, State, StepNumber
from ._answers import Answers
from ._base import AbstractOptimizer
from ._by_entry import over_entries
from ._decay import Decay, check_decay, decay_factor
from ._newton_schulz import near_orthogonal
from ._per_layer import by_leaf

# Running means of the gradient, beside the gradient itself, and of its square.
_DECAYS = (0.5, 0.9, 0.97)
_SQUARE_DECAY = 0.99
# Of the eight directions the one to start with: the mean at 0.9 over the root of the mean square, Adam's.
_START = 2
_NUM_DIRECTIONS = 8
_NEWTON_SCHULZ_STEPS = 3
# What is added to the mean square of the entries of its result, which is about 1, before the root; and the
# fan-in at which a matrix has the rate r₀ (tuned by hand on networks of digits, docs/quality.md).
_MUON_FLOOR, _MUON_FAN_IN = 0.01, 1000
# Steps of a run of which the rate is r₀ whatever the power is.
_HORIZON = 100
_NUM_TENSOR_FEATURES, _NUM_ENTRY_FEATURES = 12, 7
_FEATURES = tuple(f"ln(rms(m_{b}) / r)" for b in (0, *_DECAYS)) + ("ln(rms(θ) + 1e-3) / 2 + 1",)
_FEATURES += ("ln(fan-in) / 3 - 1", "fan-in > 1", "ln(n) / 5 - 1")
_FEATURES += ("2s - 1", "tanh(t / 3)", "ln(1.02 - s) / 2", "ln(H / 100) / 2")
_SYMBOLS = (
    "Answers are means over the entries of a tensor. m_b: running means of the gradient; r: root of its mean "
    "square; a_b: m_b over each entry's root (0.9: Adam's); s_b: m_b/r; θ: params; t: step; s: t/H at most 1."
)
_DIRECTIONS = tuple(f"{kind}_{b}" for kind in "as" for b in (0, *_DECAYS))
# Entries per block of a large tensor, so that what a block makes stays in the cache (docs/performance.md).
_SMALLEST_BLOCK, _LARGEST_BLOCK = 512, 4096


class _Moments(eqx.Module):
    # Of one tensor, in units of `scale`, a power of two near the largest gradient, whose square could neither
    # vanish nor overflow; and the mean square of Muon's direction, which has no unit.
    means: tuple[Float[Array, "*shape"], ...]
    square: Float[Array, "*shape"]
    scale: Float[Array, ""]
    muon_square: Float[Array, "*shape"] | None = None
    # Whether entries are updated in blocks, or where they are because the tensor is spread over devices.
    in_blocks: bool = eqx.field(static=True, default=True)


class _AdamMLPState(eqx.Module):
    step: Int[Array, ""]
    horizon: Float[Array, ""]
    moments: list[_Moments]


class AdamMLP(AbstractOptimizer):
    """A small network per coordinate that corrects Adam's directions; free of scale, cheap, Adam at first.

    For a tensor of n entries, m_b are the running means of g at b = 0 (g itself), 0.5, 0.9 and 0.97, v that
    of g² at 0.99, all corrected for their start at zero, and r = √mean(v). There are eight directions D_k,
    a_b = m_b/√(v + (r/1000)²) and s_b = m_b/r, and

        update = −exp(ln r₀ + clip(2·o₀, −8, 4)) · Σ_k (e_k + o_k)·D_k,

    where e_k picks a_0.9 and o₀ … o₈ are the outputs of the network, zero before it is trained: it starts as
    Adam(0.9, 0.99) with the rate r₀.

    With `matrices` there is one direction more, and e_k picks it: of a matrix (a tensor with fan-in and
    fan-out above 1, its axes but the first taken together) O/√(w + 1/100), where O is m_0.5 with all singular
    values brought near one and unit root mean square (Muon's direction), and w the running mean of O² at
    0.99, corrected for its start at zero; its rate is (1000/fan-in)^¼ times as large. Of any other tensor it
    is a_0.9. It then starts as AdaMuon, and costs what Muon does, some products of matrices a step. The
    network sees

    - of the tensor: ln(rms(m_b)/r) for the four b; ln(fan-in)/3 − 1, and whether fan-in is above 1;
        ln(n)/5 − 1; ln(rms(θ) + 1e-3)/2 + 1;
    - of time, with s = min(t/H, 1) for step t = 0, 1, … of H: 2s − 1, tanh(t/3), ln(max(1.02 − s, 0.02))/2,
        ln(H/100)/2;
    - of the entry: tanh|a_b| for the four b, and tanh(a_0·a_b) for the three others.

    To derivatives these features are constants; the directions are not. Fan-in is the product of all axes
    but the first, for Equinox's order of the axes of a weight, (out, in, ...). That of a bias is 1.

    The update does not change if f is multiplied by a constant, it changes its sign with all gradients and
    params, and is zero as long as all gradients have been. The horizon H is an input: set it to the length
    of the training at hand, not to that of the meta-training. Moments are kept in at least float32.

    **Arguments:**

    - `hidden_sizes`: widths of the network's hidden layers, which have ReLUs.
    - `learning_rate`: r₀ at first; its logarithm is a meta-parameter.
    - `num_steps`: H where `init` is not told.
    - `matrices`: whether to add AdaMuon's direction and start from it.
    - `decay`: `"cosine"` multiplies r₀ by (1 + cos πs)/2 + 1/100, so that it starts as Adam or AdaMuon with a
        rate that decays to nearly nothing at the horizon.
    - `horizon_power`: p multiplies r₀ by (100/H)^p: longer runs take shorter steps.
    - `key`: draws the weights of the hidden layers.

    **Raises:** `ValueError` for no layers, sizes or a horizon below 1, a rate that is not positive, a power
    that is not finite, or an `update` without params.

    Reference: Adam's directions as in Kingma & Ba 2015 (arXiv:1412.6980), Muon's as in Jordan et al. 2024,
    "Muon: An optimizer for hidden layers in neural networks", its entries divided by the root of their mean
    square as in AdaMuon (Si et al. 2025, arXiv:2507.11005); a small network per coordinate on
    features of moments as in Metz et al. 2022 (arXiv:2203.11860) and Celo2 (2026), of which it is no copy.
    """

    layers: tuple[eqx.nn.Linear, ...]
    log_rate: Float[Array, ""]
    num_steps: int = eqx.field(static=True)
    matrices: bool = eqx.field(static=True, default=False)
    decay: Decay = eqx.field(static=True, default="none")
    horizon_power: float = eqx.field(static=True, default=0.0)

    def __init__(
        self,
        hidden_sizes: tuple[int, ...] = (8, 8),
        learning_rate: float = 0.01,
        *,
        num_steps: int = 100,
        matrices: bool = False,
        decay: Decay = "none",
        horizon_power: float = 0.0,
        key: PRNGKeyArray,
    ):
        check(
            "`AdamMLP(...)` needs at least one hidden layer of at least one unit, and a step. Got "
            f"hidden_sizes={hidden_sizes}, num_steps={num_steps}.",
            hidden_sizes=(hidden_sizes, min(hidden_sizes, default=0) >= 1),
            num_steps=(num_steps, num_steps >= 1),
        )
        check(
            f"`AdamMLP(horizon_power=...)` must be finite. Got {horizon_power}.",
            horizon_power=(horizon_power, math.isfinite(horizon_power)),
        )
        check_decay("AdamMLP", decay)
        if not learning_rate > 0:
            raise ArgumentError(
                f"`AdamMLP(learning_rate=...)` must be positive. Got {learning_rate}.",
                argument="learning_rate",
                given=learning_rate,
            )
        num_outputs = 1 + _NUM_DIRECTIONS + matrices
        sizes = (_NUM_TENSOR_FEATURES + _NUM_ENTRY_FEATURES, *hidden_sizes, num_outputs)
        keys = jr.split(key, len(sizes) - 1)
        *hidden, last = [_he_normal(*pair, key=k) for pair, k in zip(pairwise(sizes), keys, strict=True)]
        self.layers = (*hidden, jax.tree.map(jnp.zeros_like, last))
        self.log_rate = jnp.asarray(math.log(learning_rate), jnp.result_type(float))
        self.num_steps = num_steps
        self.matrices = matrices
        self.decay = decay
        self.horizon_power = float(horizon_power)

    def init(self, params: Params, num_steps: StepNumber | None = None) -> State:
        """The state before the first of `num_steps` steps, by default as many as the constructor was told."""
        horizon = jnp.asarray(self.num_steps if num_steps is None else num_steps, jnp.result_type(float))
        moments = [_no_moments(leaf, self.matrices) for leaf in jax.tree.leaves(params)]
        return _AdamMLPState(jnp.zeros((), jnp.int32), horizon, moments)

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        return self.init(params, num_steps)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        if params is None:
            raise ArgumentError("`AdamMLP` looks at the params: hand them to `update`.", argument="params")
        leaves, treedef = jax.tree.flatten(grads)
        # Of a step only gradients and moments are kept for the reverse pass.
        update_leaf = jax.checkpoint(functools.partial(_update_leaf, state.step, state.horizon))
        results = [
            update_leaf(self, *each)
            for each in zip(leaves, state.moments, jax.tree.leaves(params), strict=True)
        ]
        updates = treedef.unflatten([update for update, _ in results])
        return updates, _AdamMLPState(state.step + 1, state.horizon, [moments for _, moments in results])

    def answers(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Answers | None:
        """The features of every tensor; and the means over its entries of the rate and the coefficients.

        The rate is the factor before the sum, and a coefficient is e_k + o_k.
        """
        del value, key
        if params is None:
            raise ArgumentError("`AdamMLP` looks at the params: hand them to `answers`.", argument="params")
        paths = jtu.tree_leaves_with_path(plain(grads))
        each = zip(paths, jax.tree.leaves(grads), state.moments, jax.tree.leaves(params), strict=True)
        names, seen, answered = [], [], []
        for path, *own in each:
            if own[0].size:
                run, entries, _ = _look_at_leaf(state.step, state.horizon, self, *own)
                log_rates, coefficients, _ = _answer_entries(*run, tuple(map(jnp.ravel, entries)))
                names.append(by_leaf(*path))
                seen.append(run[2])
                answered.append(jnp.stack([jnp.mean(x) for x in (jnp.exp(log_rates), *coefficients)]))
        if not names:
            return None
        titles = ["rate", *(f"coefficient of {d}" for d in _DIRECTIONS)]
        titles += ["coefficient of Muon's"] if self.matrices else []
        told = dict(zip(titles, jnp.stack(answered, axis=1), strict=True))
        return Answers.of(names, dict(zip(_FEATURES, jnp.stack(seen, axis=1), strict=True)), told, _SYMBOLS)


def _he_normal(num_inputs: int, num_outputs: int, *, key: PRNGKeyArray) -> eqx.nn.Linear:
    # Not Equinox's own initial weights: hidden units two to three times as large are trained faster.
    layer = eqx.nn.Linear(num_inputs, num_outputs, key=key)
    weight = math.sqrt(2 / num_inputs) * jr.normal(key, (num_outputs, num_inputs))
    return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (weight, jnp.zeros(num_outputs)))


def _no_moments(leaf: Array, matrices: bool) -> _Moments:
    zeros = jnp.zeros(leaf.shape, _dtype(leaf))
    muon_square = zeros if matrices and _is_matrix(leaf) else None
    scale = jnp.zeros((), zeros.dtype)
    return _Moments((zeros,) * len(_DECAYS), zeros, scale, muon_square, not is_spread(leaf))


def _dtype(leaf):
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _update_leaf(
    step: Int[Array, ""],
    horizon: Float[Array, ""],
    optimizer: AdamMLP,
    grad: Float[Array, "*shape"],
    moments: _Moments,
    param: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], _Moments]:
    if grad.size == 0:
        return grad, moments
    run, entries, moments = _look_at_leaf(step, horizon, optimizer, grad, moments, param)
    run_on = functools.partial(_update_entries, *run)
    update = _in_blocks(run_on, entries) if moments.in_blocks else _by_entry(run_on, entries)
    return update.astype(param.dtype), moments


# What the network is run with, but for the entries.
_Run = tuple[
    tuple[eqx.nn.Linear, ...],
    Float[Array, ""],
    Float[Array, " tensor_features"],
    Float[Array, " moments"],
    Float[Array, ""],
]


def _look_at_leaf(
    step: Int[Array, ""],
    horizon: Float[Array, ""],
    optimizer: AdamMLP,
    grad: Float[Array, "*shape"],
    moments: _Moments,
    param: Float[Array, "*shape"],
) -> tuple[_Run, tuple[Float[Array, "*shape"], ...], _Moments]:
    # The other arguments of `_update_entries`, its entries, and the next moments.
    dtype = moments.square.dtype
    grad, moments = _next_moments(grad.astype(dtype), moments)
    count = (step + 1).astype(dtype)
    corrections = jnp.stack([1 / (1 - b**count) for b in (0.0, *_DECAYS, _SQUARE_DECAY)])
    entries = (grad, *moments.means, moments.square)
    # The square of r; 1 for tensors that have seen no gradient yet.
    mean_square = jnp.where(moments.scale > 0, corrections[-1] * jnp.mean(moments.square), 1)
    # A dot product would lay entries end to end, and gather them.
    square_sum = jnp.vdot if moments.in_blocks else lambda x, y: jnp.sum(x * y)
    mean_squares = jnp.stack([square_sum(m, m) for m in entries[:-1]]) / grad.size
    ratios = jnp.log(corrections[:-1] ** 2 * mean_squares / mean_square + 1e-24) / 2
    size = jnp.log(root_mean_square(param.astype(dtype)) + 1e-3) / 2 + 1
    others = jnp.stack([size, *_shape_features(grad), *_time_features(step, horizon, dtype)])
    features = lax.stop_gradient(jnp.concatenate([ratios, others]))
    log_rate = optimizer.log_rate + jnp.log(decay_factor(optimizer.decay, step, horizon))
    if optimizer.horizon_power:
        log_rate += optimizer.horizon_power * jnp.log(_HORIZON / horizon)
    if moments.muon_square is not None:
        muon, muon_square = _muon(corrections[1] * moments.means[0], mean_square, moments.muon_square)
        moments = dataclasses.replace(moments, muon_square=muon_square)
        entries = (*entries, muon * lax.rsqrt(corrections[-1] * muon_square + _MUON_FLOOR))
        log_rate += math.log(_MUON_FAN_IN / math.prod(grad.shape[1:])) / 4
    network = jax.tree.map(lambda x: x.astype(dtype), (optimizer.layers, log_rate))
    return (*network, features, corrections, mean_square), entries, moments


def _is_matrix(leaf: Array) -> bool:
    return leaf.ndim > 1 and leaf.shape[0] > 1 and leaf.size > leaf.shape[0]


def _muon(
    mean: Float[Array, "*shape"], mean_square: Float[Array, ""], square: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    # Singular values brought near one, times a factor that makes it unit root mean square, and the next
    # running mean of its squares. Relative to r, as other directions, where the mean is smaller: with the
    # steps being few, its derivative stays bounded.
    norm = jnp.maximum(tree_norm(mean), jnp.sqrt(mean_square * mean.size))
    x = near_orthogonal(mean, norm, _NEWTON_SCHULZ_STEPS)
    return x, _SQUARE_DECAY * square + (1 - _SQUARE_DECAY) * x**2


def _next_moments(grad: Float[Array, "*shape"], moments: _Moments) -> tuple[Float[Array, "*shape"], _Moments]:
    # The gradient and the moments in units of the new scale. That decays as the root of the mean square does.
    largest = lax.stop_gradient(jnp.max(jnp.abs(grad)))
    scale = _power_of_two(jnp.maximum(largest, math.sqrt(_SQUARE_DECAY) * moments.scale))
    unit = jnp.where(scale > 0, scale, 1)
    grad, change = grad / unit, moments.scale / unit
    means = tuple(b * change * m + (1 - b) * grad for b, m in zip(_DECAYS, moments.means, strict=True))
    square = _SQUARE_DECAY * change**2 * moments.square + (1 - _SQUARE_DECAY) * grad**2
    return grad, dataclasses.replace(moments, means=means, square=square, scale=scale)


def _power_of_two(x: Float[Array, ""]) -> Float[Array, ""]:
    # The largest one that is not above x; 0 for 0. Multiplying by it does not round.
    _, exponent = jnp.frexp(x)
    return jnp.where(x > 0, jnp.ldexp(jnp.ones_like(x), exponent - 1), x)


def _time_features(step: Int[Array, ""], horizon: Float[Array, ""], dtype: jnp.dtype) -> list[Array]:
    t = step.astype(dtype)
    horizon = horizon.astype(dtype)
    share = jnp.minimum(t / horizon, 1)
    remaining = jnp.log(jnp.maximum(1.02 - share, 0.02)) / 2
    return [2 * share - 1, jnp.tanh(t / 3), remaining, jnp.log(horizon / _HORIZON) / 2]


def _shape_features(leaf: Array) -> list[Array]:
    fan_in = math.prod(leaf.shape[1:])
    values = (math.log(fan_in) / 3 - 1, float(fan_in > 1), math.log(leaf.size) / 5 - 1)
    return [jnp.asarray(x, leaf.dtype) for x in values]


def _update_entries(
    layers: tuple[eqx.nn.Linear, ...],
    log_rate: Float[Array, ""],
    features: Float[Array, " tensor_features"],
    corrections: Float[Array, " moments"],
    mean_square: Float[Array, ""],
    entries: tuple[Float[Array, " entries"], ...],
) -> Float[Array, " entries"]:
    log_rates, coefficients, directions = _answer_entries(
        layers, log_rate, features, corrections, mean_square, entries
    )
    direction = sum(c * d for c, d in zip(coefficients, directions, strict=True))
    return -jnp.exp(log_rates) * direction


def _answer_entries(
    layers: tuple[eqx.nn.Linear, ...],
    log_rate: Float[Array, ""],
    features: Float[Array, " tensor_features"],
    corrections: Float[Array, " moments"],
    mean_square: Float[Array, ""],
    entries: tuple[Float[Array, " entries"], ...],
) -> tuple[Float[Array, " entries"], list[Float[Array, " entries"]], list[Float[Array, " entries"]]]:
    # The logarithm of what the sum is multiplied by, coefficients, directions.
    orthogonal = entries[len(corrections) :]
    *means, square = [c * m for c, m in zip(corrections, entries, strict=False)]
    inverse = lax.rsqrt(square + 1e-6 * mean_square)
    a = [m * inverse for m in means]
    s = [m * lax.rsqrt(mean_square) for m in means]
    seen = jnp.stack([*(jnp.tanh(jnp.abs(x)) for x in a), *(jnp.tanh(a[0] * x) for x in a[1:])])

    # The tensor's features are one more bias of the first layer, for all entries.
    first, *others = layers
    of_tensor, of_entry = jnp.split(first.weight, [len(features)], axis=1)
    x = of_entry @ lax.stop_gradient(seen) + (of_tensor @ features + _bias(first))[:, None]
    for layer in others:
        x = layer.weight @ jax.nn.relu(x) + _bias(layer)[:, None]

    rate, *coefficients = x
    directions = a + s
    if len(coefficients) > _NUM_DIRECTIONS:
        directions += list(orthogonal) or [a[_START]]
    coefficients[_START if len(directions) == _NUM_DIRECTIONS else -1] += 1
    return log_rate + jnp.clip(2 * rate, -8, 4), coefficients, directions


def _bias(layer: eqx.nn.Linear) -> Float[Array, " units"]:
    assert layer.bias is not None
    return layer.bias


def _in_blocks(
    run: Callable[[tuple[Float[Array, " block"], ...]], Float[Array, " block"]],
    entries: tuple[Float[Array, "*shape"], ...],
) -> Float[Array, "*shape"]:
    shape, num_entries = entries[0].shape, entries[0].size
    flat = jax.tree.map(jnp.ravel, entries)
    if num_entries <= _LARGEST_BLOCK:
        return run(flat).reshape(shape)
    size = _block_size(num_entries)
    blocks = jax.tree.map(lambda x: jnp.pad(x, (0, -num_entries % size)).reshape(-1, size), flat)
    return lax.map(run, blocks).ravel()[:num_entries].reshape(shape)


def _by_entry(
    run: Callable[[tuple[Float[Array, " block"], ...]], Float[Array, " block"]],
    entries: tuple[Float[Array, "*shape"], ...],
) -> Float[Array, "*shape"]:
    def one(entry):
        return run(jax.tree.map(lambda x: x[None], entry))[0]

    return over_entries(one, entries[0].ndim)(entries)


def _block_size(num_entries: int) -> int:
    # A divisor where there is one: filling up the last block copies all.
    sizes = range(_LARGEST_BLOCK, _SMALLEST_BLOCK - 1, -1)
    return next((size for size in sizes if num_entries % size == 0), _LARGEST_BLOCK)
