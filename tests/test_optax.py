"""Every optimizer as an optax transformation and back; after optax's own tests of `optax.contrib`."""

import copy
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import LEARNED, OPTIMIZERS, VARIANTS, assert_trees_close, given_to, sparing
from jax import lax

import l2o_eqx
from l2o_eqx.optimizers import AbstractOptimizer, AdamMLP, FromOptax, LearnedMomentum
from l2o_eqx.preprocessors import AdamLike, Identity, LogAndSign, SignedLog

# With the layers that `PerLayer` of the list has optimizers for.
PARAMS = {"layers": ({"w": jnp.array([[-1.0, 10.0, 1.0], [0.5, 0.0, 2.0]]), "b": jnp.zeros(2)},)}
MIXED = {
    "layers": (
        {"w": jnp.ones((2, 3), jnp.bfloat16), "h": jnp.ones((), jnp.float16), "e": jnp.zeros((0, 2))},
        None,
    )
}


class Polyak(AbstractOptimizer):
    """Wants the value, and remembers it; its rate is learned."""

    rate: jax.Array

    def wants(self):
        return frozenset({"value"})

    def init(self, params):
        return jnp.zeros(())

    def update(self, grads, state, params, *, value=None, key=None):
        assert value is not None
        return jax.tree.map(lambda g: -self.rate * (value - state) * g, grads), value


class Noise(AbstractOptimizer):
    """Coordinatewise, and draws."""

    size: jax.Array

    def layout(self, shapes):
        return l2o_eqx.optimizers.Blocks()

    def wants(self):
        return frozenset({"key"})

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        assert key is not None
        return jax.tree.map(lambda g: self.size * jr.normal(key, g.shape), grads), None


