from jaxtyping import Array, Float

from ..._types import Scalar
from .._minimum import Minimum
from ._base import AbstractFunction, known


class GoldsteinPrice(AbstractFunction):
    """Goldstein and Price's function of two coordinates: values from 3 to a million, and four local minima.

    With s = x + y + 1 and d = 2x − 3y,

        f(x, y) = (1 + s²·(19 − 14x + 3x² − 14y + 6xy + 3y²))·(30 + d²·(18 − 32x + 12x² + 48y − 36xy + 27y²)).

    Its minimum is 3 at (0, −1). Starting points are uniform in [−2, 2]².

    Reference: Goldstein & Price 1971, "On descent from local minima"; Dixon & Szegő 1978, "Towards global
    optimization 2".
    """

    def value(self, x: Float[Array, " 2"]) -> Scalar:
        x1, x2 = x
        first = 19 - 14 * x1 + 3 * x1**2 - 14 * x2 + 6 * x1 * x2 + 3 * x2**2
        second = 18 - 32 * x1 + 12 * x1**2 + 48 * x2 - 36 * x1 * x2 + 27 * x2**2
        return (1 + (x1 + x2 + 1) ** 2 * first) * (30 + (2 * x1 - 3 * x2) ** 2 * second)

    def box(self) -> tuple[tuple[float, float], ...]:
        return ((-2.0, 2.0), (-2.0, 2.0))

    def minimum(self) -> Minimum:
        return known(3.0, 0.0, -1.0)
