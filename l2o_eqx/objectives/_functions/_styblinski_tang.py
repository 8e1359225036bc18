import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known

# Where x⁴ − 16x² + 5x is lowest: the smallest root of 4x³ − 32x + 5.
_LOWEST = -2.9035340277711770


class StyblinskiTang(AbstractFunction):
    """Styblinski and Tang's function above its minimum, f(x) = Σ_i (x_i⁴ − 16x_i² + 5x_i)/2 + 39.16617·n.

    It has 2^n local minima. The lowest is 0 at (−2.903534, …, −2.903534). Starting points are uniform in
    [−5, 5]^n.

    **Arguments:**

    - `dim`: the number n of coordinates.

    **Raises:** `ValueError` for a `dim` below 1.

    Reference: Styblinski & Tang 1990, "Experiments in nonconvex optimization".
    """

    dim: int = eqx.field(static=True, default=2)

    def value(self, x: Float[Array, " dim"]) -> Scalar:
        # Each term without its double root, which loses no digits near the minimum.
        a = _LOWEST
        return 0.5 * jnp.sum((x - a) ** 2 * (x**2 + 2 * a * x + 3 * a**2 - 16))

    def box(self) -> tuple[tuple[float, float], ...]:
        return self.dim * ((-5.0, 5.0),)

    def minimum(self) -> Minimum:
        return known(0.0, *self.dim * [_LOWEST])