def parabola(params):
    return sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(params))


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def run(transformation, params, num_steps, loss=parabola):
    """In a `scan`, which refuses states whose types change, with keywords that nobody knows."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        # Another dtype than that of the params, to confuse.
        extra = {"value": value.astype(jnp.float16), "surprise": 1, "grad": grads}
        updates, state = transformation.update(grads, state, params, **extra)
        return (optax.apply_updates(params, updates), state), value

    carry = (params, transformation.init(params))
    (params, state), values = lax.scan(step, carry, length=num_steps)
    return params, state, values


def dtypes_of(tree):
    return jax.tree.map(lambda x: x.dtype, tree)


@pytest.mark.parametrize("name", sparing(OPTIMIZERS, but=VARIANTS))
def test_both_directions_are_the_optimizer(name):
    """On a parabola: as a transformation of an optimizer of a transformation, and by itself.

    The same program takes every dtype and shape of params with gradients in float32, and params without any
    array; it is compiled once for all optimizers of one structure.
    """
    traces = 0

    @eqx.filter_jit
    def program(transformation):
        nonlocal traces
        traces += 1
        optimizer = transformation.optimizer
        extra = given_to(optimizer)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(parabola)(params)
            seen = {"value": value} if extra else {}
            updates, state = optimizer.update(grads, state, params, **seen)
            return (optax.apply_updates(params, updates), state), None

        (direct, _), _ = lax.scan(step, (PARAMS, optimizer.init(PARAMS)), length=2)
        through, _, _ = run(l2o_eqx.as_optax(FromOptax(transformation)), PARAMS, 2)
        grads = jax.tree.map(lambda x: jnp.full(x.shape, 0.5), MIXED)
        state = transformation.init(MIXED)
        updates, next_state = transformation.update(grads, state, MIXED, **extra)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, next_state)
        empty: Any = {"a": None}
        nothing, last = transformation.update(empty, transformation.init(empty), empty, **extra)
        assert nothing == {"a": None}
        return through, direct, updates, (next_state, last)

    transformation: Any = l2o_eqx.as_optax(OPTIMIZERS[name](jr.key(0)))
    through, direct, updates, states = program(transformation)
    program(jax.tree.map(lambda x: x, transformation))
    assert traces == 1
    assert_trees_close(through, direct, rtol=1e-4, atol=1e-5)
    assert dtypes_of(updates) == dtypes_of(MIXED)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, states)))


@pytest.mark.parametrize("empty", [{}, (), None, optax.MaskedNode()])
@pytest.mark.parametrize("name", ["lstm_identity", "per_layer", "learned_momentum"])
def test_no_params_at_all(name, empty):
    transformation: Any = l2o_eqx.as_optax(OPTIMIZERS[name](jr.key(0)))
    updates, state = transformation.update(empty, transformation.init(empty), empty)
    assert jax.tree.structure(updates) == jax.tree.structure(empty)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, transformation.init(empty))


@pytest.mark.parametrize("loss, start", [(parabola, [-1.0, 10.0, 1.0]), (rosenbrock, [0.0, 0.0])])
@pytest.mark.parametrize("make", [LearnedMomentum, AdamMLP])
def test_what_starts_as_a_good_optimizer_goes_down(make, loss, start):
    transformation: Any = l2o_eqx.as_optax(make(key=jr.key(0)))
    values: Any = jax.jit(lambda: run(transformation, jnp.array(start), 60, loss)[2])()
    assert np.all(np.isfinite(values)) and values[-1] < 0.9 * values[0]


def test_numbers_of_python_are_params():
    """As with Adam; the state is that of an array."""
    transformation: Any = l2o_eqx.as_optax(LEARNED["lstm_adam_like"](jr.key(0)))
    state = transformation.init({"t": 1.0})
    updates, next_state = transformation.update({"t": 2.0}, state, {"t": 1.0})
    expected, _ = transformation.update({"t": jnp.float32(2)}, transformation.init({"t": jnp.float32(1)}))
    assert_trees_close(updates, expected, rtol=0, atol=0)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, next_state)
    applied: Any = optax.apply_updates({"t": 1.0}, updates)
    assert applied["t"] == 1 + updates["t"]


def test_an_instance_of_equal_structure_does_not_compile_again():
    traces = 0

    @eqx.filter_jit
    def update(transformation, grads, state):
        nonlocal traces
        traces += 1
        return transformation.update(grads, state)[0]

    results = []
    for seed in range(3):
        transformation: Any = l2o_eqx.as_optax(LEARNED["lstm_identity"](jr.key(seed)), 10)
        results.append(update(transformation, jnp.ones(4), transformation.init(jnp.ones(4))))
    assert traces == 1
    assert not np.allclose(results[0], results[1])


@pytest.mark.parametrize("size", [5, 300])
def test_derivatives_pass_through_the_transformation(size):
    """By the transformation as by the optimizer, in one block and in two."""
    optimizer, grads = LEARNED["lstm_signed_log"](jr.key(0)), jr.normal(jr.key(1), (size,))

    def through(transformation):
        state = transformation.init(grads)
        updates, state = transformation.update(grads, state)
        return jnp.sum(transformation.update(updates, state)[0])

    def direct(optimizer):
        updates, state = optimizer.update(grads, optimizer.init(grads), None)
        return jnp.sum(optimizer.update(updates, state, None)[0])

    expected = eqx.filter_jit(eqx.filter_grad(direct))(optimizer)
    actual = eqx.filter_jit(eqx.filter_grad(through))(l2o_eqx.as_optax(optimizer))
    assert_trees_close(actual.optimizer, expected, rtol=1e-3, atol=1e-4)
    assert max(np.max(np.abs(x)) for x in jax.tree.leaves(expected)) > 0
    of_wrapped = FromOptax(l2o_eqx.as_optax(optimizer))
    assert l2o_eqx.count_meta_parameters(of_wrapped) == l2o_eqx.count_meta_parameters(optimizer)


def test_vmap_is_a_loop():
    transformation: Any = l2o_eqx.as_optax(LEARNED["lstm_adam_like"](jr.key(0)))
    params = jr.normal(jr.key(1), (3, 2, 150))

    def once(params):
        updates, state = transformation.update(params, transformation.init(params))
        return transformation.update(updates, state)[0]

    one = jax.jit(once)
    assert_trees_close(jax.jit(jax.vmap(once))(params), jnp.stack([one(p) for p in params]), rtol=1e-4)


def test_value_and_key_are_handed_on_and_missed():
    params = {"a": jnp.ones(3), "b": jnp.ones(())}
    polyak: Any = l2o_eqx.as_optax(Polyak(jnp.float32(0.5)))
    updates, state = polyak.update(params, polyak.init(params), value=3, surprise=1)
    assert_trees_close(updates, jax.tree.map(lambda x: -1.5 * x, params))
    assert polyak.update(params, state, value=jnp.float16(3))[0]["b"] == 0
    with pytest.raises(l2o_eqx.ArgumentError, match="hand `value` to `update`"):
        polyak.update(params, state, params)
    noise: Any = l2o_eqx.as_optax(Noise(jnp.float32(2)))
    first, second = (noise.update(params, noise.init(params), key=jr.key(i))[0] for i in range(2))
    assert np.all(first["a"] != second["a"])
    with pytest.raises(l2o_eqx.ArgumentError, match="hand `key` to `update`"):
        noise.update(params, noise.init(params))


def test_from_optax_hands_the_value_on():
    """Polyak's step needs it; Adam and what takes no extra arguments do without, in both directions."""
    params, grads, value = jnp.ones(3), jnp.full(3, 0.5), jnp.float32(2)
    step = optax.polyak_sgd()
    expected, _ = step.update(grads, step.init(params), params, value=value)
    wrapped = FromOptax(step)
    assert wrapped.wants() == {"value"}
    assert_trees_close(wrapped.update(grads, wrapped.init(params), params, value=value)[0], expected)
    clipped = l2o_eqx.as_optax(l2o_eqx.optimizers.Clipped(wrapped, 100.0))
    assert_trees_close(clipped.update(grads, clipped.init(params), params, value=2)[0], expected)
    with pytest.raises(ValueError, match="hand `value` to `update`"):
        clipped.update(grads, clipped.init(params), params)
    plain: Any = optax.GradientTransformation(optax.sgd(0.1).init, optax.identity().update)
    for transformation in (optax.adam(0.1), plain):
        back = l2o_eqx.as_optax(FromOptax(transformation))
        expected, _ = transformation.update(grads, transformation.init(params), params)
        assert_trees_close(back.update(grads, back.init(params), params)[0], expected)
    assert FromOptax(plain).wants() == frozenset()


