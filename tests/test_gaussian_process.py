"""Functions from a Gaussian process: their minimum, their prior, and the improvement one expects of them."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from helpers import ScaledGradient
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

import l2o_eqx
from l2o_eqx.estimators import Backprop
from l2o_eqx.objectives import (
    Bowl,
    Branin,
    GaussianProcess,
    InBox,
    MinMaxWell,
    Regret,
    StyblinskiTang,
    SyntheticClassification,
)
from l2o_eqx.objectives._expected_improvement import Evaluations, expected_improvement, posterior
from l2o_eqx.objectives._gaussian_process import _draw
from l2o_eqx.weightings import Constant

KEY = jr.key(3)


@pytest.mark.parametrize("dim, points", [(1, 2001), (2, 101)])
def test_no_point_of_a_grid_is_below_the_minimum(dim, points):
    """And where the draw is well above it, the function is the draw."""
    axes = jnp.linspace(-1.5, 1.5, points)
    grid = jnp.stack(jnp.meshgrid(*[axes] * dim), axis=-1).reshape(-1, dim)

    @jax.jit
    def look(key):
        objective: Any = GaussianProcess(dim).sample(key)
        features = objective.frequencies, objective.phases, objective.weights
        minimum = objective.minimum()
        found = jax.vmap(lambda x: objective.loss(x, 0, key))(grid)
        draws = jax.vmap(lambda x: _draw(*features, x))(grid)
        return found, draws, minimum.value, minimum.params, objective.loss(minimum.params, 0, key)

    for key in jr.split(KEY, 4):
        found, draws, value, point, there = (np.asarray(x) for x in look(key))
        assert np.all(found >= value - 1e-6) and np.all(np.abs(point) <= 1)
        np.testing.assert_allclose(there, value, atol=1e-6)
        high = draws > value + 0.25
        assert high.mean() > 0.5
        np.testing.assert_allclose(found[high], draws[high], atol=1e-5)


def test_covariance_is_the_kernel():
    """Over many draws, of a function without its lifted parts."""
    points = jnp.array([[0.0, 0.0], [0.3, 0.1], [-0.6, 0.4]])

    @jax.jit
    def values(key):
        objective: Any = GaussianProcess(2, 0.5, 64).sample(key)
        return jax.vmap(lambda x: _draw(objective.frequencies, objective.phases, objective.weights, x))(
            points
        )

    found = np.asarray(jax.lax.map(values, jr.split(KEY, 4000), batch_size=500))
    distances = np.sum((np.asarray(points)[:, None] - np.asarray(points)[None]) ** 2, axis=-1)
    np.testing.assert_allclose(np.cov(found.T), np.exp(-distances / (2 * 0.5**2)), atol=0.08)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.06)


def test_length_scales_of_a_range_are_log_uniform():
    scales = np.asarray(
        jax.vmap(lambda key: GaussianProcess(1, (0.2, 0.8), 4).sample(key).length_scale)(jr.split(KEY, 2000))
    )
    assert scales.min() >= 0.2 and scales.max() <= 0.8
    np.testing.assert_allclose(np.median(scales), 0.4, rtol=0.05)
    family = GaussianProcess(3, (0.2, 0.8))
    assert family.variations()["length scale × 2"] == GaussianProcess(3, (0.4, 1.6))
    assert GaussianProcess(4).variations()["length scale × ½"] == GaussianProcess(4, (0.4, 0.4))


def test_the_posterior_is_that_of_scikit_learn():
    """Of three points where there is place for five; and without any it is the prior."""
    points = np.array([[0.1, -0.2], [0.7, 0.3], [-0.5, 0.9]])
    values, at = np.array([0.3, -1.2, 0.8]), np.array([[0.2, 0.1]])
    evaluations = Evaluations(jnp.full((5, 2), 0.4), jnp.full(5, 9.0), jnp.asarray(0))
    mean, variance = posterior(evaluations, jnp.asarray(0.6), jnp.asarray(at[0]))
    np.testing.assert_allclose((mean, variance), (0, 1), atol=1e-6)
    for point, value in zip(points, values, strict=True):
        evaluations = evaluations.with_one(jnp.asarray(point), jnp.asarray(value))
    mean, variance = posterior(evaluations, jnp.asarray(0.6), jnp.asarray(at[0]))
    fixed: Any = {"alpha": 1e-4, "optimizer": None}
    regressor = GaussianProcessRegressor(RBF(0.6), **fixed).fit(points, values)
    expected, std = regressor.predict(at, return_std=True)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-4)
    np.testing.assert_allclose(variance, std[0] ** 2, rtol=1e-3)


def test_expected_improvement_is_its_integral():
    for mean, std, lowest in ((0.2, 0.5, 0.0), (-1.0, 0.1, -0.9), (2.0, 1.5, -1.0)):
        normal: Any = scipy.stats.norm(mean, std)
        expected = scipy.integrate.quad(
            lambda y, n=normal, b=lowest: (b - y) * n.pdf(y), lowest - 12, lowest
        )[0]
        found = expected_improvement(jnp.asarray(mean), jnp.asarray(std**2), jnp.asarray(lowest))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("outer_loss", ["expected_improvement", "log_expected_improvement"])
def test_what_is_trained_for_is_the_improvement_expected_of_the_points_before(outer_loss):
    """Weighed are −EI of each step, from posteriors that know the points before it and are constants."""
    family, steps = GaussianProcess(2, None, 16, outer_loss, 4), 4
    optimizer = ScaledGradient(jnp.asarray(0.3), jnp.asarray(0.05))
    objective = family.sample(KEY)
    params = objective.init(KEY)

    @jax.jit
    @jax.value_and_grad
    def meta_loss(optimizer):
        theta, state, total = params, optimizer.init(params), 0.0
        seen = objective.init_state(KEY)
        for t in range(steps):
            total += objective.with_state(seen).outer_loss(theta, t, KEY)
            value, grads = jax.lax.stop_gradient(jax.value_and_grad(objective.loss)(theta, t, KEY))
            seen = seen.with_one(jax.lax.stop_gradient(theta), value)
            updates, state = optimizer.update(grads, state, jax.lax.stop_gradient(theta))
            theta = theta + updates
        return total

    loss, grads = meta_loss(optimizer)
    assert (loss < -0.4) == (outer_loss == "expected_improvement")
    found = l2o_eqx.meta_gradient(
        optimizer,
        objective,
        params,
        optimizer.init(params),
        window=steps,
        weighting=Constant(),
        estimator=Backprop(),
        key=KEY,
    )
    np.testing.assert_allclose(found.meta_loss, loss, rtol=1e-4)
    np.testing.assert_allclose(found.grads.rate, grads.rate, rtol=1e-3)
    np.testing.assert_allclose(found.grads.decay, grads.decay, rtol=1e-3)


def test_regrets_are_above_zero_and_zero_at_the_minimum():
    objective = Regret(InBox(StyblinskiTang(2))).sample(KEY)
    minimum = objective.minimum()
    assert minimum is not None and minimum.value == 0 and minimum.params is not None
    np.testing.assert_allclose(minimum.params, -2.9035340277711770 / 5, rtol=1e-6)
    np.testing.assert_allclose(objective.loss(minimum.params, 0, KEY), 0, atol=1e-5)


def test_a_box_is_scaled_to_minus_one_and_one():
    objective = InBox(Branin()).sample(KEY)
    inside = Branin()
    for corner, own in (([-1.0, -1.0], [-5.0, 0.0]), ([1.0, 1.0], [10.0, 15.0]), ([1.0, -1.0], [10.0, 0.0])):
        np.testing.assert_allclose(objective.loss(jnp.array(corner), 0, KEY), inside.value(jnp.array(own)))
    starts = np.asarray(jax.vmap(objective.init)(jr.split(KEY, 200)))
    assert -1 <= starts.min() < -0.9 and 0.9 < starts.max() <= 1


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda: GaussianProcess(0), "dim"),
        (lambda: GaussianProcess(2, 0.0), "length_scale"),
        (lambda: GaussianProcess(2, (0.5, 0.1)), "length_scale"),
        (lambda: GaussianProcess(2, None, 0), "num_features"),
        (lambda: GaussianProcess(horizon=0), "horizon"),
        (lambda: InBox(MinMaxWell(2)), "family"),
        (lambda: InBox(Bowl()), "family"),
        (lambda: Regret(SyntheticClassification((2,))).sample(KEY), "family"),
        (lambda: l2o_eqx.objectives.Hartmann(4), "dim"),
        (lambda: l2o_eqx.weightings.ObservedImprovement(-1.0), "mean_weight"),
    ],
)
def test_errors_name_the_argument(make, argument):
    with pytest.raises(l2o_eqx.ArgumentError) as caught:
        make()
    assert caught.value.argument == argument and f"{argument}=" in str(caught.value)
