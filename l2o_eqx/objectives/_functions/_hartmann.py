from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._errors import ArgumentError
from ..._types import Scalar
from .._base import AbstractObjectiveFamily
from .._minimum import Minimum
from ._base import AbstractFunction, known

_DEPTHS = (1.0, 1.2, 3.0, 3.2)
# The steepness of every well along every coordinate, and 10⁴ times where they are.
_STEEPNESS = {
    3: ((3, 10, 30), (0.1, 10, 35), (3, 10, 30), (0.1, 10, 35)),
    6: (
        (10, 3, 17, 3.5, 1.7, 8),
        (0.05, 10, 17, 0.1, 8, 14),
        (3, 3.5, 1.7, 10, 17, 8),
        (17, 8, 0.05, 10, 0.1, 14),
    ),
}
_PLACES = {
    3: ((3689, 1170, 2673), (4699, 4387, 7470), (1091, 8732, 5547), (381, 5743, 8828)),
    6: (
        (1312, 1696, 5569, 124, 8283, 5886),
        (2329, 4135, 8307, 3736, 1004, 9991),
        (2348, 1451, 3522, 2883, 3047, 6650),
        (4047, 8828, 8732, 5743, 1091, 381),
    ),
}
# Newton's method from the points of the literature.
_LOWEST = {
    3: (-3.862779787332663, (0.11458887665506896, 0.5556488946169301, 0.8525469846866774)),
    6: (
        -3.322368011415515,
        (
            *(0.20168951100670543, 0.15001069182345797, 0.47687397422189703),
            *(0.2753324304940561, 0.31165161660011326, 0.6573005340656204),
        ),
    ),
}


class Hartmann(AbstractFunction):
    """Hartmann's functions of three or six coordinates, f(x) = −Σ_k a_k·exp(−Σ_j A_kj·(x_j − P_kj)²).

    Four wells in [0, 1]^n, on a plain that is nearly flat. The minima are −3.86278 at (0.114589, 0.555649,
    0.852547) and −3.32237 at (0.201690, 0.150011, 0.476874, 0.275332, 0.311652, 0.657301). Starting points
    are uniform in the box.

    **Arguments:**

    - `dim`: n, 3 or 6.

    **Raises:** `ValueError` for another `dim`.

    Reference: Hartman 1973, "Some experiments in global optimization"; Dixon & Szegő 1978, "Towards global
    optimization 2".
    """

    dim: int = eqx.field(static=True, default=3)

    def __check_init__(self):
        if self.dim not in _LOWEST:
            raise ArgumentError(
                f"`Hartmann(dim=...)` has 3 or 6 coordinates. Got dim={self.dim}.",
                argument="dim",
                given=self.dim,
                possible=_LOWEST,
            )

    def value(self, x: Float[Array, " dim"]) -> Scalar:
        steepness, places = np.asarray(_STEEPNESS[self.dim]), np.asarray(_PLACES[self.dim]) / 10_000
        distances = (x[None] - jnp.asarray(places, x.dtype)) ** 2
        exponents = jnp.sum(jnp.asarray(steepness, x.dtype) * distances, axis=1)
        return -jnp.sum(jnp.asarray(_DEPTHS, x.dtype) * jnp.exp(-exponents))

    def box(self) -> tuple[tuple[float, float], ...]:
        return self.dim * ((0.0, 1.0),)

    def minimum(self) -> Minimum:
        value, point = _LOWEST[self.dim]
        return known(value, *point)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        return {f"dimension {dim}": Hartmann(dim) for dim in _LOWEST if dim != self.dim}
