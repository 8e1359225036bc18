import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class MinMaxWell(AbstractFunction):
    """Only the smallest and the largest coordinate have a gradient: f(x) = max x² + 1/min x² − 2.

    An optimizer must bear with gradients that are zero almost everywhere. The minimum is 0, where all
    coordinates are 1 or −1. Starting points are standard normal.

    **Arguments:**

    - `dim`: the number of coordinates.

    **Raises:** `ValueError` for a `dim` below 1.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813), and
    its released code.
    """

    dim: int = eqx.field(static=True, default=10)

    def value(self, x: Float[Array, " dim"]) -> Scalar:
        sizes = jnp.abs(x)
        low, high = jnp.min(sizes), jnp.max(sizes)
        # Two terms that are not negative: the difference of large numbers would lose digits.
        return (high**2 - low**2) + (low - 1 / low) ** 2

    def start(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return jr.normal(key, (self.dim,))

    def minimum(self) -> Minimum:
        return known(0.0, *self.dim * [1.0])