@pytest.mark.parametrize("preprocessor", [Identity(), SignedLog(12.0), LogAndSign(12.0), AdamLike()])
def test_features_are_computed_in_float32(preprocessor):
    """e^12 is no float16, Adam's ε is zero there, and 1e6 beside bfloat16 is neither one's."""
    grads = {
        "zeros": jnp.zeros(3, jnp.float16),
        "small": jnp.full(2, 1e-6, jnp.float16),
        "large": jnp.full(2, 1e6, jnp.bfloat16),
    }
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
    features, _ = preprocessor(grads, preprocessor.init(grads))
    assert_trees_close(features, preprocessor(wide, preprocessor.init(wide))[0])
    optimizer = l2o_eqx.optimizers.CoordinatewiseLSTM((3,), preprocessor, 0.1, key=jr.key(0))
    transformation: Any = l2o_eqx.as_optax(optimizer)
    updates, _ = transformation.update(grads, transformation.init(grads), grads)
    expected, _ = optimizer.update(wide, optimizer.init(wide), wide)
    rounded = jax.tree.map(lambda u, g: u.astype(g.dtype), expected, grads)
    assert_trees_close(updates, rounded, rtol=1e-2, atol=1e-6)
    # In half precision throughout, as in an inner run.
    again, _ = optimizer.update(grads, optimizer.init(grads), grads)
    assert_trees_close(again, rounded, rtol=1e-2, atol=1e-6)


def test_what_is_no_real_array_is_refused():
    transformation: Any = l2o_eqx.as_optax(LEARNED["lstm_identity"](jr.key(0)))
    model = eqx.nn.MLP(2, 1, 3, 1, key=jr.key(0))
    arrays = eqx.filter(model, eqx.is_inexact_array)
    state = transformation.init(arrays)
    for call in (
        lambda: transformation.init(model),
        lambda: transformation.update(arrays, state, model),
        lambda: transformation.init({"n": jnp.arange(3)}),
        lambda: transformation.init({"n": np.zeros(3, bool)}),
        lambda: transformation.init({"n": True}),
        lambda: transformation.init({"n": jr.key(0)}),
    ):
        with pytest.raises(l2o_eqx.ArgumentError, match=r"eqx.filter\(model, eqx.is_inexact_array\)"):
            call()
    for value in (jnp.array([1 + 1j], jnp.complex64), np.ones(2, complex), 1j):
        with pytest.raises(l2o_eqx.ArgumentError, match="optax.contrib.split_real_and_imaginary"):
            transformation.init({"z": value})
    with pytest.raises(l2o_eqx.ArgumentError, match=r"gradients have the shapes \[\(2,\)\]"):
        transformation.update(jnp.ones(2), transformation.init(jnp.ones(3)), jnp.ones(3))


@pytest.mark.parametrize("num_steps", [0, -1, True, jnp.zeros((), jnp.int32)])
def test_a_number_of_steps_that_is_none(num_steps):
    with pytest.raises(ValueError, match=r"num_steps=...\)` must be an integer, at least 1. Got"):
        l2o_eqx.as_optax(LEARNED["adam_mlp"](jr.key(0)), num_steps)


def test_a_learned_start_is_there_for_those_who_ask():
    class Start(AbstractOptimizer):
        shift: jax.Array

        def initial_params(self, params):
            return jax.tree.map(lambda p: p + self.shift, params)

        def init(self, params):
            return None

        def update(self, grads, state, params, *, value=None, key=None):
            return grads, None

    transformation: Any = l2o_eqx.as_optax(Start(jnp.float32(2)))
    start = transformation.initial_params({"w": jnp.ones(2, jnp.bfloat16), "t": 1.0})
    assert start["w"].dtype == jnp.bfloat16 and np.all(start["w"] == 3) and start["t"] == 3
    same = l2o_eqx.as_optax(LEARNED["lstm_identity"](jr.key(0))).initial_params(PARAMS)
    assert_trees_close(same, PARAMS, rtol=0, atol=0)


def test_a_transformation_is_copied_pickled_and_unpacked():
    transformation: Any = l2o_eqx.as_optax(LEARNED["lstm_identity"](jr.key(0)), 7, output="rms")
    assert isinstance(transformation, optax.GradientTransformationExtraArgs)
    init, update = transformation
    expected, _ = update(PARAMS, init(PARAMS), PARAMS)
    again: Any
    for again in (copy.deepcopy(transformation), pickle.loads(pickle.dumps(transformation))):
        assert (again.num_steps, again.output) == (7, "rms")
        assert_trees_close(again.update(PARAMS, again.init(PARAMS), PARAMS)[0], expected, rtol=0, atol=0)
