"""Celo2 against its features and its network written out in NumPy, and what its rule says of scales."""

import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import as_if_trained, assert_trees_close, small_celo2

import l2o_eqx
from l2o_eqx.optimizers import Celo2, FromOptax, UnitRMS, _celo2_direction

PARAMS = {
    "tall": jr.normal(jr.key(1), (4, 3)),
    "kernel": jr.normal(jr.key(2), (2, 3, 2)),
    "b": jnp.ones(3),
    "scalar": jnp.array(0.5),
    "none": jnp.zeros((0, 2)),
}
MATRICES = ("tall", "kernel")


def draw_grads(key, num_steps, params=PARAMS):
    return helpers.draw_grads(key, num_steps, params)


def updates_of(optimizer, grads, params=PARAMS):
    return helpers.updates_of(optimizer, grads, params)


def rms(x):
    return np.sqrt(np.mean(np.asarray(x, np.float64) ** 2))


def written_out(grads, param):
    """The 30 features of every step, each over its root mean square; largest axes last, as in the code."""
    decays = (0.9, 0.99, 0.999)
    *_, second, largest = np.argsort(param.shape, kind="stable")
    m, r, c = [0.0] * 3, [0.0] * 3, [0.0] * 3
    v, found = 0.0, []
    for g in np.clip(np.asarray(grads, np.float64), -1000, 1000):
        v = 0.95 * v + 0.05 * g**2
        over_rows = np.mean(g**2 + 1e-30, axis=largest, keepdims=True)
        over_columns = np.mean(g**2 + 1e-30, axis=second, keepdims=True)
        m = [b * x + (1 - b) * g for b, x in zip(decays, m, strict=True)]
        r = [b * x + (1 - b) * over_rows for b, x in zip(decays, r, strict=True)]
        c = [b * x + (1 - b) * over_columns for b, x in zip(decays, c, strict=True)]
        row_factors = [
            1 / np.sqrt(np.maximum(x / (np.mean(x, axis=second, keepdims=True) + 1e-9), 1e-9)) for x in r
        ]
        column_factors = [1 / np.sqrt(np.maximum(x, 1e-9)) for x in c]
        factors = [a * b for a, b in zip(row_factors, column_factors, strict=True)]
        inverse = 1 / np.sqrt(v + 1e-8)
        features = [g, np.clip(g, -0.1, 0.1), np.asarray(param, np.float64), *m, v]
        features += [x * inverse for x in m]
        features += [inverse]
        features += [g * f for f in factors]
        features += [g * inverse, *r, *c]
        features += [1 / np.sqrt(x + 1e-8) for x in (*r, *c)]
        features += [x * f for x, f in zip(m, factors, strict=True)]
        spread = [np.broadcast_to(x, g.shape) for x in features]
        found.append(np.stack([x / np.sqrt(1e-9 + np.mean(x**2)) for x in spread]))
    return found


@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
@pytest.mark.parametrize("name", MATRICES)
def test_update_is_the_network_on_thirty_features(name, scale, getkey):
    """Four steps. An input layer that hands on one feature at a time tells them apart."""
    optimizer, param = small_celo2(getkey()), PARAMS[name]
    grads = scale * draw_grads(getkey(), 4)[name]
    updates = updates_of(optimizer, grads, param)
    layers = [(np.asarray(x.weight, np.float64), np.asarray(x.bias, np.float64)) for x in optimizer.layers]
    for features, update in zip(written_out(grads, param), updates, strict=True):
        assert len(features) == 30
        x = features.reshape(30, -1)
        for i, (weight, bias) in enumerate(layers):
            x = weight @ (x if i == 0 else np.maximum(x, 0)) + bias[:, None]
        direction = (x[0] * np.exp(0.5 * x[1])).reshape(update.shape)
        expected = -0.1 * (direction / rms(direction) + 0.1 * np.asarray(param, np.float64))
        np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-3 * rms(expected))


def test_features_are_the_papers_one_by_one(getkey):
    """Their order, too, which published weights have: a network that hands on one alone, all of them."""
    param, grads = PARAMS["tall"], draw_grads(getkey(), 3)["tall"]
    expected = written_out(grads, param)[-1]
    optimizer = Celo2((2, 2), 1.0, key=getkey())

    def handing_on(number):
        weight = jnp.zeros((2, 30)).at[0, number].set(1.0).at[1, number].set(-1.0)
        chosen = eqx.tree_at(lambda o: o.layers[0].weight, optimizer, weight)
        state, update = chosen.init(param), param
        for g in grads:
            update, state = chosen.update(g, state, param)
        return -update

    found = jax.jit(jax.vmap(handing_on))(jnp.arange(30))
    for number in range(30):
        np.testing.assert_allclose(found[number], expected[number] / rms(expected[number]), rtol=1e-3)


