from pathlib import Path
from typing import Literal

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ..data import Digits, load_mnist
from ._classifiers import ACTIVATIONS, MLP, digit_cross_entropy
from ._from_model import FromModel


class _MakeMLP(eqx.Module):
    # A module, not a closure, so that two families built alike compare equal and share one program.
    sizes: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> MLP:
        return MLP(self.sizes, ACTIVATIONS[self.activation], key=key)


def MNIST(
    hidden_sizes: tuple[int, ...] = (32,),
    activation: str = "sigmoid",
    batch_size: int = 128,
    *,
    num_examples: int = 48_000,
    digits: Digits | None = None,
    data: Literal["auto", "embedded", "tfds"] = "auto",
    data_dir: str | Path | None = None,
) -> FromModel:
    """Training a fully connected network on handwritten digits, as the thesis does.

    By default the 784-32-10 network with a sigmoid hidden layer and softmax cross-entropy on the logits.
    (The thesis speaks of a sigmoid output too; its code trains on the logits all the same.)

    **Arguments:**

    - `hidden_sizes`: widths of the hidden layers.
    - `activation`: of the hidden layers: `"sigmoid"`, `"tanh"`, `"relu"` or `"leaky_relu"` (slope 0.1).
    - `batch_size`: digits per minibatch.
    - `num_examples`: use at most this many of the training digits, the first ones. The thesis trains on
        48,000, which makes an epoch of 375 batches.
    - `digits`: the digits, if you have loaded them; otherwise `load_mnist(data, data_dir)` does.
    - `data`, `data_dir`: see `l2o_eqx.data.load_mnist`.

    **Returns:** a `FromModel` family. Each objective draws its own initial weights; minibatches follow
    the key of the super epoch.

    **Raises:** `ValueError` for an unknown activation, sizes below 1, or more examples per batch than
    there are; `l2o_eqx.data.DataError` if the digits cannot be had.

    Reference: thesis sec. 5.1.2; LeCun et al. 1998, "Gradient-based learning applied to document
    recognition".
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"`MNIST(activation={activation!r})`: the activations are {', '.join(ACTIVATIONS)}.")
    if not all(size >= 1 for size in hidden_sizes) or num_examples < 1:
        raise ValueError(
            "`MNIST(...)` needs layers and a data set of at least one. "
            f"Got hidden_sizes={hidden_sizes}, num_examples={num_examples}."
        )
    if digits is None:
        digits = load_mnist(data, data_dir)
    examples = (digits.train_images[:num_examples], digits.train_labels[:num_examples])
    make_model = _MakeMLP((784, *hidden_sizes, 10), activation)
    return FromModel(make_model, digit_cross_entropy, examples, batch_size)
