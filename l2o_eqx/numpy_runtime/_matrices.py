"""Matrices of which all singular values are near one."""

import math

from ._arrays import Array

# As in l2o_eqx.optimizers.AdamMLP.
MUON_FLOOR, MUON_FAN_IN = 0.01, 1000
_STEPS, _COEFFICIENTS = 3, (3.4445, -4.7750, 2.0315)


def is_matrix(x: Array) -> bool:
    return len(x.shape) > 1 and x.shape[0] > 1 and math.prod(x.shape) > x.shape[0]


def near_orthogonal(mean: Array, norm: Array) -> Array:
    matrix = mean.reshape(mean.shape[0], -1)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / norm
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    wide = math.sqrt(wide.shape[1]) * wide
    return (wide if matrix.shape == wide.shape else wide.T).reshape(mean.shape)
