import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._errors import ArgumentError, check
from .._types import Params, Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._classifiers import ACTIVATIONS
from ._convex import convex_minimum
from ._gaussian_classes import gaussian_classes
from ._minibatch import minibatch_indices
from ._minimum import Minimum
from ._mnist import MakeMLP
from ._resized import resized


class ClassificationObjective(AbstractObjective):
    """Mean cross-entropy over a minibatch, with (λ/2)·‖θ‖². Drawn by `SyntheticClassification`."""

    make_model: MakeMLP
    static: PyTree
    inputs: Float[Array, "examples features"]
    labels: Int[Array, " examples"]
    batch_size: int = eqx.field(static=True)
    l2: float = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> Params:
        params = eqx.filter(self.make_model(key), eqx.is_inexact_array)
        return jax.tree.map(lambda x: x.astype(self.inputs.dtype), params)

    def loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        if not self.has_outer_loss():
            return self._mean(params, self.inputs, self.labels)
        count = len(self.inputs)
        shown = minibatch_indices(step, key, num_examples=count, batch_size=self.batch_size)
        return self._mean(params, self.inputs[shown], self.labels[shown])

    def outer_loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        """The loss over all examples."""
        return self._mean(params, self.inputs, self.labels)

    def has_outer_loss(self) -> bool:
        return self.batch_size < len(self.inputs)

    def minimum(self) -> Minimum | None:
        if len(self.make_model.sizes) > 2 or not self.l2:
            return None
        shapes = eqx.filter_eval_shape(self.init, jax.random.key(0))
        zeros, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        value, flat = convex_minimum(lambda x: self._mean(unravel(x), self.inputs, self.labels), zeros)
        return Minimum(value, unravel(flat))

    def _mean(self, params, inputs, labels):
        model: Any = eqx.combine(params, self.static)
        losses = optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(inputs), labels)
        squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
        return jnp.mean(losses) + self.l2 / 2 * squares


class SyntheticClassification(AbstractObjectiveFamily):
    """Softmax regression and small networks on two classes of synthetic points, drawn per objective.

    The points are from Gaussians with random means and covariances, which overlap, each with one of the two
    labels. The loss is the mean cross-entropy of a minibatch plus (λ/2)·‖θ‖²; where that is not all
    the data, the outer loss is the loss over all. Without hidden layers it is convex; with λ > 0 the minimum
    is unique then, and `minimum` finds it by Newton's method. That of networks is not known, but is not
    negative. Starting points are Glorot-uniform weights and zero biases.

    **Arguments:**

    - `hidden_sizes`: widths of the hidden layers; none for softmax regression.
    - `num_features`: entries of an example.
    - `num_examples`: how many there are.
    - `batch_size`: of a minibatch; all of the examples by default.
    - `activation`: of the hidden layers, as in `MNIST`.
    - `num_clusters`: how many Gaussians, two or more.
    - `l2`: λ.

    **Raises:** `ValueError` for smaller sizes, a negative λ, or an unknown activation.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813);
    Li & Malik 2016, "Learning to optimize" (arXiv:1606.01885), whose networks are
    `SyntheticClassification((2,), 2, 100, activation="relu", num_clusters=4)`.
    """

    hidden_sizes: tuple[int, ...] = eqx.field(static=True, default=(), converter=tuple)
    num_features: int = eqx.field(static=True, default=5)
    num_examples: int = eqx.field(static=True, default=100)
    batch_size: int | None = eqx.field(static=True, default=None)
    activation: str | tuple[str, ...] = eqx.field(static=True, default="relu")
    num_clusters: int = eqx.field(static=True, default=2)
    l2: float = eqx.field(static=True, default=5e-4, converter=float)

    def __check_init__(self):
        sizes, examples, clusters = self.hidden_sizes, self.num_examples, self.num_clusters
        batch = self._batch_size()
        check(
            "`SyntheticClassification(...)` needs sizes of at least one, two clusters, an example of each, "
            "no more examples per batch than there are, and no negative l2. Got "
            f"hidden_sizes={sizes}, "
            f"num_features={self.num_features}, num_clusters={clusters}, num_examples={examples}, "
            f"batch_size={self.batch_size}, l2={self.l2}.",
            hidden_sizes=(sizes, min(sizes, default=1) >= 1),
            num_features=(self.num_features, self.num_features >= 1),
            num_clusters=(clusters, clusters >= 2),
            num_examples=(examples, examples >= clusters),
            batch_size=(batch, 1 <= batch <= examples),
            l2=(self.l2, self.l2 >= 0),
        )
        names = self._activations()
        if not names or not ACTIVATIONS.keys() >= {*names}:
            raise ArgumentError(
                f"`SyntheticClassification(activation={self.activation!r})`: the activations are "
                f"{', '.join(ACTIVATIONS)}.",
                argument="activation",
                given=self.activation,
                possible=ACTIVATIONS,
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self._batch_size()

    def sample(self, key: PRNGKeyArray) -> ClassificationObjective:
        inputs, labels = gaussian_classes(
            key,
            num_features=self.num_features,
            num_examples=self.num_examples,
            num_clusters=self.num_clusters,
        )
        activation = self._activations() if self.activation == "mixed" else self.activation
        make_model = MakeMLP((self.num_features, *self.hidden_sizes, 2), activation)
        _, static = eqx.partition(make_model(key), eqx.is_inexact_array)
        return ClassificationObjective(make_model, static, inputs, labels, self._batch_size(), self.l2)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        myself: Any = self
        found = {
            f"features × {name}": dataclasses.replace(myself, num_features=features)
            for name, (features,) in resized((self.num_features,)).items()
        }
        for name, sizes in resized(self.hidden_sizes).items():
            found[f"width × {name}"] = dataclasses.replace(myself, hidden_sizes=sizes)
        return found

    def _batch_size(self):
        return self.num_examples if self.batch_size is None else self.batch_size

    def _activations(self) -> tuple[str, ...]:
        if self.activation == "mixed":
            return tuple(ACTIVATIONS)
        return (self.activation,) if isinstance(self.activation, str) else self.activation
