import math

from jaxtyping import Array, Float

# The quintic iteration that brings all singular values near one: Jordan et al. 2024, "Muon".
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def near_orthogonal(
    x: Float[Array, "*shape"], norm: Float[Array, ""], num_steps: int
) -> Float[Array, "*shape"]:
    """A tensor as a matrix, its axes but the first taken together, with singular values brought near one.

    Scaled so that n × m entries of an orthogonal matrix have a root mean square of one.

    **Arguments:**

    - `x`: of at least one axis.
    - `norm`: what it is divided by first: its Frobenius norm, or more.
    - `num_steps`: of the Newton-Schulz iteration.

    Reference: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    matrix = x.reshape(x.shape[0], -1)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / norm
    a, b, c = _COEFFICIENTS
    for _ in range(num_steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    wide = math.sqrt(wide.shape[1]) * wide
    return (wide if matrix.shape == wide.shape else wide.T).reshape(x.shape)
