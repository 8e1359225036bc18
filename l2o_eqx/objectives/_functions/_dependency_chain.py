import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ..._errors import check
from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class DependencyChain(AbstractFunction):
    """Coordinates that must come to zero one after the other: f(x) = x_1² + Σ_i x_{i+1}²/(x_i² + ε).

    Each is drawn to zero the more the smaller the one before it is, which is pushed outwards until then. The
    minimum is 0 at (0, …, 0). Starting points are standard normal.

    **Arguments:**

    - `dim`: the number of coordinates, 2 or more.
    - `floor`: ε, above 0; where a coordinate is about √ε, curvatures are about 1/ε.

    **Raises:** `ValueError` for a smaller `dim`, or a `floor` that is not above 0.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813), and
    its released code, with ε = 1e-6.
    """

    dim: int = eqx.field(static=True, default=10)
    floor: float = eqx.field(static=True, default=1e-6)

    def __check_init__(self):
        check(
            f"`DependencyChain(floor=...)` must be above 0. Got floor={self.floor}.",
            floor=(self.floor, self.floor > 0),
        )

    def value(self, x: Float[Array, " dim"]) -> Scalar:
        return x[0] ** 2 + jnp.sum(x[1:] ** 2 / (x[:-1] ** 2 + self.floor))

    def start(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return jr.normal(key, (self.dim,))

    def minimum(self) -> Minimum:
        return known(0.0, *self.dim * [0.0])

    def least_dim(self) -> int:
        return 2
