from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class Matyas(AbstractFunction):
    """Matyas's function, f(x, y) = 0.26·(x² + y²) − 0.48·x·y: a quadratic valley of condition 25.

    Its minimum is 0 at (0, 0). Starting points are uniform in [−10, 10]².

    Reference: Jamil & Yang 2013, "A literature survey of benchmark functions for global optimization
    problems" (arXiv:1308.4008), no. 71.
    """

    def value(self, x: Float[Array, " 2"]) -> Scalar:
        x1, x2 = x
        # Along its axes, so that it cannot round to below 0.
        return 0.25 * (x1 - x2) ** 2 + 0.01 * (x1 + x2) ** 2

    def box(self) -> tuple[tuple[float, float], ...]:
        return ((-10.0, 10.0), (-10.0, 10.0))

    def minimum(self) -> Minimum:
        return known(0.0, 0.0, 0.0)
