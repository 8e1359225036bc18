"""The direction of Celo2 for one tensor: its moments, 30 features of every entry, and the network on them."""

import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._devices import is_spread
from .._misc import tree_norm, unit_rms, wide_dtype_of
from ._newton_schulz import near_orthogonal

# Of running means of gradients and of factored squares; and of squares.
_DECAYS, _SQUARE_DECAY = (0.9, 0.99, 0.999), 0.95
# All constants from here on are in units of the gradients, as in the published code.
_LARGEST_GRADIENT, _CLIP = 1000.0, 0.1
_SQUARE_FLOOR, _FACTOR_FLOOR, _MEAN_SQUARE_FLOOR, _FACTORED_FLOOR = 1e-8, 1e-9, 1e-9, 1e-30
# Where features stand among the inputs: of entries; of rows alone; of columns alone.
_OF_ENTRIES = (*range(15), 27, 28, 29)
_OF_ROWS = (15, 16, 17, 21, 22, 23)
_OF_COLUMNS = (18, 19, 20, 24, 25, 26)
NUM_FEATURES = 30
# m_0.9/√v.
ADAM = 7
_NEWTON_SCHULZ_STEPS = 5
# Entries of what is updated at once, so that its features stay in the cache.
_SMALLEST_BLOCK, _LARGEST_BLOCK = 512, 4096


class Moments(eqx.Module):
    """Of one tensor of two axes or more; rows and columns keep the axis averaged over, of length 1."""

    means: tuple[Float[Array, "*shape"], ...]
    square: Float[Array, "*shape"]
    rows: tuple[Float[Array, "..."], ...]
    columns: tuple[Float[Array, "..."], ...]
    # Or where they are, because the tensor is spread over devices.
    in_blocks: bool = eqx.field(static=True, default=True)


class Seen(eqx.Module):
    """What the features of a tensor, or of some of it along its first axis, are made of."""

    grad: Float[Array, "*shape"]
    param: Float[Array, "*shape"]
    means: tuple[Float[Array, "*shape"], ...]
    square: Float[Array, "*shape"]
    rows: tuple[Float[Array, "..."], ...]
    columns: tuple[Float[Array, "..."], ...]
    row_factors: tuple[Float[Array, "..."], ...]

    def of_entries(self) -> list[Float[Array, "*shape"]]:
        grad, inverse = self.grad, lax.rsqrt(self.square + _SQUARE_FLOOR)
        pairs = zip(self.row_factors, self.columns, strict=True)
        factors = [r * _factor(c) for r, c in pairs]
        return [
            grad,
            jnp.clip(grad, -_CLIP, _CLIP),
            self.param,
            *self.means,
            self.square,
            *(m * inverse for m in self.means),
            inverse,
            *(grad * f for f in factors),
            grad * inverse,
            *(m * f for m, f in zip(self.means, factors, strict=True)),
        ]

    def of_rows(self) -> list[Float[Array, "..."]]:
        return [*self.rows, *(lax.rsqrt(x + _SQUARE_FLOOR) for x in self.rows)]

    def of_columns(self) -> list[Float[Array, "..."]]:
        return [*self.columns, *(lax.rsqrt(x + _SQUARE_FLOOR) for x in self.columns)]


