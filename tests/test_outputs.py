"""Structured outputs: what they are at first, at the ends of the number range, and in small types."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import LEARNED, OUTPUTS, assert_trees_close, to_float64

from l2o_eqx.optimizers import CoordinatewiseLSTM, PerLayer
from l2o_eqx.outputs import AdamOutput, CurvatureOutput, MomentumOutput
from l2o_eqx.preprocessors import LogAndSign

# What they are with answers of zero.
AT_FIRST = {
    "momentum": (MomentumOutput(0.05, 0.8), optax.sgd(0.05, 0.8)),
    "adam": (AdamOutput(0.05, eps=1e-8), optax.adam(0.05, b1=0.9, b2=0.99)),
}
ARCHITECTURES = {
    "lstm": lambda output, key: CoordinatewiseLSTM((4,), output=output, key=key),
    "per_layer": lambda output, key: PerLayer(
        {"params": CoordinatewiseLSTM((4,), output=output, key=key)}, lambda path, leaf: "params"
    ),
}
WITH_OUTPUT = [name for name in LEARNED if name.endswith("_output")]


def run(optimizer, grads):
    """The updates for a row of gradients."""

    def one_step(state, g):
        updates, state = optimizer.update(g, state, None)
        return state, updates

    state = optimizer.init(jax.tree.map(lambda g: g[0], grads))
    return jax.lax.scan(one_step, state, grads)[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", AT_FIRST)
def test_starts_as_what_it_corrects(name, architecture, getkey):
    """Over 20 steps, whatever the weights of the network."""
    output, transformation = AT_FIRST[name]
    optimizer = ARCHITECTURES[architecture](output, getkey())
    grads = {"a": jr.normal(getkey(), (20, 3, 2)), "b": jr.normal(getkey(), (20,))}
    state, expected = transformation.init(jax.tree.map(lambda g: g[0], grads)), []
    for t in range(20):
        updates, state = transformation.update(jax.tree.map(lambda g, t=t: g[t], grads), state)
        expected.append(updates)
    expected = jax.tree.map(lambda *u: jnp.stack(u), *expected)
    # Where means of both signs cancel, rounding is as large as what is left.
    assert_trees_close(run(optimizer, grads), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OUTPUTS)
def test_blocks_of_the_state_are_blocks_of_coordinates(name, getkey):
    output = OUTPUTS[name]()
    state = output.init(jnp.zeros(10))
    for _ in range(3):
        grads, answers = jr.normal(getkey(), (10,)), jr.normal(getkey(), (output.num_answers, 10))
        updates, next_state = output(answers, grads, state)
        features = output.features(grads, state)
        assert features.shape == (output.num_features, 10)
        for part in (slice(0, 3), slice(3, 10), jr.permutation(getkey(), 10)):
            own = jax.tree.map(lambda x, part=part: x[..., part], (answers, grads, state))
            assert_trees_close(output(*own)[0], updates[part])
            assert_trees_close(output.features(*own[1:]), features[:, part])
        state = next_state


@pytest.mark.parametrize("name", OUTPUTS)
def test_zero_gradients_give_zero_updates(name, getkey):
    output = OUTPUTS[name]()
    state = output.init(jnp.zeros(4))
    for _ in range(3):
        updates, state = output(jr.normal(getkey(), (output.num_answers, 4)), jnp.zeros(4), state)
        np.testing.assert_array_equal(updates, 0)


@pytest.mark.parametrize("name", WITH_OUTPUT)
def test_finite_at_all_scales_with_derivatives(name, getkey):
    """Repeated gradients, which have no differences, and changing ones; first and second order."""
    optimizer = LEARNED[name](getkey())
    params = {"layers": (jnp.zeros(3), jnp.zeros(2))}
    rows = jax.tree.map(lambda p: jr.normal(getkey(), (6, *p.shape)), params)
    rows = jax.tree.map(lambda r: jnp.concatenate([r[:1], r[:1], r]), rows)

    @eqx.filter_jit
    @functools.partial(eqx.filter_value_and_grad, has_aux=True)
    def total(inputs, scale):
        updates = run(*inputs)
        # So that it is not the sum that overflows.
        return sum(jnp.sum(u / jnp.maximum(scale, 1.0)) for u in jax.tree.leaves(updates)), updates

    for scale in (0.0, 1e-30, 1e-10, 1.0, 1e10, 1e30):
        scaled = jax.tree.map(lambda r, c=scale: c * r, rows)
        (_, updates), grads = total((optimizer, scaled), jnp.float32(scale))
        for x in jax.tree.leaves((updates, grads)):
            assert np.all(np.isfinite(x)), scale


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_large_answer_still_learns(name):
    output, grads = OUTPUTS[name](), jnp.ones(1)

    def update(answer):
        answers = jnp.zeros((output.num_answers, 1)).at[0].set(answer)
        return output(answers, grads, output.init(grads))[0][0]

    for answer in (-12.0, 12.0):
        value, slope = jax.value_and_grad(update)(answer)
        assert abs(float(value)) <= 0.05 * np.exp(6) * 1.001 and float(slope) != 0


def test_features_of_momentum_are_ratios_to_the_last_update():
    output = MomentumOutput(0.1, 0.5)
    state = output.init(jnp.zeros(2))
    grads, next_grads = jnp.array([1.0, -2.0]), jnp.array([-0.3, -0.5])
    np.testing.assert_array_equal(output.features(grads, state), 0)
    _, state = output(jnp.zeros((2, 2)), grads, state)
    features = output.features(next_grads, state)
    change, update = next_grads - grads, -0.1 * grads
    expected = [
        np.tanh(np.log(0.1 * np.abs(next_grads / update)) / 3),
        np.tanh(np.log(0.1 * np.abs(change / update)) / 3),
    ]
    np.testing.assert_allclose(features[:2], expected, rtol=1e-5)
    np.testing.assert_array_equal(features[4:], [np.sign(next_grads * update), np.sign(change * update)])


def test_a_network_sees_the_output_s_features_and_the_preprocessor_s(getkey):
    assert CoordinatewiseLSTM((3,), output=MomentumOutput(), key=getkey()).preprocessor is None
    assert CoordinatewiseLSTM((3,), output=AdamOutput(), key=getkey()).cells[0].input_size == 1
    optimizer = CoordinatewiseLSTM((3,), LogAndSign(), output=MomentumOutput(), key=getkey())
    assert optimizer.cells[0].input_size == 2 + 6


def test_curvature_is_free_of_the_objective_s_scale(getkey):
    """Along the path on a quadratic, whatever factor it has."""
    optimizer, curvatures = LEARNED["lstm_curvature_output"](getkey()), jnp.array([1.0, 10.0, 100.0])

    def path(scale):
        def one_step(carry, _):
            params, state = carry
            updates, state = optimizer.update(scale * curvatures * params, state, params)
            return (params + updates, state), params

        start = jnp.ones(3)
        return jax.lax.scan(one_step, (start, optimizer.init(start)), length=10)[1]

    for scale in (1e-20, 1e20):
        assert_trees_close(path(scale), path(1.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", WITH_OUTPUT)
def test_dtypes_of_params_stay(name, getkey):
    optimizer, rows = LEARNED[name](getkey()), jr.normal(getkey(), (5, 7))
    expected = run(optimizer, rows)
    small = run(optimizer, rows.astype(jnp.bfloat16))
    assert small.dtype == jnp.bfloat16
    np.testing.assert_allclose(small.astype(jnp.float32), expected, rtol=0.1, atol=0.01)
    with jax.enable_x64(True):
        wide = run(to_float64(optimizer), rows.astype(jnp.float64))
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide, expected, rtol=1e-3, atol=1e-5)
        assert run(optimizer, rows.astype(jnp.float64)).dtype == jnp.float64


def test_adam_does_not_change_with_the_scale_of_the_gradients(getkey):
    answers, output = jr.normal(getkey(), (4, 5)), AdamOutput()
    grads = jr.normal(getkey(), (5,))
    updates = [output(answers, c * grads, output.init(grads))[0] for c in (1e-6, 1.0, 1e25)]
    assert_trees_close(updates[0], updates[1], rtol=1e-4)
    assert_trees_close(updates[2], updates[1])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda key: MomentumOutput(0.0), "rate=0.0"),
        (lambda key: MomentumOutput(momentum=1.0), "momentum=1.0"),
        (lambda key: CurvatureOutput(first_step=0.0), "first_step=0.0"),
        (lambda key: AdamOutput(-1.0), "rate=-1.0"),
        (lambda key: AdamOutput(decays=(0.9, 1.0)), r"decays=\(0.9, 1.0\)"),
        (lambda key: AdamOutput(start=0.8), r"start=0.8"),
        (lambda key: CoordinatewiseLSTM(linear_readout=True, output=AdamOutput(), key=key), "linear_readout"),
    ],
)
def test_errors_name_the_argument(make, message, getkey):
    with pytest.raises(ValueError, match=message):
        make(getkey())
