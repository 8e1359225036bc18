import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class Ackley(AbstractFunction):
    """Ackley's function, f(x) = 20 + e − 20·exp(−0.2·√mean x²) − exp(mean cos 2πx): ripples around one hole.

    Its minimum is 0 at (0, …, 0), a tip without a gradient, where that is taken to be zero. Starting points
    are uniform in [−32.768, 32.768]^n.

    **Arguments:**

    - `dim`: the number n of coordinates.

    **Raises:** `ValueError` for a `dim` below 1.

    Reference: Ackley 1987, "A connectionist machine for genetic hillclimbing".
    """

    dim: int = eqx.field(static=True, default=2)

    def value(self, x: Float[Array, " dim"]) -> Scalar:
        square = jnp.mean(x**2)
        positive = square > 0
        root = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
        # Both terms as differences to their values at the minimum, which loses no digits there.
        ripples = jnp.mean(-2 * jnp.sin(jnp.pi * x) ** 2)
        return -20 * jnp.expm1(-0.2 * root) - jnp.e * jnp.expm1(ripples)

    def box(self) -> tuple[tuple[float, float], ...]:
        return self.dim * ((-32.768, 32.768),)

    def minimum(self) -> Minimum:
        return known(0.0, *self.dim * [0.0])
