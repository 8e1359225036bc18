import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class Branin(AbstractFunction):
    """Branin's function, f(x, y) = (y − 5.1x²/4π² + 5x/π − 6)² + 10·(1 − 1/8π)·cos x + 10: three minima.

    They are 0.397887 at (−π, 12.275), (π, 2.275) and (3π, 2.475); `minimum` has the second. Starting points
    are uniform in [−5, 10] × [0, 15].

    Reference: Branin 1972, "Widely convergent method for finding multiple solutions of simultaneous nonlinear
    equations"; Dixon & Szegő 1978, "Towards global optimization 2".
    """

    def value(self, x: Float[Array, " 2"]) -> Scalar:
        x1, x2 = x
        valley = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
        return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * jnp.cos(x1) + 10

    def box(self) -> tuple[tuple[float, float], ...]:
        return ((-5.0, 10.0), (0.0, 15.0))

    def minimum(self) -> Minimum:
        return known(10 / (8 * math.pi), math.pi, 2.275)
