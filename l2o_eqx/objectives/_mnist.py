import dataclasses
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax.random as jr
from jaxtyping import PRNGKeyArray

from .._errors import ArgumentError, check
from ..data import Digits, load_mnist
from ._classifiers import ACTIVATIONS, HELD_OUT_ACTIVATIONS, MLP, OUTPUTS, ConvNet
from ._from_model import FromModel
from ._mixed_activation import MixedActivation
from ._resized import resized


class MakeMLP(eqx.Module):
    """Draws an `MLP`; its activation is a name of `ACTIVATIONS`, or one of several."""

    # A module, not a closure, so that two families built alike compare equal and share one program.
    sizes: tuple[int, ...] = eqx.field(static=True)
    activation: str | tuple[str, ...] = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> MLP:
        return MLP(self.sizes, _activation(self.activation, key), key=key)

    def variations(self) -> dict[str, "MakeMLP"]:
        pixels, *hidden, classes = self.sizes
        if not hidden:
            return {}
        found = {
            f"width × {name}": MakeMLP((pixels, *widths, classes), self.activation)
            for name, widths in resized(tuple(hidden)).items()
        }
        found["depth + 1"] = MakeMLP((pixels, *hidden, hidden[-1], classes), self.activation)
        others = _other_activations(self.activation)
        return found | {f"activation {name}": MakeMLP(self.sizes, name) for name in others}


class MakeConvNet(eqx.Module):
    """Draws a `ConvNet` for images of 28 by 28; its activation as in `MakeMLP`."""

    conv_channels: tuple[int, ...] = eqx.field(static=True)
    dense_sizes: tuple[int, ...] = eqx.field(static=True)
    activation: str | tuple[str, ...] = eqx.field(static=True)
    image_size: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> ConvNet:
        activation = _activation(self.activation, key)
        return ConvNet(self.image_size, self.conv_channels, self.dense_sizes, activation, key=key)

    def variations(self) -> dict[str, "MakeConvNet"]:
        *hidden, classes = self.dense_sizes
        count = len(self.conv_channels)
        found = {}
        for name, new in resized((*self.conv_channels, *hidden)).items():
            found[f"width × {name}"] = dataclasses.replace(
                self, conv_channels=new[:count], dense_sizes=(*new[count:], classes)
            )
        deeper = (*self.conv_channels, self.conv_channels[-1])
        found["depth + 1"] = dataclasses.replace(self, conv_channels=deeper)
        for name in _other_activations(self.activation):
            found[f"activation {name}"] = dataclasses.replace(self, activation=name)
        return found


_BY_NAME = ACTIVATIONS | HELD_OUT_ACTIVATIONS


def _other_activations(activation):
    trained = (activation,) if isinstance(activation, str) else activation
    return [name for name in _BY_NAME if name not in trained]


def _activation(activation, key):
    if isinstance(activation, str):
        return _BY_NAME[activation]
    # Another key than that of the weights, which must not tell the activation.
    return MixedActivation.draw(activation, key=jr.fold_in(key, 1))


