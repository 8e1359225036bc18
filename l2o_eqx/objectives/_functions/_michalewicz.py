import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class Michalewicz(AbstractFunction):
    """Michalewicz's function, f(x) = n − Σ_i sin(x_i)·sin(i·x_i²/π)^(2m): flat between steep valleys.

    That is n above the usual form, so as to be positive. Its minimum in [0, π]^n is known from a search along
    each coordinate: 0.19870 at (2.20291, 1.57080) for n = 2 and m = 10. Beyond that box it has others, some
    of them lower. Starting points are uniform in the box.

    **Arguments:**

    - `dim`: the number n of coordinates.
    - `steepness`: m, of the valleys.

    **Raises:** `ValueError` for a `dim` below 1.

    Reference: Michalewicz 1992, "Genetic algorithms + data structures = evolution programs".
    """

    dim: int = eqx.field(static=True, default=2)
    steepness: int = eqx.field(static=True, default=10)

    def value(self, x: Float[Array, " dim"]) -> Scalar:
        i = 1 + jnp.arange(self.dim, dtype=x.dtype)
        return jnp.sum(1 - jnp.sin(x) * jnp.sin(i * x**2 / jnp.pi) ** (2 * self.steepness))

    def box(self) -> tuple[tuple[float, float], ...]:
        return self.dim * ((0.0, np.pi),)

    def minimum(self) -> Minimum:
        places = [self._lowest(i) for i in range(1, 1 + self.dim)]
        return known(sum(value for value, _ in places), *(x for _, x in places))

    def _lowest(self, i: int) -> tuple[float, float]:
        # The lowest term no. i and where it is: finer and finer grids around the best point.
        middle, width = np.pi / 2, np.pi / 2
        # The first grid has 50 points and more in each of its valleys.
        count = 1001 + 200 * i * self.steepness
        x, terms = np.zeros(1), np.zeros(1)
        while width > 1e-9:
            x = np.clip(np.linspace(middle - width, middle + width, count), 0, np.pi)
            terms = 1 - np.sin(x) * np.sin(i * x**2 / np.pi) ** (2 * self.steepness)
            middle, width = float(x[np.argmin(terms)]), width * 4 / count
        return float(np.min(terms)), middle
