import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Integer, PRNGKeyArray

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
        self.layers = tuple(map(_linear, sizes[:-1], sizes[1:], _glorot_weights(key, tuple(sizes))))
        self.activation = activation

    def __call__(self, inputs: Float[Array, " pixels"]) -> Float[Array, " classes"]:
        *hidden, last = self.layers
        for layer in hidden:
            inputs = self.activation(layer(inputs))
        return last(inputs)


def _linear(fan_in: int, fan_out: int, weight: Float[Array, "out in"]) -> eqx.nn.Linear:
    # Only the structure: the layer's own random weights would be drawn for nothing.
    layer = eqx.filter_eval_shape(eqx.nn.Linear, fan_in, fan_out, key=jr.key(0))
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, jnp.zeros(fan_out)))


@functools.partial(jax.jit, static_argnums=1)
def _glorot_weights(key, sizes):
    glorot, keys = jax.nn.initializers.glorot_uniform(), jr.split(key, len(sizes) - 1)
    return [glorot(k, (n, m)) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def digit_cross_entropy(
    model: Any,
    batch: tuple[Integer[Array, "batch 28 28"], Integer[Array, " batch"]],
) -> Scalar:
    """Mean softmax cross-entropy of `model`'s logits; pixels 0..255 become inputs in [0, 1].

    **Arguments:**

    - `model`: maps one flat image of 784 floats to 10 logits.
    - `batch`: images as uint8 and their labels.
    """
    images, labels = batch
    inputs = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255.0
    logits = jax.vmap(model)(inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))
    return jnp.mean(losses)