def MNIST(
    hidden_sizes: tuple[int, ...] = (32,),
    activation: str | tuple[str, ...] = "sigmoid",
    batch_size: int = 128,
    *,
    conv_channels: tuple[int, ...] = (),
    output: str = "softmax",
    image_size: int | None = None,
    num_examples: int = 48_000,
    outer: Literal["minibatch", "training", "held-out"] = "minibatch",
    outer_batch_size: int | None = None,
    digits: Digits | None = None,
    data: Literal["auto", "embedded", "tfds"] = "auto",
    data_dir: str | Path | None = None,
) -> FromModel:
    """Training a fully connected or convolutional network on handwritten digits, as the thesis does.

    By default the 784-32-10 network with a sigmoid hidden layer and softmax cross-entropy on the logits.
    (The thesis speaks of a sigmoid output too; its code trains on the logits all the same.)
    `MNIST((), conv_channels=(8, 8))` is the thesis's network of two convolutions and a dense layer; it
    gives no widths and strides for it, and those here are ours.

    **Arguments:**

    - `hidden_sizes`: widths of the hidden dense layers; may be empty.
    - `activation`: of the hidden layers: `"sigmoid"`, `"tanh"`, `"relu"` or `"leaky_relu"` (slope 0.1).
        Several of them as a tuple are a mixed family: each objective has one, drawn with it. `"mixed"`
        stands for all four.
    - `batch_size`: digits per minibatch.
    - `conv_channels`: channels of the convolutions before the dense layers, see `ConvNet`; by default
        none.
    - `output`: `"softmax"`, or `"sigmoid"` for what the thesis says: sigmoids, which the loss makes sum
        to one (`digit_sigmoid_cross_entropy`).
    - `image_size`: pools the digits to so many rows and columns, each pixel the mean of the area that it
        covers, see `l2o_eqx.data.Digits.pooled`; by default they stay as they are, 28. `MNIST((32,),
        image_size=8)` is the 64-32-10 network that learned optimizers are often trained on.
    - `num_examples`: use at most this many of the training digits, the first ones. The thesis trains on
        48,000, which makes an epoch of 375 batches.
    - `outer`: which digits the outer loss is of, the one that counts when an optimizer is trained: those of
        the step's own `"minibatch"`, those that networks are trained on (`"training"`), or those after the
        first `num_examples` (`"held-out"`).
    - `outer_batch_size`: how many of these, drawn anew at every step; by default all.
    - `digits`: the digits, if you have loaded them; otherwise `load_mnist(data, data_dir)` does.
    - `data`, `data_dir`: see `l2o_eqx.data.load_mnist`.

    **Returns:** a `FromModel` family. Each objective draws its own initial weights; minibatches follow
    the key of the super epoch.

    **Raises:** `ValueError` for an unknown activation, output or `outer`, sizes below 1, images larger than
    the digits, more examples per batch than there are, or no digits to hold out; `l2o_eqx.data.DataError` if
    the digits cannot be had.

    Reference: thesis sec. 5.1.2, 5.4.3; LeCun et al. 1998, "Gradient-based learning applied to document
    recognition".
    """
    activation = tuple(ACTIVATIONS) if activation == "mixed" else activation
    names = (activation,) if isinstance(activation, str) else activation
    if not names or not ACTIVATIONS.keys() >= {*names}:
        raise ArgumentError(
            f"`MNIST(activation={activation!r})`: the activations are {', '.join(ACTIVATIONS)}.",
            argument="activation",
            given=activation,
            possible=ACTIVATIONS,
        )
    if output not in OUTPUTS:
        raise ArgumentError(
            f"`MNIST(output={output!r})`: the outputs are {', '.join(OUTPUTS)}.",
            argument="output",
            given=output,
            possible=OUTPUTS,
        )
    check(
        "`MNIST(...)` needs layers and a data set of at least one. Got "
        f"hidden_sizes={hidden_sizes}, conv_channels={conv_channels}, num_examples={num_examples}.",
        hidden_sizes=(hidden_sizes, min(hidden_sizes, default=1) >= 1),
        conv_channels=(conv_channels, min(conv_channels, default=1) >= 1),
        num_examples=(num_examples, num_examples >= 1),
    )
    if digits is None:
        digits = load_mnist(data, data_dir)
    if image_size is not None:
        digits = digits.pooled(image_size)
    examples = (digits.train_images[:num_examples], digits.train_labels[:num_examples])
    sizes = (*hidden_sizes, 10)
    if conv_channels:
        make_model = MakeConvNet(tuple(conv_channels), sizes, activation, digits.image_size)
    else:
        make_model = MakeMLP((digits.image_size**2, *sizes), activation)
    outer_data = _outer_data(outer, digits, examples, num_examples)
    return FromModel(
        make_model,
        OUTPUTS[output],
        examples,
        batch_size,
        outer_data=outer_data,
        outer_batch_size=outer_batch_size,
    )


def _outer_data(outer, digits, examples, num_examples):
    if outer == "minibatch":
        return None
    if outer == "training":
        return examples
    if outer != "held-out":
        possible = ("minibatch", "training", "held-out")
        raise ArgumentError(
            f"`MNIST(outer={outer!r})`: the outer loss can be of {', '.join(possible)} digits.",
            argument="outer",
            given=outer,
            possible=possible,
        )
    rest = (digits.train_images[num_examples:], digits.train_labels[num_examples:])
    if not len(rest[1]):
        raise ArgumentError(
            f"`MNIST(outer='held-out')`: of the {len(digits.train_labels)} training digits none are left "
            f"after the first num_examples={num_examples}; take fewer.",
            argument="num_examples",
            given=num_examples,
        )
    return rest