def test_default_has_347_meta_parameters(getkey):
    for start in ("adam", "random"):
        optimizer = Celo2(start=start, key=getkey())
        assert l2o_eqx.count_meta_parameters(optimizer) == 347
    assert [x.weight.shape for x in optimizer.layers] == [(8, 30), (8, 8), (3, 8)]
    # Cut at two standard deviations of 1/√30.
    weight = Celo2((1000,), start="random", key=getkey()).layers[0].weight * np.sqrt(30)
    assert 1.9 < np.max(np.abs(weight)) <= 2 and abs(np.std(weight) - 0.88) < 0.01


def test_untrained_is_adam_of_unit_length(getkey):
    """m/√v of means that are not corrected points where the corrected ones do."""
    params = {name: PARAMS[name] for name in MATRICES}
    grads = draw_grads(getkey(), 6, params)
    adam = UnitRMS(FromOptax(optax.adam(1.0, b1=0.9, b2=0.95)), 0.01)
    assert_trees_close(
        updates_of(Celo2(learning_rate=0.01, key=getkey()), grads, params),
        updates_of(adam, grads, params),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_every_matrix_moves_by_the_rate_and_vectors_as_adamw(decay, getkey):
    """With decay as in AdamW; the cosine falls to a hundredth at the horizon of 5, and stays there."""
    optimizer = small_celo2(getkey(), orthogonalize=decay == "cosine", decay=decay)
    grads = draw_grads(getkey(), 7)
    factors = (1 + np.cos(np.pi * np.minimum(np.arange(7) / 5, 1))) / 2 + 0.01
    rates = 0.1 * (factors if decay == "cosine" else np.ones(7))
    updates = updates_of(optimizer, grads)
    for matrix in MATRICES:
        decayed = np.asarray(updates[matrix]) + 0.1 * rates.reshape(
            -1, *[1] * PARAMS[matrix].ndim
        ) * np.asarray(PARAMS[matrix])
        np.testing.assert_allclose([rms(x) for x in decayed], rates, rtol=1e-3)
    schedule = optax.join_schedules([optax.constant_schedule(20 * r) for r in rates], list(range(1, 7)))
    adamw = FromOptax(optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1))
    for vector in ("b", "scalar"):
        expected = updates_of(adamw, grads[vector], PARAMS[vector])
        np.testing.assert_allclose(updates[vector], expected, rtol=1e-4)
    assert updates["none"].shape == (7, 0, 2)


def test_a_schedule_of_the_users_own_in_an_optax_loop(getkey):
    """`as_optax` tells the horizon; a schedule counts steps from 0."""
    params, grads = {"w": PARAMS["tall"]}, draw_grads(getkey(), 4, {"w": PARAMS["tall"]})
    optimizer = Celo2(learning_rate=lambda step: 0.1 * (step + 1), decay="cosine", key=getkey())
    transformation = l2o_eqx.as_optax(optimizer, 4)
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for t in range(4):
        updates, state = update(jax.tree.map(lambda g, t=t: g[t], grads), state, params)
        rate = 0.1 * (t + 1) * ((1 + np.cos(np.pi * t / 4)) / 2 + 0.01)
        np.testing.assert_allclose(rms(updates["w"]), rate, rtol=1e-4)


def test_scale_of_the_objective_does_not_matter_between_floors_and_cut(getkey):
    """Gradients from about 1 to 1000, of which ±0.1 is the sign; beyond that features change."""
    signs = jnp.sign(draw_grads(getkey(), 5)["tall"])
    grads = signs * jr.uniform(getkey(), signs.shape, minval=2.0, maxval=4.0)
    optimizer = small_celo2(getkey())

    def scaled(factor):
        return np.asarray(updates_of(optimizer, factor * grads, PARAMS["tall"]))

    expected = scaled(1.0)
    for factor in (10.0, 200.0):
        np.testing.assert_allclose(scaled(factor), expected, atol=1e-3 * rms(expected))
    for factor in (1e-2, 1e3):
        assert rms(scaled(factor) - expected) > 0.02 * rms(expected)


