from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._errors import check
from .._types import Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._convex import convex_minimum
from ._gaussian_classes import gaussian_classes
from ._minimum import Minimum
from ._resized import resized


class LogisticObjective(AbstractObjective):
    """Mean logistic loss over all examples, with (λ/2)·‖w‖². Drawn by `LogisticRegression`."""

    inputs: Float[Array, "examples features"]
    labels: Int[Array, " examples"]
    l2: float = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return jr.normal(key, (self.inputs.shape[1] + 1,), self.inputs.dtype)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return self._value(params)

    def minimum(self) -> Minimum:
        start = jnp.zeros(self.inputs.shape[1] + 1, self.inputs.dtype)
        return Minimum(*convex_minimum(self._value, start))

    def _value(self, params):
        weights, bias = params[:-1], params[-1]
        margins = (2 * self.labels - 1) * (self.inputs @ weights + bias)
        return jnp.mean(jax.nn.softplus(-margins)) + self.l2 / 2 * jnp.sum(weights**2)


class LogisticRegression(AbstractObjectiveFamily):
    """Logistic regression of two random Gaussians: convex, f = mean log(1 + exp(∓(⟨w, x⟩ + b))) + (λ/2)·‖w‖².

    The params are w and, last, b, in one vector. The data are drawn per objective, half of them from each
    of two Gaussians with random means and covariances, which overlap. The minimum is unique and has no
    formula; `minimum` finds it by Newton's method. Starting points are standard normal.

    **Arguments:**

    - `num_features`: entries of an example.
    - `num_examples`: how many there are, at least two.
    - `l2`: λ, above 0.

    **Raises:** `ValueError` for smaller sizes, or a λ that is not above 0.

    Reference: Li & Malik 2016, "Learning to optimize" (arXiv:1606.01885), with 3 features, 100 examples and
    λ = 5e-4.
    """

    num_features: int = eqx.field(static=True, default=3)
    num_examples: int = eqx.field(static=True, default=100)
    l2: float = eqx.field(static=True, default=5e-4, converter=float)

    def __check_init__(self):
        features, examples = self.num_features, self.num_examples
        check(
            "`LogisticRegression(...)` needs a feature, two examples and an l2 above 0. Got "
            f"num_features={features}, num_examples={examples}, l2={self.l2}.",
            num_features=(features, features >= 1),
            num_examples=(examples, examples >= 2),
            l2=(self.l2, self.l2 > 0),
        )

    def sample(self, key: PRNGKeyArray) -> LogisticObjective:
        inputs, labels = gaussian_classes(
            key, num_features=self.num_features, num_examples=self.num_examples, num_clusters=2
        )
        return LogisticObjective(inputs, labels, self.l2)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        return {
            f"features × {name}": LogisticRegression(features, self.num_examples, self.l2)
            for name, (features,) in resized((self.num_features,)).items()
        }
