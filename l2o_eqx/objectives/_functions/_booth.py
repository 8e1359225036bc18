from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class Booth(AbstractFunction):
    """Booth's function, f(x, y) = (x + 2y − 7)² + (2x + y − 5)²: a quadratic valley of condition 9.

    Its minimum is 0 at (1, 3). Starting points are uniform in [−10, 10]².

    Reference: Jamil & Yang 2013, "A literature survey of benchmark functions for global optimization
    problems" (arXiv:1308.4008), no. 17.
    """

    def value(self, x: Float[Array, " 2"]) -> Scalar:
        x1, x2 = x
        return (x1 + 2 * x2 - 7) ** 2 + (2 * x1 + x2 - 5) ** 2

    def box(self) -> tuple[tuple[float, float], ...]:
        return ((-10.0, 10.0), (-10.0, 10.0))

    def minimum(self) -> Minimum:
        return known(0.0, 1.0, 3.0)
