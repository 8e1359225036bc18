"""Learned optimizers inside of what optax puts around transformations."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import LEARNED, assert_trees_close

import l2o_eqx
from l2o_eqx.optimizers import UnitRMS

PARAMS = {"layers": ({"w": jnp.array([[-1.0, 10.0, 1.0], [0.5, 0.0, 2.0]]), "b": jnp.zeros(2)},)}
GRADS = jax.tree.map(lambda x: x - 0.5, PARAMS)
# One of each kind: coordinate by coordinate, by group, and with tensors that see each other.
NAMES = ["lstm_signed_log", "per_layer", "learned_momentum"]


def learned(name="lstm_signed_log") -> Any:
    return l2o_eqx.as_optax(LEARNED[name](jr.key(0)))


def updates_of(transformation: Any, params: Any = PARAMS, grads: Any = GRADS, **extra: Any) -> Any:
    """Of two steps at one point."""

    @jax.jit
    def two_steps(params, grads):
        state = transformation.init(params)
        _, state = transformation.update(grads, state, params, **extra)
        return transformation.update(grads, state, params, **extra)[0]

    return two_steps(params, grads)


@pytest.mark.parametrize("name", NAMES)
def test_masked_and_partitioned(name):
    """What is masked does not count; a group without members is no error, whatever runs it."""
    mask = {"layers": ({"w": True, "b": False},)}
    alone = {"layers": ({"w": PARAMS["layers"][0]["w"], "b": None},)}
    grads = {"layers": ({"w": GRADS["layers"][0]["w"], "b": None},)}
    expected = updates_of(learned(name), alone, grads)["layers"][0]["w"]
    masked = updates_of(optax.masked(learned(name), mask))
    labels = jax.tree.map(lambda m: "learned" if m else "adam", mask)
    groups: dict = {"learned": learned(name), "adam": optax.adam(1e-3), "none": learned(name)}
    split = updates_of(optax.partition(groups, labels))
    for updates in (masked, split):
        assert_trees_close(updates["layers"][0]["w"], expected, rtol=1e-5)
    assert_trees_close(masked["layers"][0]["b"], GRADS["layers"][0]["b"], rtol=0, atol=0)
    np.testing.assert_allclose(np.abs(split["layers"][0]["b"]), 1e-3, rtol=1e-3)
    adam = jax.tree.map(lambda _: "adam", mask)
    assert_trees_close(updates_of(optax.partition(groups, adam)), updates_of(optax.adam(1e-3)))


def test_a_model_that_can_be_called_is_partitioned():
    """Optax calls labels that can be called, as a tree with the structure of a model can: as a function."""
    model = eqx.filter(eqx.nn.MLP(2, 1, 3, 1, key=jr.key(1)), eqx.is_inexact_array)
    labels = jax.tree.map(lambda x: "learned" if x.ndim > 1 else "adam", model)
    groups: dict = {"learned": learned(), "adam": optax.adam(1e-3)}
    updates = updates_of(optax.partition(groups, lambda params: labels), model, model)
    assert jax.tree.structure(updates) == jax.tree.structure(model)
    mask = jax.tree.map(lambda x: x.ndim > 1, model)
    masked = updates_of(optax.masked(learned(), mask), model, model)
    for layer, other in zip(updates.layers, masked.layers, strict=True):
        assert_trees_close(layer.weight, other.weight, rtol=1e-5)


def test_in_a_chain_with_a_schedule():
    halved = optax.chain(optax.clip(1.0), learned(), optax.scale_by_schedule(lambda step: 1 / (1 + step)))
    expected = updates_of(learned(), grads=jax.tree.map(lambda g: jnp.clip(g, -1, 1), GRADS))
    assert_trees_close(updates_of(halved, value=jnp.float32(1)), jax.tree.map(lambda u: u / 2, expected))
    named = optax.named_chain(("learned", learned()), ("half", optax.scale(0.5)))
    assert_trees_close(updates_of(named), jax.tree.map(lambda u: u / 2, updates_of(learned())))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradients_are_accumulated(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    grads = jax.tree.map(lambda x: x.astype(dtype), GRADS)
    steps = optax.MultiSteps(learned(), every_k_schedule=2)
    update, state = jax.jit(steps.update), steps.init(params)
    first, state = update(grads, state, params)
    second, _ = update(grads, state, params)
    assert_trees_close(first, jax.tree.map(jnp.zeros_like, params), rtol=0, atol=0)
    transformation = learned()
    expected, _ = transformation.update(grads, transformation.init(params), params)
    assert_trees_close(second, expected, rtol=1e-2)


def test_what_is_not_finite_is_left_out():
    transformation = optax.apply_if_finite(learned(), 3)
    state = transformation.init(PARAMS)
    bad = jax.tree.map(lambda g: g / 0, GRADS)
    update = jax.jit(transformation.update)
    nothing, state = update(bad, state, PARAMS)
    assert_trees_close(nothing, jax.tree.map(jnp.zeros_like, PARAMS), rtol=0, atol=0)
    updates, _ = update(GRADS, state, PARAMS)
    expected, _ = learned().update(GRADS, learned().init(PARAMS), PARAMS)
    assert_trees_close(updates, expected, rtol=1e-5)


@pytest.mark.parametrize("make", [l2o_eqx.as_optax, l2o_eqx.scale_by_learned])
def test_hyperparameters_are_injected(make):
    """The horizon is one; it may be an array."""
    optimizer = LEARNED["adam_mlp"](jr.key(0))
    injected: Any = optax.inject_hyperparams(make)(optimizer, num_steps=7)
    assert_trees_close(updates_of(injected), updates_of(make(optimizer, 7)), rtol=1e-5)
    assert injected.init(PARAMS).hyperparams["num_steps"] == 7

    def halved(rate):
        return optax.chain(learned(), optax.scale(rate))

    scaled = updates_of(optax.inject_hyperparams(halved)(rate=optax.constant_schedule(0.5)))
    assert_trees_close(scaled, jax.tree.map(lambda u: u / 2, updates_of(learned())))


def test_lookahead_and_schedule_free():
    params = optax.LookaheadParams(PARAMS, PARAMS)
    transformation = optax.lookahead(learned(), sync_period=2, slow_step_size=0.5)
    state = transformation.init(params)
    updates, _ = jax.jit(transformation.update)(GRADS, state, params)
    expected, _ = learned().update(GRADS, learned().init(PARAMS), PARAMS)
    assert_trees_close(updates.fast, expected, rtol=1e-5)
    free: Any = optax.contrib.schedule_free(learned(), learning_rate=0.1)
    state = free.init(PARAMS)
    updates, state = jax.jit(free.update)(GRADS, state, PARAMS)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(updates))
    average = optax.contrib.schedule_free_eval_params(state, optax.apply_updates(PARAMS, updates))
    assert jax.tree.structure(average) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("name", ["lstm_signed_log", "learned_momentum"])
def test_complex_params_in_two_real_parts(name):
    params = {"z": jnp.array([1 + 2j, 0.5 - 1j], jnp.complex64), "x": jnp.ones(2)}
    transformation: Any = optax.contrib.split_real_and_imaginary(learned(name))
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert updates["z"].dtype == jnp.complex64
    pair = {"x": params["x"], "z": (params["z"].real, params["z"].imag)}
    expected, _ = learned(name).update(pair, learned(name).init(pair), pair)
    assert_trees_close(updates["x"], expected["x"])
    np.testing.assert_allclose(updates["z"], expected["z"][0] + 1j * expected["z"][1], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_part_of_a_state_is_like_the_params(name):
    """So optax leaves it alone: it is laid out in blocks."""
    chain = optax.chain(learned(name), optax.trace(0.9))
    state: Any = chain.init(PARAMS)
    mapped: Any = optax.tree.map_params(chain, lambda x: x + 1, state)
    assert_trees_close(mapped[0], state[0], rtol=0, atol=0)
    assert_trees_close(mapped[1].trace, jax.tree.map(lambda x: x + 1, state[1].trace))


@pytest.mark.parametrize("name", ["lstm_adam_like", "per_layer"])
def test_direction_alone_with_rate_and_decay_of_the_user(name):
    """Unit root mean square per tensor, against the optimizer's update; in a chain it is `UnitRMS`."""
    optimizer = LEARNED[name](jr.key(0))
    directions = updates_of(l2o_eqx.scale_by_learned(optimizer))
    for direction, update in zip(*map(jax.tree.leaves, (directions, updates_of(learned(name)))), strict=True):
        rms = jnp.sqrt(jnp.mean(update**2))
        assert_trees_close(direction, -update / rms, rtol=1e-4)
    chain = optax.chain(
        l2o_eqx.scale_by_learned(optimizer),
        optax.add_decayed_weights(0.3),
        optax.scale_by_learning_rate(0.1),
    )
    wrapper = l2o_eqx.as_optax(UnitRMS(optimizer, 0.1, 0.3))
    assert_trees_close(updates_of(chain), updates_of(wrapper), rtol=1e-4)
