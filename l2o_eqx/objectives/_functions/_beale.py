from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class Beale(AbstractFunction):
    """Beale's function, f(x, y) = Σ_k (c_k − x + x·y^k)², c = (1.5, 2.25, 2.625): flat between sharp corners.

    Its minimum is 0 at (3, 0.5). Starting points are uniform in [−4.5, 4.5]².

    Reference: Beale 1958, "On an iterative method for finding a local minimum of a function of more than one
    variable".
    """

    def value(self, x: Float[Array, " 2"]) -> Scalar:
        x1, x2 = x
        return (1.5 - x1 + x1 * x2) ** 2 + (2.25 - x1 + x1 * x2**2) ** 2 + (2.625 - x1 + x1 * x2**3) ** 2

    def box(self) -> tuple[tuple[float, float], ...]:
        return ((-4.5, 4.5), (-4.5, 4.5))

    def minimum(self) -> Minimum:
        return known(0.0, 3.0, 0.5)
