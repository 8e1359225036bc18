from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import check
from .._types import Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._resized import resized


class RobustObjective(AbstractObjective):
    """Mean of e²/(1 + e²) over all examples, e = y − ⟨w, x⟩ − b. Drawn by `RobustRegression`."""

    inputs: Float[Array, "examples features"]
    targets: Float[Array, " examples"]

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return jr.normal(key, (self.inputs.shape[1] + 1,), self.inputs.dtype)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        errors = self.targets - self.inputs @ params[:-1] - params[-1]
        return jnp.mean(errors**2 / (1 + errors**2))


class RobustRegression(AbstractObjectiveFamily):
    """Linear regression with the loss of Geman and McClure: f = mean e²/(1 + e²), not convex.

    The params are w and, last, b, in one vector. The data are drawn per objective, in equal parts from
    Gaussians of random means and covariances; the targets of each are its own random projection of its
    points, with its own bias and noise. So no (w, b) fits all, and the loss, which lies in [0, 1), counts
    large errors as lost. Starting points are standard normal. The minimum is not known.

    **Arguments:**

    - `num_features`: entries of an example.
    - `num_examples`: how many there are, at least one for each Gaussian.
    - `num_clusters`: how many Gaussians.
    - `noise`: standard deviation of the noise of targets.

    **Raises:** `ValueError` for smaller sizes, or a negative `noise`.

    Reference: Geman & McClure 1985, "Bayesian image analysis: an application to single photon emission
    tomography"; Li & Malik 2016 (arXiv:1606.01885), sec. 5.2, with 4 Gaussians of 25 points.
    """

    num_features: int = eqx.field(static=True, default=3)
    num_examples: int = eqx.field(static=True, default=100)
    num_clusters: int = eqx.field(static=True, default=4)
    noise: float = eqx.field(static=True, default=0.1, converter=float)

    def __check_init__(self):
        features, examples, clusters = self.num_features, self.num_examples, self.num_clusters
        check(
            "`RobustRegression(...)` needs a feature, a Gaussian, an example of each, and a noise of at "
            f"least 0. Got num_features={features}, num_examples={examples}, num_clusters={clusters}, "
            f"noise={self.noise}.",
            num_features=(features, features >= 1),
            num_clusters=(clusters, clusters >= 1),
            num_examples=(examples, examples >= clusters),
            noise=(self.noise, self.noise >= 0),
        )

    def sample(self, key: PRNGKeyArray) -> RobustObjective:
        mkey, akey, wkey, bkey, xkey, nkey = jr.split(key, 6)
        features, examples, clusters = self.num_features, self.num_examples, self.num_clusters
        means = jr.normal(mkey, (clusters, features))
        factors = jr.normal(akey, (clusters, features, features)) / features**0.5
        weights, biases = jr.normal(wkey, (clusters, features)), jr.normal(bkey, (clusters,))
        owners = jnp.arange(examples) * clusters // examples
        draws = jr.normal(xkey, (examples, features))
        inputs = means[owners] + jnp.einsum("eij,ej->ei", factors[owners], draws)
        noise = self.noise * jr.normal(nkey, (examples,))
        targets = jnp.einsum("ef,ef->e", weights[owners], inputs) + biases[owners] + noise
        return RobustObjective(inputs, targets)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        return {
            f"features × {name}": RobustRegression(features, self.num_examples, self.num_clusters, self.noise)
            for name, (features,) in resized((self.num_features,)).items()
        }
