import math
from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from .._errors import check
from .._linear_algebra import orthonormal
from ._base import AbstractObjectiveFamily
from ._quadratic import QuadraticObjective
from ._resized import resized


class SpectralQuadratic(AbstractObjectiveFamily):
    """Quadratics with random spectra: f(θ) = ½(θ − θ*)ᵀQΛQᵀ(θ − θ*), with eigenvalues from 1/κ to 1.

    Q is a random rotation. The largest eigenvalue is 1, the others are log-uniform between 1/κ and 1. The
    minimum is 0 at θ*, which is standard normal; so are starting points.

    **Arguments:**

    - `dim`: the number of coordinates.
    - `condition`: κ, the largest condition number, at least 1.
    - `centered`: whether all minima are at the origin.

    **Raises:** `ValueError` for a `dim` or a `condition` below 1.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813).
    """

    dim: int = eqx.field(static=True, default=16)
    condition: float = eqx.field(static=True, default=1e3, converter=float)
    centered: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check(
            "`SpectralQuadratic(dim=..., condition=...)` must be at least 1. Got "
            f"dim={self.dim}, condition={self.condition}.",
            dim=(self.dim, self.dim >= 1),
            condition=(self.condition, 1 <= self.condition < math.inf),
        )

    def sample(self, key: PRNGKeyArray) -> QuadraticObjective:
        qkey, lkey, tkey = jr.split(key, 3)
        # The Q of a QR decomposition with a positive diagonal of R is uniform over all rotations.
        rotation = orthonormal(jr.normal(qkey, (self.dim, self.dim)))
        logs = jr.uniform(lkey, (self.dim,), minval=-math.log(self.condition), maxval=0.0)
        eigenvalues = jnp.exp(logs.at[0].set(0.0))
        matrix = jnp.sqrt(eigenvalues / 2)[:, None] * rotation.T
        lowest = jnp.zeros(self.dim) if self.centered else jr.normal(tkey, (self.dim,))
        return QuadraticObjective(matrix, matrix @ lowest)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        return {
            f"dimension × {name}": SpectralQuadratic(dim, self.condition, self.centered)
            for name, (dim,) in resized((self.dim,)).items()
        }
