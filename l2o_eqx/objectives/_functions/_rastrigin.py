import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class Rastrigin(AbstractFunction):
    """Rastrigin's function, f(x) = 10n + Σ_i x_i² − 10·cos(2πx_i): a bowl full of local minima.

    They are near all integer points. The lowest is 0 at (0, …, 0). Starting points are uniform in
    [−5.12, 5.12]^n.

    **Arguments:**

    - `dim`: the number n of coordinates.

    **Raises:** `ValueError` for a `dim` below 1.

    Reference: Rastrigin 1974, "Systems of extremal control"; Mühlenbein, Schomisch & Born 1991, "The parallel
    genetic algorithm as function optimizer".
    """

    dim: int = eqx.field(static=True, default=2)

    def value(self, x: Float[Array, " dim"]) -> Scalar:
        # 1 − cos(2πx) = 2·sin²(πx) loses no digits near the minimum.
        return jnp.sum(x**2 + 20 * jnp.sin(jnp.pi * x) ** 2)

    def box(self) -> tuple[tuple[float, float], ...]:
        return self.dim * ((-5.12, 5.12),)

    def minimum(self) -> Minimum:
        return known(0.0, *self.dim * [0.0])
