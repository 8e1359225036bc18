from collections.abc import Callable
from typing import Any

import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import LEARNED, assert_trees_close, to_float64

import l2o_eqx
from l2o_eqx.optimizers import AdamMLP, _adam_mlp

PARAMS = {"w": jnp.full((3, 2), 0.5), "b": jnp.zeros(3), "scalar": jnp.array(0.5), "none": jnp.zeros((0, 2))}


def trained(key, matrices=False):
    return LEARNED["adam_mlp_matrices" if matrices else "adam_mlp"](key)


def draw_grads(key, num_steps, params=PARAMS):
    return helpers.draw_grads(key, num_steps, params)


def updates_of(optimizer, grads, params=PARAMS):
    return helpers.updates_of(optimizer, grads, params)


def untrained(key, matrices=False, **settings):
    """With the shapes of the trained one."""
    return AdamMLP((3, 4), num_steps=5, matrices=matrices, key=key, **settings)


def test_default_has_314_meta_parameters(getkey):
    """19-8-8-9 and the logarithm of the rate; one more output of nine weights for matrices."""
    assert l2o_eqx.count_meta_parameters(AdamMLP(key=getkey())) == 314
    assert l2o_eqx.count_meta_parameters(AdamMLP(matrices=True, key=getkey())) == 323


