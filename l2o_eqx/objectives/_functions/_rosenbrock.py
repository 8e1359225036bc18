import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class Rosenbrock(AbstractFunction):
    """Rosenbrock's valley, f(x) = Σ_i 100·(x_{i+1} − x_i²)² + (1 − x_i)²: curved, flat along its floor.

    Its minimum is 0 at (1, …, 1). From four coordinates on there is another local one near (−1, 1, …, 1).
    Starting points are uniform in [−2.048, 2.048]^n.

    **Arguments:**

    - `dim`: the number n of coordinates, 2 or more.

    **Raises:** `ValueError` for a smaller `dim`.

    Reference: Rosenbrock 1960, "An automatic method for finding the greatest or least value of a function".
    """

    dim: int = eqx.field(static=True, default=2)

    def value(self, x: Float[Array, " dim"]) -> Scalar:
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    def box(self) -> tuple[tuple[float, float], ...]:
        return self.dim * ((-2.048, 2.048),)

    def minimum(self) -> Minimum:
        return known(0.0, *self.dim * [1.0])

    def least_dim(self) -> int:
        return 2
