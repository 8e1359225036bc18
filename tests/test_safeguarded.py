"""`Safeguarded`: as good as its fallback where the inner optimizer is bad, as that one where it is good."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import LookingLSTM, RootMeanSquare, assert_trees_close

import l2o_eqx as l2o
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import Blocks, Clipped, CoordinatewiseLSTM, FromOptax, Safeguarded, Whole

FAMILY = Quadratic(4)
SGD = optax.sgd(0.05)
STEPS = 120


def loss(x):
    return jnp.sum(jnp.array([1.0, 10.0]) * x**2)


@jax.jit
def run(optimizer, x):
    """Losses at, and params after, every step; and the last state."""

    def step(carry, _):
        x, state = carry
        value, grads = jax.value_and_grad(loss)(x)
        updates, state = optimizer.update(grads, state, x, value=value)
        return (x + updates, state), (value, x + updates)

    (_, state), (losses, points) = jax.lax.scan(step, (x, optimizer.init(x)), length=STEPS)
    return losses, points, state


START = jnp.array([1.0, -2.0])


def alone(transformation):
    # `run` takes one program for each structure, and this has the structure of the others.
    return run(FromOptax(transformation), START)


class Scaled(l2o.optimizers.AbstractOptimizer):
    """Gradient descent at a rate that is data: one program runs what diverges, stands still and is good."""

    rate: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        return jax.tree.map(lambda g: -self.rate * g, grads), None


@pytest.mark.parametrize("rate", [1.0, 1e30, np.nan, np.inf, -0.01, 0.0], ids=str)
def test_ends_as_well_as_the_fallback_where_the_inner_one_is_bad(rate):
    """It ends as the fallback does some steps earlier: two of each trial, or M and three where it stalls."""
    safe = Safeguarded(Scaled(jnp.float32(rate)), Scaled(jnp.float32(0.06)))
    losses, points, state = run(safe, START)
    expected, _, _ = run(Scaled(jnp.float32(0.06)), START)
    falls = int(state.guard.falls)
    trial = 13 if rate in (0.0, -0.01) else 5
    assert np.all(np.isfinite(points)) and 2 <= falls <= 1 + np.log(3 * STEPS) / np.log(4)
    assert losses[-1] <= expected[-1 - trial * falls] and losses[-1] < 1e-4 * losses[0]
    assert state.guard.fallback_steps >= STEPS - trial * falls


def test_is_the_inner_optimizer_where_that_is_good():
    """No step is the fallback's, though that one diverges; all points are the same."""
    good = Scaled(jnp.float32(0.06))
    losses, points, state = run(Safeguarded(good, Scaled(jnp.float32(5.0))), START)
    expected, same, _ = run(good, START)
    far = np.asarray(expected) > 1e-30
    assert_trees_close(losses[far], expected[far], rtol=1e-5)
    assert_trees_close(points[far], same[far], rtol=1e-5)
    assert state.guard.falls == 0 or losses[-1] < 1e-30


def test_a_trained_optimizer_is_not_slowed_on_what_it_was_trained_for(getkey):
    inner = l2o.pretrained("quadratic")
    key = getkey()
    safe, plain = (
        l2o.evaluate(one, Quadratic(16), num_steps=160, num_objectives=8, key=key).final_losses
        for one in (Safeguarded(inner, optax.adam(0.1)), inner)
    )
    assert np.median(np.log10(safe) - np.log10(plain)) < 0.5
    assert np.max(safe) <= 2 * np.max(plain)


def test_losses_are_bounded_by_what_was_accepted():
    """The first rule, on the run itself: after a refused point comes one that was accepted before it."""
    losses, _, state = run(Safeguarded(Scaled(jnp.float32(0.12)), Scaled(jnp.float32(0.01)), 3), START)
    losses = np.asarray(losses)
    assert state.guard.falls > 0
    for t in np.flatnonzero(losses[1:] > losses[0]) + 1:
        assert losses[t + 1] < losses[0]


def test_in_an_optax_loop_it_counts_and_asks_for_the_loss():
    safe = Safeguarded(Scaled(jnp.float32(1.0)), optax.adam(0.1))
    transformation = l2o.as_optax(safe)
    params: Any = {"a": jnp.ones(2), "b": jnp.ones((2, 3))}
    state: Any = transformation.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: sum(jnp.sum(4 * x**2) for x in p.values()))(params)
        updates, state = transformation.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.05 * values[0] and int(state.inner.arrays.guard.falls[0]) >= 3
    with pytest.raises(l2o.ArgumentError, match="value"):
        transformation.update(params, state, params)
    with pytest.raises(l2o.ArgumentError, match="params"):
        safe.update(params, safe.init(params), None, value=jnp.float32(0))


def test_keeps_blocks_where_both_have_them(getkey):
    """In blocks and whole the run is the same, objective by objective: also where one of them falls back."""
    lstm = CoordinatewiseLSTM((3,), learning_rate=2.0, key=getkey())
    looking = LookingLSTM(lstm, jnp.float32(0.0))
    safe = Safeguarded(lstm, RootMeanSquare(jnp.float32(0.1)))
    whole = Safeguarded(Clipped(lstm, 1e9), FromWhole(safe.fallback))
    shapes = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert isinstance(safe.layout(shapes), Blocks) and isinstance(whole.layout(shapes), Whole)
    assert isinstance(Safeguarded(looking, SGD).layout(shapes), Whole)
    key = getkey()
    one, other = (
        l2o.evaluate(o, FAMILY, num_steps=30, num_objectives=3, key=key).losses for o in (safe, whole)
    )
    np.testing.assert_allclose(one, other, rtol=1e-3)
    assert np.all(one[:, -1] < one[:, 0])


class FromWhole(l2o.optimizers.AbstractWrapper):
    """The same optimizer on whole trees."""

    inner: l2o.optimizers.AbstractOptimizer

    def update(self, grads, state, params, *, value=None, key=None):
        return self.inner.update(grads, state, params)


@pytest.mark.parametrize("name", ["quadratic", "mnist"])
def test_an_optax_loop_that_is_told_its_length_and_asks_how_often_it_fell_back(name):
    """In blocks and on whole tensors; a first step that leads nowhere makes it fall back once."""
    safe = Safeguarded(l2o.pretrained(name), SGD)
    tx = optax.chain(l2o.as_optax(safe, num_steps=100), optax.identity())
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    state = tx.init(params)
    for loss, falls in ((1.0, 0), (jnp.inf, 1), (1.0, 1)):
        updates, state = tx.update(params, state, params, value=jnp.float32(loss))
        assert int(l2o.optimizers.Guard.of(state).falls) == falls
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
    with pytest.raises(l2o.ArgumentError, match="one `Safeguarded`. Got 0"):
        l2o.optimizers.Guard.of(params)


def test_what_it_refuses():
    inner = Scaled(jnp.float32(1.0))
    with pytest.raises(l2o.ArgumentError, match=r"memory=...\)` must be an integer, at least 1. Got 0"):
        Safeguarded(inner, SGD, 0)
    assert Safeguarded(Scaled(jnp.float32(1.0)), SGD).needs() == {"value"}
