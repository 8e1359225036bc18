from .._errors import check
from ._spectral_quadratic import SpectralQuadratic


def Bowl(condition: float = 100.0) -> SpectralQuadratic:
    """Two-dimensional bowls, f(θ) = ½(u² + v²/k) along axes u, v that are turned at random.

    k is log-uniform between 1 and κ. The minimum is 0 at the origin. Starting points are standard normal.

    **Arguments:**

    - `condition`: κ, the largest condition number, at least 1.

    **Returns:** a `SpectralQuadratic`.

    **Raises:** `ValueError` for a `condition` below 1.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813).
    """
    check(
        f"`Bowl(condition=...)` must be at least 1. Got condition={condition}.",
        condition=(condition, condition >= 1),
    )
    return SpectralQuadratic(2, condition, centered=True)
