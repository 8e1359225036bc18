"""Regulators against the Riccati recursion and a dense solve; bounds of divergence; all in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2o_eqx._linear_algebra import cholesky, orthonormal, solve
from l2o_eqx.control import (
    LinearDynamics,
    LinearGaussian,
    QuadraticCost,
    divergence,
    expected_cost,
    lqr,
    optimize_trajectory,
    propagate,
)

STEPS, STATES, ACTIONS = 6, 3, 2


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def random_problem(seed):
    """Unstable time-varying dynamics with an offset, and costs that couple states and actions."""
    rng = np.random.default_rng(seed)
    both = STATES + ACTIONS
    factors = rng.normal(size=(STEPS, both, both))
    final = rng.normal(size=(STATES, STATES))
    shapes = (STATES, STATES), (STATES, ACTIONS), (STATES,)
    dynamics = LinearDynamics(*(jnp.asarray(rng.normal(size=(STEPS, *shape))) for shape in shapes))
    cost = QuadraticCost(
        jnp.asarray(factors @ np.swapaxes(factors, 1, 2) + 0.1 * np.eye(both)),
        jnp.asarray(rng.normal(size=(STEPS, both))),
        jnp.asarray(final @ final.T),
        jnp.asarray(rng.normal(size=STATES)),
    )
    return (dynamics, cost), rng.normal(size=STATES)


def riccati(dynamics, cost):
    """The recursion of the textbook, with its cross terms, in NumPy."""
    a, b, c = (np.asarray(x) for x in (dynamics.states, dynamics.actions, dynamics.offsets))
    value, slope = np.asarray(cost.final_hessian), np.asarray(cost.final_slope)
    gains, offsets = [], []
    for t in reversed(range(STEPS)):
        h, g = np.asarray(cost.hessians[t]), np.asarray(cost.slopes[t])
        q, r, m = h[:STATES, :STATES], h[STATES:, STATES:], h[:STATES, STATES:]
        precision = r + b[t].T @ value @ b[t]
        cross = m.T + b[t].T @ value @ a[t]
        pull = g[STATES:] + b[t].T @ (slope + value @ c[t])
        gain, offset = -np.linalg.solve(precision, cross), -np.linalg.solve(precision, pull)
        gains.append(gain)
        offsets.append(offset)
        slope = g[:STATES] + a[t].T @ (slope + value @ c[t]) + cross.T @ offset
        value = q + a[t].T @ value @ a[t] + cross.T @ gain
    return np.array(gains[::-1]), np.array(offsets[::-1])


def best_actions(dynamics, cost, start):
    """All actions at once, from the normal equations of the whole horizon."""

    def total(actions):
        x, sum_ = jnp.asarray(start), 0.0
        for t in range(STEPS):
            z = jnp.concatenate([x, actions[t]])
            sum_ += z @ cost.hessians[t] @ z / 2 + cost.slopes[t] @ z
            x = dynamics.states[t] @ x + dynamics.actions[t] @ actions[t] + dynamics.offsets[t]
        return sum_ + x @ cost.final_hessian @ x / 2 + cost.final_slope @ x

    zeros = jnp.zeros((STEPS, ACTIONS))
    size = zeros.size
    hessian = jax.hessian(total)(zeros).reshape(size, size)
    flat = np.linalg.solve(hessian, -jax.grad(total)(zeros).ravel())
    return flat.reshape(STEPS, ACTIONS), total


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_linear_algebra_is_that_of_lapack(size):
    rng = np.random.default_rng(size)
    factors = np.tril(rng.normal(size=(2, 3, size, size))) + 3 * np.eye(size)
    matrices, right = factors @ np.swapaxes(factors, -1, -2), rng.normal(size=(2, 3, size, 4))
    matrices, right = jnp.asarray(matrices), jnp.asarray(right)
    np.testing.assert_allclose(cholesky(matrices), np.linalg.cholesky(matrices), atol=1e-12)
    np.testing.assert_allclose(solve(matrices, right), np.linalg.solve(matrices, right), atol=1e-12)
    tall = jnp.asarray(rng.normal(size=(size + 2, size)))
    rotation, upper = np.linalg.qr(tall)
    np.testing.assert_allclose(orthonormal(tall), rotation * np.sign(np.diag(upper))[None], atol=1e-10)
    indefinite = matrices - 2 * jnp.trace(matrices[0, 0]) * jnp.eye(size)[None, None]
    assert np.all(np.isnan(solve(indefinite, right))) and np.any(np.isnan(cholesky(indefinite)))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_regulator_is_riccatis_and_the_best_of_all(seed):
    (dynamics, cost), start = random_problem(seed)
    controller = jax.jit(lqr)(dynamics, cost)
    gains, offsets = riccati(dynamics, cost)
    np.testing.assert_allclose(controller.gains, gains, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(controller.offsets, offsets, rtol=1e-11, atol=1e-12)
    # Along its way without noise, the regulator's actions are those of the dense solve.
    marginals = jax.jit(propagate)(controller, dynamics, jnp.asarray(start), jnp.zeros((STATES, STATES)))
    taken = np.einsum("tij,tj->ti", gains, marginals.means[:-1]) + offsets
    np.testing.assert_allclose(taken, best_actions(dynamics, cost, start)[0], rtol=1e-8, atol=1e-9)


def test_expected_costs_are_those_of_the_way_and_grow_with_noise():
    (dynamics, cost), start = random_problem(2)
    controller = jax.jit(lqr)(dynamics, cost)
    quiet = LinearGaussian(controller.gains, controller.offsets, 1e-30 * controller.covariances)
    marginals = propagate(quiet, dynamics, jnp.asarray(start), jnp.zeros((STATES, STATES)))
    actions, total = best_actions(dynamics, cost, start)
    np.testing.assert_allclose(expected_cost(cost, quiet, marginals), total(jnp.asarray(actions)), rtol=1e-9)
    noisy = propagate(controller, dynamics, jnp.asarray(start), jnp.zeros((STATES, STATES)))
    # Of a regulator, noise of covariance Q_uu⁻¹ costs half a unit for each action and step.
    extra = expected_cost(cost, controller, noisy) - expected_cost(cost, quiet, marginals)
    np.testing.assert_allclose(extra, STEPS * ACTIONS / 2, rtol=1e-9)


def test_divergences_are_the_formula_and_zero_for_the_same():
    one = LinearGaussian(jnp.full((1, 1, 1), 0.5), jnp.full((1, 1), 1.0), jnp.full((1, 1, 1), 4.0))
    two = LinearGaussian(jnp.full((1, 1, 1), 0.2), jnp.full((1, 1), 0.0), jnp.full((1, 1, 1), 9.0))
    dynamics = LinearDynamics.adding(1, 1, jnp.float64)
    marginals = propagate(one, dynamics, jnp.full(1, 2.0), jnp.full((1, 1), 3.0))
    # The means differ by 0.3·x + 1 of x ~ N(2, 3).
    square = (0.3 * 2 + 1) ** 2 + 0.3**2 * 3
    expected = (4 / 9 + square / 9 - 1 + np.log(9 / 4)) / 2
    np.testing.assert_allclose(divergence(one, two, marginals), expected, rtol=1e-12)
    assert abs(divergence(one, one, marginals)) < 1e-12
    np.testing.assert_allclose(marginals.covariances[1], [[1.5**2 * 3 + 4]])


def test_an_improvement_keeps_its_bound_and_is_the_regulator_without_one():
    blocks = [random_problem(seed)[0] for seed in (3, 4)]
    dynamics, cost = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
    eye = 0.01 * jnp.eye(ACTIONS)
    old = LinearGaussian(
        jnp.zeros((2, STEPS, ACTIONS, STATES)),
        jnp.zeros((2, STEPS, ACTIONS)),
        jnp.broadcast_to(eye, (2, STEPS, ACTIONS, ACTIONS)),
    )
    mean, covariance = jnp.ones((2, STATES)), jnp.zeros((2, STATES, STATES))

    @jax.jit
    def improve(step, temperature):
        return optimize_trajectory(
            dynamics, cost, old, mean=mean, covariance=covariance, step=step, temperature=temperature
        )

    def costs(controller, marginals):
        return float(jnp.sum(jax.vmap(expected_cost)(cost, controller, marginals)))

    found = [costs(old, jax.vmap(propagate)(old, dynamics, mean, covariance))]
    for step in (0.1, 1.0, 10.0):
        new, marginals, apart = improve(step, 0.0)
        assert 0.97 * step < apart <= step
        found.append(costs(new, marginals))
    assert found == sorted(found, reverse=True)
    free, *_ = improve(1e12, 1.0)
    regulators = jax.vmap(lqr)(dynamics, cost)
    np.testing.assert_allclose(free.gains, regulators.gains, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(free.covariances, regulators.covariances, rtol=1e-3, atol=1e-4)