def test_untrained_is_adam(getkey):
    """20 steps of Adam(0.9, 0.99), but for the damping: of r/1000 here, of 1e-8 in optax.

    √(v + (r/1000)²) is √v·(1 + 5e-7·r²/v); with normal gradients the worst entry has r²/v of about 1e6 in the
    first steps, where |g| < r/1000 for one in 1,000; here there are ten entries and none is below r/50.
    """
    grads, adam = draw_grads(getkey(), 20), optax.adam(0.01, 0.9, 0.99)
    expected = updates_of(l2o_eqx.optimizers.FromOptax(adam), grads)
    actual = updates_of(untrained(getkey()), grads)
    assert_trees_close(actual, expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("hidden_sizes", [(3,), (3, 4)])
def test_update_is_its_equations(hidden_sizes, getkey):
    """Features, network and directions written out in NumPy, in three steps of float64."""
    with jax.enable_x64(True):
        optimizer = AdamMLP(hidden_sizes, key=getkey(), num_steps=7)
        optimizer = jax.tree.map(lambda x: x + 0.2 * jr.normal(getkey(), x.shape), to_float64(optimizer))
        param = jr.normal(getkey(), (4, 3), jnp.float64)
        grads = jr.normal(getkey(), (3, 4, 3), jnp.float64)
        actual = updates_of(optimizer, grads, param)
        layers = [(np.asarray(x.weight), np.asarray(x.bias)) for x in optimizer.layers]
        expected = by_hand(layers, float(optimizer.log_rate), np.asarray(grads), np.asarray(param), 7)
        np.testing.assert_allclose(actual, expected, rtol=1e-9)


def by_hand(layers, log_rate, grads, param, horizon):
    m, v, updates = {b: 0.0 for b in (0.5, 0.9, 0.97)}, 0.0, []
    for t, g in enumerate(grads):
        m = {b: b * x + (1 - b) * g for b, x in m.items()}
        v = 0.99 * v + 0.01 * g**2
        means, square = [g, *(x / (1 - b ** (t + 1)) for b, x in m.items())], v / (1 - 0.99 ** (t + 1))
        r = np.sqrt(np.mean(square))
        a = [x / np.sqrt(square + (1e-3 * r) ** 2) for x in means]
        s = t / horizon
        tensor = [np.log(np.sqrt(np.mean(x**2)) / r) for x in means]
        tensor += [np.log(np.sqrt(np.mean(param**2)) + 1e-3) / 2 + 1]
        tensor += [np.log(3) / 3 - 1, 1, np.log(12) / 5 - 1]
        tensor += [2 * s - 1, np.tanh(t / 3), np.log(max(1.02 - s, 0.02)) / 2, np.log(horizon / 100) / 2]
        entry = [np.tanh(np.abs(x)) for x in a] + [np.tanh(a[0] * x) for x in a[1:]]
        x = np.stack([np.full(g.shape, f) for f in tensor] + entry)
        for i, (weight, bias) in enumerate(layers):
            x = np.einsum("oi,i...->o...", weight, x if i == 0 else np.maximum(x, 0)) + bias[:, None, None]
        directions = np.stack(a + [x / r for x in means])
        start = np.eye(8)[2][:, None, None]
        rate = np.exp(log_rate + np.clip(2 * x[0], -8, 4))
        updates.append(-rate * np.sum((start + x[1:]) * directions, 0))
    return np.stack(updates)


def test_scale_of_the_objective_does_not_matter(getkey):
    optimizer, grads = trained(getkey(), matrices=True), draw_grads(getkey(), 6)
    expected = updates_of(optimizer, grads)
    for scale in (1e-30, 1e-3, 2.0**20, 1e30):
        scaled = updates_of(optimizer, jax.tree.map(lambda g, c=scale: c * g, grads))
        assert_trees_close(scaled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("matrices", [False, True])
def test_gradients_that_vanish_and_come_back(matrices, getkey):
    """Zero gradients give zero updates as long as there were no others; a jump by 1e60 leaves all finite."""
    optimizer, grads = trained(getkey(), matrices), draw_grads(getkey(), 6)
    size = jnp.array([0, 0, 1e-30, 1e30, 0, 1e-30])
    grads = jax.tree.map(lambda g: g * size.reshape(-1, *(1,) * (g.ndim - 1)), grads)
    updates = updates_of(optimizer, grads)
    for u in jax.tree.leaves(updates):
        assert np.all(u[:2] == 0) and np.all(np.isfinite(u))
        assert np.all(u[2] != 0) and np.all(u[3] != 0)


def test_repeated_gradients_are_followed_at_the_rate(getkey):
    """Untrained, with the same gradient at all steps, every entry moves by the rate against it."""
    grads = jax.tree.map(lambda g: jnp.broadcast_to(g[:1], g.shape), draw_grads(getkey(), 6))
    updates = updates_of(untrained(getkey(), learning_rate=0.1), grads)
    expected = jax.tree.map(lambda g: -0.1 * jnp.sign(g), grads)
    assert_trees_close(updates, expected, rtol=1e-3)


@pytest.mark.parametrize("matrices", [False, True])
def test_signs_flip(matrices, getkey):
    optimizer, grads = trained(getkey(), matrices), draw_grads(getkey(), 6)
    updates = updates_of(optimizer, grads)
    minus_grads, minus_params = jax.tree.map(jnp.negative, (grads, PARAMS))
    flipped = updates_of(optimizer, minus_grads, minus_params)
    assert_trees_close(flipped, jax.tree.map(jnp.negative, updates), rtol=1e-6)


def test_horizon_is_an_input_not_another_program(getkey):
    optimizer, grads = trained(getkey()), draw_grads(getkey(), 1)
    grads = jax.tree.map(lambda g: g[0], grads)
    update = eqx.debug.assert_max_traces(optimizer.update, max_traces=1)
    compiled: Callable[..., Any] = eqx.filter_jit(update)

    def second_update(state):
        _, state = compiled(grads, state, PARAMS)
        return compiled(grads, state, PARAMS)[0]["w"]

    default = second_update(optimizer.init(PARAMS))
    five = second_update(optimizer.init_for(PARAMS, 5))
    thousand = second_update(optimizer.init_for(PARAMS, 1000))
    np.testing.assert_array_equal(default, five)  # the horizon that it was made with
    assert not np.allclose(five, thousand, rtol=1e-3)
    assert AdamMLP(key=getkey()).init(PARAMS, 7).horizon == 7


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype, getkey):
    """Updates have the dtype of the params, moments at least float32; half precision only costs rounding."""
    with jax.enable_x64(dtype == "float64"):
        optimizer, grads = trained(getkey(), matrices=True), draw_grads(getkey(), 6)
        single = updates_of(optimizer, jax.tree.map(lambda g: g.astype(dtype).astype("float32"), grads))
        params, grads = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, grads))
        updates = updates_of(optimizer, grads, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
        moments = optimizer.init(params).moments
        assert {m.square.dtype for m in moments} == {jnp.promote_types(dtype, "float32")}
        as_single = jax.tree.map(lambda u: u.astype("float32"), updates)
        rtol = {"float16": 2e-3, "bfloat16": 1e-2, "float64": 1e-4}[dtype]
        assert_trees_close(as_single, single, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("block", [12, 13])
def test_blocks_of_a_large_tensor(block, getkey, monkeypatch):
    """36 entries whole, and in three blocks of 12, or of 13 with the last one filled up; a matrix, too."""
    optimizer, params = trained(getkey(), matrices=True), {"v": jnp.ones(36), "w": jnp.ones((4, 9))}
    grads = draw_grads(getkey(), 2, params)
    expected = updates_of(optimizer, grads, params)
    monkeypatch.setattr(_adam_mlp, "_LARGEST_BLOCK", 13)
    monkeypatch.setattr(_adam_mlp, "_SMALLEST_BLOCK", block)
    jax.clear_caches()
    actual = updates_of(optimizer, grads, params)
    assert_trees_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_derivatives_are_finite(getkey):
    """By meta-parameters, and by gradients in units of their size, also where some or all are zero."""
    params = {"w": PARAMS["w"], "scalar": PARAMS["scalar"]}
    optimizer, grads = trained(getkey(), matrices=True), draw_grads(getkey(), 3, params)
    grads["w"] = grads["w"].at[:, 0].set(0)

    @eqx.filter_jit
    @eqx.filter_grad
    def total(inputs, scale):
        optimizer, grads = inputs
        grads = jax.tree.map(lambda g: scale * g, grads)
        return sum(map(jnp.sum, jax.tree.leaves(updates_of(optimizer, grads, params))))

    for scale in (0.0, 1.0, 1e-30, 1e30):
        for x in jax.tree.leaves(total((optimizer, grads), jnp.float32(scale))):
            assert np.all(np.isfinite(x)), scale


def test_features_are_constants_and_directions_are_not(getkey):
    """Scaling all gradients moves nothing, and the derivative along them is zero; others are not."""
    optimizer, grads = untrained(getkey()), jr.normal(getkey(), (1, 5))

    def first_update(grads):
        return updates_of(optimizer, grads, grads[0])

    _, along = jax.jvp(first_update, (grads,), (grads,))
    np.testing.assert_allclose(along, 0, atol=1e-6)
    _, across = jax.jvp(first_update, (grads,), (jnp.ones_like(grads),))
    assert np.max(np.abs(across)) > 1e-9


def test_a_rate_that_decays(getkey):
    """Untrained it is Adam with a cosine to a hundredth of the rate at the horizon of 5, and stays there."""
    grads, key, param = jr.normal(getkey(), (6, 3)), getkey(), jnp.ones(3)
    plain = updates_of(untrained(key), grads, param)
    decaying = updates_of(untrained(key, decay="cosine"), grads, param)
    factor = (1 + np.cos(np.pi * np.minimum(np.arange(6) / 5, 1))) / 2 + 0.01
    np.testing.assert_allclose(decaying, plain * factor[:, None], rtol=1e-4)


# With the direction of AdaMuon.


def test_matrices_move_along_their_orthogonalized_mean(getkey):
    """Untrained: the mean with about equal singular values, entries over the root of their mean square.

    Three steps of the quintic iteration bring values from 1/20 of the norm on to 0.6 to 1.3; for n×m, all of
    √max(n, m) are a root mean square of one. Where the mean is smaller than r they stay smaller.
    """
    grads = draw_grads(getkey(), 3, {"wide": jnp.ones((4, 6)), "kernel": jnp.ones((5, 2, 2, 1))})
    optimizer = untrained(getkey(), matrices=True, learning_rate=0.1)
    updates = updates_of(optimizer, grads, jax.tree.map(lambda g: g[0], grads))
    for name, largest, fan_in in (("wide", 6, 6), ("kernel", 5, 4)):
        m, v, w = 0.0, 0.0, 0.0
        for t, (g, u) in enumerate(zip(grads[name], updates[name], strict=True)):
            g, u = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (g, u))
            m, v = 0.5 * m + 0.5 * g, 0.99 * v + 0.01 * g**2
            mean, of_r = m / (1 - 0.5 ** (t + 1)), np.sqrt(np.sum(v) / (1 - 0.99 ** (t + 1)))
            left, values, right = np.linalg.svd(mean, full_matrices=False)
            values = values / max(np.linalg.norm(mean), of_r)
            large = values > 0.05
            for _ in range(3):
                values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
            assert large.sum() >= 3 and np.all((values[large] > 0.6) & (values[large] < 1.3)), values
            muon = np.sqrt(largest) * (left * values) @ right
            assert 0.6 < np.sqrt(np.mean(muon**2)) < 1.3
            w = 0.99 * w + 0.01 * muon**2
            direction = muon / np.sqrt(w / (1 - 0.99 ** (t + 1)) + 0.01)
            expected = -0.1 * (1000 / fan_in) ** 0.25 * direction
            np.testing.assert_allclose(u, expected, rtol=1e-3, atol=1e-3)


def test_what_is_no_matrix_moves_as_without(getkey):
    """Vectors, rows and columns: untrained all the same; a matrix is another matter."""
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3), "row": jnp.ones((1, 3)), "taps": jnp.ones((3, 1, 1))}
    grads = draw_grads(getkey(), 3, params)
    plain, with_matrices = (
        updates_of(untrained(getkey(), matrices), grads, params) for matrices in (False, True)
    )
    assert not np.allclose(plain.pop("w"), with_matrices.pop("w"), rtol=0.01)
    assert_trees_close(with_matrices, plain, rtol=1e-6)


