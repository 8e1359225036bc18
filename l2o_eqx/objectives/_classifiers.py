import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from .._errors import check
from .._types import Scalar


def leaky_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x for x ≥ 0, else 0.1·x: the slope of the thesis, sec. 5.4.1."""
    return jax.nn.leaky_relu(x, 0.1)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": leaky_relu,
}
"""Those that networks are trained with; `"mixed"` draws from them."""
HELD_OUT_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": jax.nn.gelu}
"""In no mixture, to try optimizers on that were trained with the others."""


class MLP(eqx.Module):
    """A fully connected classifier: Glorot-uniform weights, zero biases, logits at the output.

    **Arguments:**

    - `sizes`: widths from input to output, e.g. `(784, 32, 10)`.
    - `activation`: applied after every layer but the last.
    - `key`: draws the weights.
    """

    layers: tuple[eqx.nn.Linear, ...]
    activation: Callable[[Array], Array]

    def __init__(self, sizes: tuple[int, ...], activation: Callable[[Array], Array], *, key: PRNGKeyArray):
        shapes = tuple(zip(sizes[1:], sizes[:-1], strict=True))
        self.layers = tuple(map(_linear, _glorot_weights(key, shapes)))
        self.activation = activation

    def __call__(self, inputs: Float[Array, " pixels"]) -> Float[Array, " classes"]:
        *hidden, last = self.layers
        for layer in hidden:
            inputs = self.activation(layer(inputs))
        return last(inputs)


class ConvNet(eqx.Module):
    """A convolutional classifier of square grey images: convolutions, then dense layers as in `MLP`.

    Kernels are 3 × 3 and move by two pixels; with a border of one zero each convolution halves the image,
    rounding up: 28, 14, 7, 4, 2, 1. Glorot-uniform weights, zero biases, logits at the output.

    **Arguments:**

    - `image_size`: rows of an image, as many as columns.
    - `conv_channels`: channels of each convolution, e.g. `(8, 8)`.
    - `dense_sizes`: widths of the dense layers, the number of classes last.
    - `activation`: applied after every layer but the last.
    - `key`: draws the weights.

    **Raises:** `ValueError` for sizes below 1, or no dense layer.
    """

    layers: tuple[eqx.nn.Conv2d | eqx.nn.Linear, ...]
    activation: Callable[[Array], Array]
    image_size: int = eqx.field(static=True)

    def __init__(
        self,
        image_size: int,
        conv_channels: tuple[int, ...],
        dense_sizes: tuple[int, ...],
        activation: Callable[[Array], Array],
        *,
        key: PRNGKeyArray,
    ):
        check(
            "`ConvNet(...)` needs sizes of at least one, and a dense layer for the classes. Got "
            f"image_size={image_size}, conv_channels={conv_channels}, dense_sizes={dense_sizes}.",
            image_size=(image_size, image_size >= 1),
            conv_channels=(conv_channels, min(conv_channels, default=1) >= 1),
            dense_sizes=(dense_sizes, min(dense_sizes, default=0) >= 1),
        )
        channels, size = (1, *conv_channels), image_size
        for _ in conv_channels:
            size = _halved(size)
        sizes = (channels[-1] * size**2, *dense_sizes)
        convs = [(n, m, _KERNEL, _KERNEL) for m, n in itertools.pairwise(channels)]
        dense = [(n, m) for m, n in itertools.pairwise(sizes)]
        weights = _glorot_weights(key, (*convs, *dense))
        self.layers = tuple(_conv(w) if w.ndim == 4 else _linear(w) for w in weights)
        self.activation = activation
        self.image_size = image_size

    def __call__(self, inputs: Float[Array, " pixels"]) -> Float[Array, " classes"]:
        x = inputs.reshape(1, self.image_size, self.image_size)
        *hidden, last = self.layers
        for layer in hidden:
            x = _convolve(layer, x) if isinstance(layer, eqx.nn.Conv2d) else layer(x.ravel())
            x = self.activation(x)
        return last(x.ravel())


_KERNEL = 3


def _halved(size):
    return (size + 1) // 2


def _convolve(
    layer: eqx.nn.Conv2d, image: Float[Array, "channels size size"]
) -> Float[Array, "out half half"]:
    # What the layer itself computes, as one matrix product. XLA's convolutions are slow on a CPU inside a
    # loop, and more so where each of many objectives has its own kernels: a step of training took 2 to 10
    # times as long.
    assert layer.bias is not None
    half = _halved(image.shape[1])
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)))
    # What each entry of the kernel sees: every second pixel, from its own place on.
    views = [slice(i, i + 2 * half - 1, 2) for i in range(_KERNEL)]
    seen = jnp.stack([padded[:, rows, columns] for rows in views for columns in views], axis=1)
    kernels = layer.weight.reshape(layer.out_channels, -1)
    # Pixels times channels: for XLA the faster order.
    product = seen.reshape(-1, half * half).T @ kernels.T
    return product.T.reshape(-1, half, half) + layer.bias


def _linear(weight: Float[Array, "out in"]) -> eqx.nn.Linear:
    return _with_weight(eqx.nn.Linear, weight)


def _conv(weight: Float[Array, "out in 3 3"]) -> eqx.nn.Conv2d:
    return _with_weight(eqx.nn.Conv2d, weight, kernel_size=_KERNEL, stride=2, padding=1)


def _with_weight(kind, weight, **settings):
    # Only the structure: the layer's own random weights would be drawn for nothing.
    fan_out, fan_in = weight.shape[:2]
    layer = eqx.filter_eval_shape(kind, fan_in, fan_out, key=jr.key(0), **settings)
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, jnp.zeros(layer.bias.shape)))


@functools.partial(jax.jit, static_argnums=1)
def _glorot_weights(key, shapes):
    glorot = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
    return [glorot(k, shape) for k, shape in zip(jr.split(key, len(shapes)), shapes, strict=True)]


Batch = tuple[Integer[Array, "batch size size"], Integer[Array, " batch"]]


def digit_cross_entropy(model: Any, batch: Batch) -> Scalar:
    """Mean softmax cross-entropy of `model`'s logits; pixels 0..255 become inputs in [0, 1].

    **Arguments:**

    - `model`: maps one flat image, of 784 floats if it is not pooled, to 10 logits.
    - `batch`: images as uint8 and their labels.
    """
    return _cross_entropy(_logits(model, batch), batch)


def digit_sigmoid_cross_entropy(model: Any, batch: Batch) -> Scalar:
    """Mean cross-entropy of sigmoid outputs made to sum to one: −ln p_y, p_i = σ(z_i) / Σ_j σ(z_j).

    That is what the thesis's words, a sigmoid output layer, come to with Keras's cross-entropy, but for
    Keras's clipping of σ at 1e-7. It is the softmax cross-entropy of ln σ(z).

    **Arguments:** those of `digit_cross_entropy`.

    Reference: thesis sec. 5.1.2.
    """
    return _cross_entropy(jax.nn.log_sigmoid(_logits(model, batch)), batch)


# From a model and a batch to the loss, by what the output layer is.
OUTPUTS: dict[str, Callable[[Any, Batch], Scalar]] = {
    "softmax": digit_cross_entropy,
    "sigmoid": digit_sigmoid_cross_entropy,
}


def _logits(model, batch):
    images, _ = batch
    return jax.vmap(model)(images.reshape(images.shape[0], -1).astype(jnp.float32) / 255.0)


def _cross_entropy(logits, batch):
    _, labels = batch
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))
    return jnp.mean(losses)