def _factor(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    return lax.rsqrt(jnp.maximum(squares, _FACTOR_FLOOR))


def no_moments(leaf: Array) -> Moments:
    """Those before the first step."""
    zeros = jnp.zeros(leaf.shape, wide_dtype_of(leaf.dtype))
    second, largest = _largest_axes(leaf.shape)
    rows, columns = (jnp.mean(zeros, axis=axis, keepdims=True) for axis in (largest, second))
    count = len(_DECAYS)
    return Moments((zeros,) * count, zeros, (rows,) * count, (columns,) * count, not is_spread(leaf))


def _largest_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    # The second largest and the largest; of equals the last ones.
    second, largest = sorted(range(len(shape)), key=shape.__getitem__)[-2:]
    return second, largest


def _next_moments(grad: Float[Array, "*shape"], moments: Moments) -> Moments:
    def mean(decay, old, new):
        return decay * old + (1 - decay) * new

    square = grad**2
    second, largest = _largest_axes(grad.shape)
    of_rows, of_columns = (
        jnp.mean(square + _FACTORED_FLOOR, axis=axis, keepdims=True) for axis in (largest, second)
    )
    return Moments(
        tuple(mean(b, m, grad) for b, m in zip(_DECAYS, moments.means, strict=True)),
        mean(_SQUARE_DECAY, moments.square, square),
        tuple(mean(b, x, of_rows) for b, x in zip(_DECAYS, moments.rows, strict=True)),
        tuple(mean(b, x, of_columns) for b, x in zip(_DECAYS, moments.columns, strict=True)),
        moments.in_blocks,
    )


def direct(
    magnitude: float,
    orthogonalize: bool,
    layers: tuple[eqx.nn.Linear, ...],
    grad: Float[Array, "*shape"],
    param: Float[Array, "*shape"],
    moments: Moments,
) -> tuple[Float[Array, "*shape"], Moments]:
    """The direction of a tensor, of unit root mean square, and its next moments.

    **Arguments:** `magnitude`, `orthogonalize` and `layers` as those of `Celo2`.
    """
    dtype = moments.square.dtype
    grad = jnp.clip(grad.astype(dtype), -_LARGEST_GRADIENT, _LARGEST_GRADIENT)
    moments = _next_moments(grad, moments)
    second, _ = _largest_axes(grad.shape)
    row_factors = tuple(
        _factor(x / (jnp.mean(x, axis=second, keepdims=True) + _FACTOR_FLOOR)) for x in moments.rows
    )
    seen = Seen(
        grad,
        param.astype(dtype),
        moments.means,
        moments.square,
        moments.rows,
        moments.columns,
        row_factors,
    )
    layers = jax.tree.map(lambda x: x.astype(dtype), layers)
    count = _num_blocks(grad.shape) if moments.in_blocks else 1
    sums = jnp.sum(_over_blocks(_sums_of_squares, seen, count), axis=0)
    layers = _for_scaled_features(layers, seen, sums / grad.size)
    blocks = _over_blocks(functools.partial(_output, layers, magnitude), seen, count)
    direction = blocks.reshape(grad.shape) if count > 1 else blocks[0]
    if orthogonalize:
        norm = tree_norm(direction)
        direction = near_orthogonal(direction, jnp.where(norm > 0, norm, 1), _NEWTON_SCHULZ_STEPS)
    return unit_rms(direction), moments


def _sums_of_squares(seen: Seen) -> Float[Array, " features"]:
    return jnp.stack([jnp.sum(jnp.square(x)) for x in seen.of_entries()])


def _for_scaled_features(
    layers: tuple[eqx.nn.Linear, ...], seen: Seen, mean_squares: Float[Array, " features"]
) -> tuple[eqx.nn.Linear, ...]:
    # Dividing the weights of the first layer divides the features. Means over rows are those over entries.
    of_others = [jnp.mean(jnp.square(x)) for x in (*seen.of_rows(), *seen.of_columns())]
    order = np.argsort([*_OF_ENTRIES, *_OF_ROWS, *_OF_COLUMNS])
    all_mean_squares = jnp.concatenate([mean_squares, jnp.stack(of_others)])[order]
    first, *others = layers
    weight = first.weight * lax.rsqrt(all_mean_squares + _MEAN_SQUARE_FLOOR)[None]
    return (eqx.tree_at(lambda x: x.weight, first, weight), *others)


def _output(layers: tuple[eqx.nn.Linear, ...], magnitude: float, seen: Seen) -> Float[Array, "*shape"]:
    first, *others, last = layers
    x = _bias(first, seen.grad.ndim)
    features = (seen.of_entries(), seen.of_rows(), seen.of_columns())
    for places, values in zip((_OF_ENTRIES, _OF_ROWS, _OF_COLUMNS), features, strict=True):
        x += jnp.tensordot(first.weight[:, np.array(places)], jnp.stack(values), 1)
    for layer in others:
        x = jnp.tensordot(layer.weight, jax.nn.relu(x), 1) + _bias(layer, seen.grad.ndim)
    # Outputs that do not count are not computed.
    used = 2 if magnitude else 1
    bias = _bias(last, seen.grad.ndim)[:used]
    direction, *log_magnitude = jnp.tensordot(last.weight[:used], jax.nn.relu(x), 1) + bias
    return direction * jnp.exp(magnitude * log_magnitude[0]) if log_magnitude else direction


def _bias(layer: eqx.nn.Linear, ndim: int) -> Float[Array, "units ..."]:
    # Units first, and behind them the axes of a tensor.
    assert layer.bias is not None
    return layer.bias.reshape(-1, *(1,) * ndim)


def _over_blocks(run: Callable[[Seen], Array], seen: Seen, count: int) -> Array:
    # Blocks of slices along the first axis; their results one behind the other on a new one.
    if count == 1:
        return run(seen)[None]
    length = seen.grad.shape[0]
    cut, shared = eqx.partition(seen, jax.tree.map(lambda x: x.shape[0] == length, seen))
    blocks = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), cut)
    return lax.map(lambda block: run(eqx.combine(block, shared)), blocks)


def _num_blocks(shape: tuple[int, ...]) -> int:
    # As few as are small enough, if there is a number that cuts them evenly.
    length, size = shape[0], math.prod(shape)
    if size <= _LARGEST_BLOCK:
        return 1
    fitting = [n for n in range(1, length + 1) if length % n == 0 and size // n >= _SMALLEST_BLOCK]
    return next((n for n in fitting if size // n <= _LARGEST_BLOCK), fitting[-1])