def test_transposed_matrices_have_transposed_updates(getkey):
    """Of any shape before training, but for the rate; after it of square ones, whose fan-in stays."""
    params = {"square": jnp.ones((4, 4)), "wide": jnp.ones((3, 5))}
    grads = draw_grads(getkey(), 3, params)

    def transposed(tree):
        return jax.tree.map(lambda x: jnp.swapaxes(x, -1, -2), tree)

    for make in (untrained, trained):
        optimizer = make(getkey(), matrices=True)
        updates = updates_of(optimizer, grads, params)
        turned = transposed(updates_of(optimizer, transposed(grads), transposed(params)))
        if make is trained:
            assert not np.allclose(turned.pop("wide"), updates.pop("wide"), rtol=0.01)
        else:
            turned["wide"] *= (3 / 5) ** 0.25  # the rate depends on fan-in
        assert_trees_close(turned, updates, rtol=1e-3, atol=1e-4)


def test_needs_params(getkey):
    optimizer = AdamMLP(key=getkey())
    with pytest.raises(ValueError, match="hand them to `update`"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), None)


def test_a_longer_run_takes_shorter_steps(getkey):
    """Untrained: 400 steps instead of 100 divide the rate by 4^p, and nothing else."""
    grads, key = jr.normal(getkey(), (3,)), getkey()

    def first_update(horizon, **settings):
        optimizer = untrained(key, **settings)
        return optimizer.update(grads, optimizer.init(grads, horizon), grads)[0]

    plain = first_update(400)
    np.testing.assert_array_equal(first_update(100, horizon_power=0.25), plain)
    np.testing.assert_allclose(first_update(400, horizon_power=0.25), plain / 4**0.25, rtol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"horizon_power": float("inf")}, r"horizon_power=...\)` must be finite. Got inf"),
        ({"hidden_sizes": ()}, r"hidden_sizes=\(\)"),
        ({"hidden_sizes": (3, 0)}, r"hidden_sizes=\(3, 0\)"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"learning_rate": 0.0}, "must be positive. Got 0.0"),
    ],
)
def test_errors_name_the_argument(settings, message, getkey):
    with pytest.raises(ValueError, match=message):
        AdamMLP(**settings, key=getkey())
