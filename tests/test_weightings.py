import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WEIGHTINGS

from l2o_eqx.weightings import (
    Constant,
    Exponential,
    FinalOnly,
    Linear,
    LogMean,
    ObservedImprovement,
    PerStep,
)


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
        (PerStep((*[0.0] * 9, 2.0, 3.0)), [0, 2, 3, 0]),
        (PerStep((1.0, 2.0)), [0, 0, 0, 0]),
        (FinalOnly("super_epoch"), [0, 0, 0, 1]),
    ],
)
def test_closed_forms(weighting, expected):
    np.testing.assert_allclose(weights(weighting), expected, rtol=1e-6)


def test_final_only_in_the_super_epoch_ignores_earlier_windows():
    np.testing.assert_array_equal(weights(FinalOnly("super_epoch"), start=4), 0)


LINEAR = [name for name, make in WEIGHTINGS.items() if not isinstance(make(), LogMean | ObservedImprovement)]


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_derivatives_and_finite_where_losses_vanish(name):
    """Along a random direction, against differences in float64; zeros and tiny losses do no harm."""
    weighting = WEIGHTINGS[name]()
    with jax.enable_x64(True):
        losses, along = jnp.array([3.0, 1.0, 2.0, 0.5]), jnp.array([0.3, -0.7, 0.2, 0.9])

        def value(x):
            # The first loss is a constant to derivatives.
            return weighting.of(losses + x * along, 8, 12, jnp.asarray(4.0))

        differences = (value(1e-5) - value(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(value)(0.0), differences, rtol=1e-7)
    losses = jnp.array([0.0, 1.2e-38, 1e-30, 1e30])
    for first_loss in (losses[0], losses[3]):
        found, weights = jax.value_and_grad(weighting.of)(losses, 8, 12, first_loss)
        assert jnp.isfinite(found) and jnp.all(jnp.isfinite(weights))


@pytest.mark.parametrize("name", LINEAR)
def test_is_linear_in_the_losses(name):
    """L = Σ w_t·f(θ_t): the value is the gradient times the losses."""
    weighting, losses = WEIGHTINGS[name](), jnp.array([3.0, 1.0, 2.0, 0.5])
    np.testing.assert_allclose(weighting(losses, 8, 12), jnp.sum(weights(weighting) * losses), rtol=1e-6)


LOSSES = jnp.array([3.0, 1.0, 0.5, 1e-6])


@pytest.mark.parametrize(
    "weighting, value, expected",
    [
        # T = 4; the window begins with step 8 of 12, and the super epoch with the loss 6.
        (LogMean(), np.log(LOSSES), 1 / LOSSES),
        (LogMean(0.5), np.log(LOSSES + 0.5), 1 / (LOSSES + 0.5)),
        (LogMean(relative=True), np.log(LOSSES / 6), 1 / LOSSES),
        (LogMean(1e-3, relative=True), np.log(LOSSES / 6 + 1e-3), 1 / (LOSSES + 6e-3)),
        (
            LogMean(power=2.0),
            np.array([81, 100, 121, 144]) / 144 * np.log(LOSSES),
            np.array([81, 100, 121, 144]) / 144 / LOSSES,
        ),
    ],
)
def test_log_mean(weighting, value, expected):
    """L = mean s_t·log(f_t + ε) and w_t = s_t / (T·(f_t + ε))."""
    found, weights = jax.value_and_grad(weighting.of)(LOSSES, 8, 12, jnp.asarray(6.0))
    np.testing.assert_allclose(found, np.mean(value), rtol=1e-5)
    np.testing.assert_allclose(weights, expected / 4, rtol=1e-5)


def test_log_mean_called_directly_is_relative_to_the_window():
    relative = LogMean(relative=True)
    np.testing.assert_allclose(relative(LOSSES, 8, 12), np.mean(np.log(LOSSES / LOSSES[0])), rtol=1e-6)
    weights = jax.grad(relative)(LOSSES, 8, 12)
    np.testing.assert_allclose(weights, 1 / LOSSES / 4, rtol=1e-6)


def test_log_mean_does_not_see_the_scale():
    """Weights times losses, the share of every step, are the same for c·f; those of a sum grow with c."""
    for scale in (1e-30, 1.0, 1e30):
        weights = jax.grad(LogMean())(scale * LOSSES, 0, 4)
        np.testing.assert_allclose(weights * scale * LOSSES, 0.25, rtol=1e-5)


def test_log_mean_where_losses_are_not_positive():
    """Zero and below count as the floor without a weight; what is not a number is not hidden."""
    tiny = np.finfo(np.float32).tiny
    losses = jnp.array([1.0, 0.0, -2.0, 0.5 * tiny])
    found, weights = jax.value_and_grad(LogMean())(losses, 0, 4)
    np.testing.assert_allclose(found, 0.75 * np.log(tiny), rtol=1e-6)
    np.testing.assert_array_equal(weights, [0.25, 0, 0, 0])
    assert jnp.isnan(LogMean()(jnp.array([1.0, jnp.nan]), 0, 2))


@pytest.mark.parametrize(
    "make",
    [lambda: Linear(-1.0), lambda: Exponential(0.0), lambda: LogMean(-1.0), lambda: LogMean(power=-1.0)],
)
def test_errors_name_the_argument(make):
    with pytest.raises(ValueError, match=r"beta=|gamma=|eps=|power="):
        make()


def test_observed_improvement_is_its_sum():
    """Σ_t min(f_t − min_{j<t} f_j, 0) from the first loss of the super epoch on, and the mean."""
    losses = np.array([3.0, 4.0, 2.5, 2.7, 1.0, 1.5])
    gains = sum(min(x - min(losses[:t]), 0) for t, x in enumerate(losses) if t)
    found = ObservedImprovement(0.3).of(jnp.asarray(losses), 0, 6, jnp.asarray(3.0))
    np.testing.assert_allclose(found, gains + 0.3 * losses.mean(), rtol=1e-6)
    weights = jax.grad(lambda x: ObservedImprovement(0.3).of(x, 0, 6, jnp.asarray(3.0)))(jnp.asarray(losses))
    np.testing.assert_allclose(weights, [0.05, 0.05, 0.05, 0.05, 1.05, 0.05], rtol=1e-6)


def test_observed_improvement_of_a_later_window_is_over_the_first_loss():
    """None, and no weight, if nothing there is lower; a first point that stays the best keeps its own."""
    weights = jax.grad(lambda x, first: ObservedImprovement(0.0).of(x, 4, 8, first))
    losses = jnp.array([2.0, 1.0, 3.0])
    np.testing.assert_array_equal(weights(losses, jnp.asarray(0.5)), 0)
    np.testing.assert_array_equal(weights(losses, jnp.asarray(1.5)), [0, 1, 0])
    first = jax.grad(lambda x: ObservedImprovement(0.0)(x, 0, 3))(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(first, [1, 0, 0])
