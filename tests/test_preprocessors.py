from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import PREPROCESSORS, assert_trees_close

from l2o_eqx.preprocessors import AdamLike, Identity, LogAndSign, SignedLog

TREE = {"w": jnp.array([[0.3, -2.0, 0.0], [1e-9, -1e-4, 5.0]]), "b": jnp.array(-0.7)}


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_features_have_one_more_axis(name):
    preprocessor = PREPROCESSORS[name]()
    state = preprocessor.init(TREE)
    features, next_state = preprocessor(TREE, state)
    for x, f in zip(jax.tree.leaves(TREE), jax.tree.leaves(features), strict=True):
        assert f.shape == (*x.shape, preprocessor.num_features) and f.dtype == x.dtype
    assert jax.tree.structure(next_state) == jax.tree.structure(state)


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_coordinates_are_independent(name, getkey):
    """Flat, in two blocks, or permuted: every coordinate gets the features it had in the whole."""
    preprocessor = PREPROCESSORS[name]()
    grads = [jr.normal(getkey(), (10,)) for _ in range(3)]
    order = jr.permutation(getkey(), 10)

    def run(select):
        state = preprocessor.init(select(grads[0]))
        for g in grads[:-1]:
            _, state = preprocessor(select(g), state)
        return preprocessor(select(grads[-1]), state)[0]

    whole = run(lambda g: g)
    assert_trees_close(jnp.concatenate([run(lambda g: g[:4]), run(lambda g: g[4:])]), whole)
    assert_trees_close(run(lambda g: g[order]), whole[order])


def rho(g, p):
    return np.log(abs(g)) / p * np.sign(g) if abs(g) >= np.exp(-p) else -np.exp(p) * g


@pytest.mark.parametrize("p", [1.0, 10.0])
@pytest.mark.parametrize("g", [0.0, 1.0, -1.0, 1e-30, 1e30, -1e30, 0.5, -3.0, 2e-5, -1e-4])
def test_signed_log_is_equation_5_2(g, p):
    preprocessor = SignedLog(p)

    def feature(x):
        return preprocessor(x, None)[0][0]

    value, slope = jax.value_and_grad(feature)(jnp.float32(g))
    np.testing.assert_allclose(value, rho(np.float64(np.float32(g)), p), rtol=2e-6, atol=1e-30)
    assert np.isfinite(slope)


def test_signed_log_at_its_branch_point():
    """Both branches meet in −sgn ∇ where |∇| = e^(−p), and the map has zeros at 0 and ±1 (fig. 9)."""
    edge = np.float32(np.exp(-10.0))
    points = jnp.array([np.nextafter(edge, 0), edge, np.nextafter(edge, 1)], jnp.float32)
    values = SignedLog()(points, None)[0][:, 0]
    np.testing.assert_allclose(values, -1, rtol=1e-5)
    np.testing.assert_allclose(SignedLog()(-points, None)[0][:, 0], 1, rtol=1e-5)
    np.testing.assert_array_equal(SignedLog()(jnp.array([0.0, 1.0, -1.0]), None)[0], 0)


@pytest.mark.parametrize("g", [0.0, 1.0, -1.0, 1e-30, 1e30, 0.5, -3.0, 2e-5, -1e-4])
def test_log_and_sign_is_appendix_a(g):
    p = 10.0
    large = abs(np.float32(g)) >= np.exp(-p)
    expected = (np.log(abs(g)) / p, np.sign(g)) if large else (-1.0, np.exp(p) * g)
    features = LogAndSign(p)(jnp.float32(g), None)[0]
    np.testing.assert_allclose(features, expected, rtol=2e-6, atol=1e-30)
    assert np.all(np.isfinite(jax.jacobian(lambda x: LogAndSign(p)(x, None)[0])(jnp.float32(g))))


def test_log_and_sign_tells_apart_what_signed_log_confuses():
    a, b = jnp.float32(np.exp(-5.0)), jnp.float32(-np.exp(5.0))
    assert jnp.allclose(SignedLog()(a, None)[0], SignedLog()(b, None)[0])
    assert not jnp.allclose(LogAndSign()(a, None)[0], LogAndSign()(b, None)[0])


def test_adam_like_is_adam(getkey):
    """The second feature is minus Adam's update at learning rate 1, computed by optax."""
    preprocessor, adam = AdamLike(), optax.adam(1.0)
    updates: Any
    params = jnp.zeros(6)
    state, adam_state = preprocessor.init(params), adam.init(params)
    for _ in range(5):
        grads = jr.normal(getkey(), (6,))
        features, state = preprocessor(grads, state)
        updates, adam_state = adam.update(grads, adam_state)
        np.testing.assert_allclose(-features[:, 1], updates, rtol=1e-4)


def test_identity_shows_the_gradient():
    features, _ = Identity()(TREE, None)
    assert_trees_close(jax.tree.map(lambda f: f[..., 0], features), TREE)


@pytest.mark.parametrize("make", [lambda: SignedLog(0.0), lambda: LogAndSign(100.0), lambda: AdamLike(1.0)])
def test_errors_give_the_range(make):
    with pytest.raises(ValueError, match=r"between|lie in"):
        make()
