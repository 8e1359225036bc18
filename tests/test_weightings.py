import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WEIGHTINGS

from l2o_eqx.weightings import Constant, Exponential, FinalOnly, Linear


def weights(weighting, window=4, start=8, num_steps=12):
    """w_t = ∂L/∂f(θ_t)."""
    return jax.grad(lambda x: weighting(x, start, num_steps))(jnp.ones(window))


@pytest.mark.parametrize(
    "weighting, expected",
    [
        (Constant(), [1, 1, 1, 1]),
        (Linear(), [2, 3, 4, 5]),
        (Linear(first=0), [1, 2, 3, 4]),
        (Linear(0.5, "super_epoch"), [5.5, 6, 6.5, 7]),
        (Linear(0.0), [1, 1, 1, 1]),
        (Exponential(2.0), [2, 4, 8, 16]),
        (Exponential(2.0, "super_epoch", first=0), [256, 512, 1024, 2048]),
        (FinalOnly(), [0, 0, 0, 1]),
        (FinalOnly("super_epoch"), [0, 0, 0, 1]),
    ],
)
def test_closed_forms(weighting, expected):
    np.testing.assert_allclose(weights(weighting), expected, rtol=1e-6)


def test_final_only_in_the_super_epoch_ignores_earlier_windows():
    np.testing.assert_array_equal(weights(FinalOnly("super_epoch"), start=4), 0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_is_linear_in_the_losses(name):
    """L = Σ w_t·f(θ_t): the value is the gradient times the losses."""
    weighting, losses = WEIGHTINGS[name](), jnp.array([3.0, 1.0, 2.0, 0.5])
    np.testing.assert_allclose(weighting(losses, 8, 12), jnp.sum(weights(weighting) * losses), rtol=1e-6)


@pytest.mark.parametrize("make", [lambda: Linear(-1.0), lambda: Exponential(0.0)])
def test_errors_name_the_argument(make):
    with pytest.raises(ValueError, match=r"beta=|gamma="):
        make()