def test_rows_and_columns_have_no_order(getkey):
    optimizer, grads = small_celo2(getkey(), orthogonalize=True), draw_grads(getkey(), 3)["tall"]
    rows, columns = jnp.array([2, 0, 3, 1]), jnp.array([1, 2, 0])

    def moved(x):
        return x[..., rows, :][..., columns]

    expected = moved(updates_of(optimizer, grads, PARAMS["tall"]))
    actual = updates_of(optimizer, moved(grads), moved(PARAMS["tall"]))
    assert_trees_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_orthogonal_directions(getkey):
    """Five steps of the quintic iteration leave singular values of 0.6 to 1.3; the ratio stays below 2."""
    optimizer = Celo2(orthogonalize=True, learning_rate=1.0, key=getkey())
    for shape in ((4, 9), (9, 4)):
        grads = draw_grads(getkey(), 1, jnp.zeros(shape))
        plain = updates_of(Celo2(learning_rate=1.0, key=getkey()), grads, jnp.zeros(shape))[0]
        update = np.asarray(updates_of(optimizer, grads, jnp.zeros(shape))[0])
        values = np.linalg.svd(update, compute_uv=False)
        assert values.max() / values.min() < 2 < np.divide(*np.linalg.svd(plain)[1][[0, -1]])
        np.testing.assert_allclose(rms(update), 1, rtol=1e-4)


def test_gradients_that_vanish_and_jump(getkey):
    """All updates and derivatives are finite; as Adam it does not move as long as there was no gradient."""
    params = {"tall": PARAMS["tall"], "b": PARAMS["b"]}
    size = jnp.array([0, 0, 1e-30, 1e30, 0, 1e-3])
    grads = draw_grads(getkey(), 6, params)
    grads = jax.tree.map(lambda g: g * size.reshape(-1, *(1,) * (g.ndim - 1)), grads)
    for u in jax.tree.leaves(updates_of(Celo2(orthogonalize=True, key=getkey()), grads, params)):
        assert np.all(u[:2] == 0) and np.all(np.isfinite(u))

    @eqx.filter_jit
    @eqx.filter_grad
    def total(inputs, scale):
        optimizer, grads = inputs
        grads = jax.tree.map(lambda g: scale * g, grads)
        return sum(map(jnp.sum, jax.tree.leaves(updates_of(optimizer, grads, params))))

    inputs = (small_celo2(getkey(), orthogonalize=True), draw_grads(getkey(), 2, params))
    for scale in (0.0, 1.0, 1e-30):
        for x in jax.tree.leaves(total(inputs, jnp.float32(scale))):
            assert np.all(np.isfinite(x)), scale


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype, getkey):
    """Updates have the dtype of the params, moments at least float32; half precision only costs rounding."""
    with jax.enable_x64(dtype == "float64"):
        optimizer = small_celo2(getkey())
        params = {"tall": PARAMS["tall"].astype(dtype), "b": PARAMS["b"].astype(dtype)}
        grads = draw_grads(getkey(), 3, params)
        single = updates_of(optimizer, *jax.tree.map(lambda x: x.astype("float32"), (grads, params)))
        updates = updates_of(optimizer, grads, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
        kept = [x for m in optimizer.init(params).matrices if m for x in jax.tree.leaves(m)]
        assert {x.dtype for x in kept} == {jnp.promote_types(dtype, "float32")}
        as_single = jax.tree.map(lambda u: u.astype("float32"), updates)
        rtol = {"float16": 2e-3, "bfloat16": 1e-2, "float64": 1e-3}[dtype]
        assert_trees_close(as_single, single, rtol=rtol, atol=1e-4)


def test_blocks_of_a_large_tensor(getkey, monkeypatch):
    """72 entries whole, and in two slices, twelve, or four: of a kernel each is still too large."""
    optimizer = as_if_trained(Celo2((3,), 0.1, key=getkey()), getkey())
    params = {"wide": jnp.ones((12, 6)), "kernel": jnp.ones((4, 3, 6))}
    grads = draw_grads(getkey(), 2, params)
    expected = updates_of(optimizer, grads, params)
    for largest, smallest, counts in ((36, 6, (2, 2)), (6, 1, (12, 4))):
        monkeypatch.setattr(_celo2_direction, "_LARGEST_BLOCK", largest)
        monkeypatch.setattr(_celo2_direction, "_SMALLEST_BLOCK", smallest)
        assert tuple(_celo2_direction._num_blocks(x.shape) for x in params.values()) == counts
        jax.clear_caches()
        assert_trees_close(updates_of(optimizer, grads, params), expected, rtol=1e-4, atol=1e-5)


def test_needs_params(getkey):
    optimizer = Celo2(key=getkey())
    with pytest.raises(ValueError, match="hand them to `update`"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), None)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_sizes": ()}, r"hidden_sizes=\(\)"),
        ({"hidden_sizes": (3, 1)}, "at least 2 units"),
        ({"hidden_sizes": (3, 0), "start": "random"}, "at least 1 units"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"vector_rate": -1.0}, "vector_rate=-1.0"),
        ({"magnitude": -1.0}, "magnitude=-1.0"),
    ],
)
def test_errors_name_the_argument(settings, message, getkey):
    with pytest.raises(l2o_eqx.ArgumentError, match=message) as caught:
        Celo2(**settings, key=getkey())
    assert caught.value.argument in settings
