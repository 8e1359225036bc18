"""`Safeguarded`: as good as its fallback where the inner optimizer is bad, as that one where it is good."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import LookingLSTM, RootMeanSquare

import l2o_eqx as l2o
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import Blocks, Clipped, CoordinatewiseLSTM, Guard, Safeguarded, Whole
from l2o_eqx.optimizers._guard import Span

FAMILY = Quadratic(4)
SGD = optax.sgd(0.05)
STEPS = 120


def loss(x):
    return jnp.sum(jnp.array([1.0, 10.0]) * x**2)


def _minimize(optimizer, params, objective, num_steps):
    """Losses at, and params after, every step; and the last state."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, params)

    (_, state), (losses, points) = jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)
    return losses, points, state


@jax.jit
def run(optimizer, x, minimum=0.0):
    return _minimize(optimizer, x, lambda x: loss(x - minimum), STEPS)


START = jnp.array([1.0, -2.0])


class Scaled(l2o.optimizers.AbstractOptimizer):
    """Gradient descent at a rate that is data: one program runs what diverges, stands still and is good."""

    rate: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        return jax.tree.map(lambda g: -self.rate * g, grads), None


@pytest.mark.parametrize("rate", [1.0, 1e30, np.nan, np.inf, -0.01, 0.0], ids=str)
def test_ends_as_well_as_the_fallback_where_the_inner_one_is_bad(rate):
    """It ends as the fallback does some steps earlier: two of each trial, or 33 where it stalls."""
    safe = Safeguarded(Scaled(jnp.float32(rate)), Scaled(jnp.float32(0.06)))
    losses, points, state = run(safe, START)
    expected, _, _ = run(Scaled(jnp.float32(0.06)), START)
    falls = int(state.guard.falls)
    # At a rate of 1, one coordinate changes its sign, and once the other is 0 the loss stands still.
    lost = 33 if rate in (1.0, 0.0, -0.01) else 3 * falls
    assert np.all(np.isfinite(points)) and 1 <= falls <= 1 + np.log(3 * STEPS) / np.log(4)
    assert losses[-1] <= expected[-1 - lost] and losses[-1] < 1e-4 * losses[0]
    assert state.guard.fallback_steps >= STEPS - lost


@pytest.mark.parametrize("rate", [0.02, 0.005, 1e-4], ids=str)
def test_ends_as_well_as_the_fallback_where_the_inner_one_is_slower(rate):
    """Both make progress: of 120 steps, the slower one takes two or three spans of 5 and one of 10."""
    good, slow = Scaled(jnp.float32(0.06)), Scaled(jnp.float32(rate))
    expected, _, _ = run(good, START)
    losses, _, state = run(Safeguarded(slow, good), START)
    assert losses[-1] <= expected[-1 - 33] and state.guard.falls >= 1
    assert 87 <= state.guard.fallback_steps < STEPS
    losses, _, state = run(Safeguarded(good, slow), START)
    assert losses[-1] <= expected[-1 - 18] and state.guard.falls == 0
    assert 1 <= state.guard.fallback_steps <= 18


def test_a_gallery_optimizer_that_is_slower_than_adam_on_logistic_regression(getkey):
    """Without falling back it ends several times as high."""
    inputs = jax.random.normal(getkey(), (200, 20))
    labels = jnp.sign(inputs @ jax.random.normal(getkey(), (20,)))

    def objective(p):
        return jnp.mean(jax.nn.softplus(-labels * (inputs @ p["w"] + p["b"])))

    def losses(transformation):
        start = {"w": jnp.zeros(20), "b": jnp.zeros(())}
        return jax.jit(lambda params: _minimize(transformation, params, objective, 200)[0])(start)

    inner, adam = l2o.pretrained("mnist"), optax.adam(0.1)
    alone, theirs = losses(l2o.as_optax(inner)), losses(optax.with_extra_args_support(adam))
    assert alone[-1] > 2 * theirs[-1]
    assert losses(l2o.as_optax(Safeguarded(inner, adam)))[-1] <= theirs[130]


def test_the_line_through_a_span_and_its_error(getkey):
    """NumPy's fit, and the spread of the fall over draws of noise."""
    values = jax.random.normal(getkey(), (2000, 12)) + (5 - 0.5 * jnp.arange(12))[None]

    def fit(losses):
        span = Span.at(losses[0])
        for i in range(1, losses.size):
            bend = losses[i] - 2 * losses[i - 1] + losses[i - 2] if i > 1 else losses[0]
            span = span.then(losses[i], bend)
        return span.fall()

    falls, errors = jax.vmap(fit)(values)
    slopes = np.polyfit(np.arange(12), np.asarray(values).T, 1)[0]
    np.testing.assert_allclose(falls, -11 * slopes, rtol=1e-3, atol=1e-4)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(float(np.std(falls)), rel=0.1)
    np.testing.assert_allclose(fit(jnp.float32([3.0, 2.0, 1.0])), (2.0, 0.0), atol=1e-6)


@jax.jit
def tell(guard, value):
    return guard.after(value, guard.refuses(value, 10), jnp.array(False), 10)


def follow(first, inner, other, losses=None, num_steps=130):
    """Who moves, and the last guard, where every step multiplies the loss by one factor or the other."""
    guard, value, moves = Guard.new((), jnp.dtype(jnp.float32), None), jnp.float32(first), []
    for t in range(num_steps):
        told = jnp.float32((losses or {}).get(t, value))
        guard, by_inner = tell(guard, told)
        value = value * (inner if by_inner else other)
        moves.append(bool(by_inner))
    return moves, guard


@pytest.mark.parametrize("inner, other", [(0.7, 0.99), (0.99, 0.8), (0.9, 0.89)])
def test_decisions_do_not_depend_on_the_unit_of_the_loss(inner, other):
    expected, _ = follow(1.0, inner, other, num_steps=60)
    for unit in (1e-24, 1e25):
        assert follow(unit, inner, other, num_steps=60)[0] == expected
    # The better one has most of the steps.
    assert (np.mean(expected) > 0.8) == (inner < other)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 1, 7, 10, 12, 15, 18, 21])
def test_losses_that_are_not_finite_leave_no_trace(at, loss):
    """Whoever moves then, the better one moves in the end, and all that is known is finite."""
    for inner, other in ((0.7, 0.99), (0.99, 0.7)):
        moves, guard = follow(1e5, inner, other, losses={at: loss})
        # A trial that it ends is repeated after 80 steps.
        assert (np.mean(moves[95:]) > 0.5) == (inner < other)
        known = (
            guard.bound,
            guard.change,
            guard.last,
            guard.incumbent_fall,
            guard.challenger_fall,
            guard.span,
        )
        assert all(np.isfinite(x) for x in jax.tree.leaves(known))


def test_an_update_that_is_not_finite_starts_no_trial():
    """At the end of a span, as at any other step, the fallback moves, and for one more."""
    guard, moves = Guard.new((), jnp.dtype(jnp.float32), None), True
    for value in range(20, 9, -1):
        broken = jnp.array(value == 10)
        guard, moves = guard.after(jnp.float32(value), jnp.array(False), broken, 10)
    assert (bool(moves), int(guard.phase), int(guard.hold), int(guard.falls)) == (False, 0, 2, 1)


@pytest.mark.parametrize("rate", [5.0, 1e10, np.inf, np.nan], ids=str)
def test_is_the_inner_optimizer_where_that_is_good(rate):
    """A fallback that diverges has two trials of a step, after which the params are back; or stands still."""
    lost = 4 if np.isfinite(rate) else 15
    good = Scaled(jnp.float32(0.005))
    losses, points, state = run(Safeguarded(good, Scaled(jnp.float32(rate))), START, 1.0)
    expected, _, _ = run(good, START, 1.0)
    assert losses[-1] <= 1.001 * expected[-2 - lost] and np.all(np.isfinite(points))
    assert state.guard.falls == 0 and state.guard.fallback_steps == lost


class Breaking(l2o.optimizers.AbstractOptimizer):
    """Coordinatewise gradient descent whose fourth step is infinite for some and huge for the others."""

    rate: jax.Array

    def layout(self, shapes):
        return Blocks()

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, grads, state, params, *, value=None, key=None):
        def one(g, t):
            odd = jnp.where(g > 0, jnp.inf, 1e30)
            return jnp.where(t == 3, odd, -self.rate * g)

        return jax.tree.map(one, grads, state), jax.tree.map(lambda t: t + 1, state)


def test_in_blocks_all_coordinates_decide_alike():
    """Also where the update of one of them is not finite: the loss says for all whether to go back."""
    safe = Safeguarded(Breaking(jnp.float32(0.02)), RootMeanSquare(jnp.float32(0.05)))
    tx = l2o.as_optax(safe)
    params: Any = jnp.array([3.0, -2.0])
    state: Any = tx.init(params)
    value = jnp.inf
    for _ in range(12):
        value, grads = jax.value_and_grad(lambda x: loss(x - 1) + (x[0] * x[1]) ** 2)(params)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        for x in jax.tree.leaves(state.inner.arrays.guard):
            assert np.all(np.asarray(x) == np.ravel(x)[0])
    assert Guard.of(state).falls >= 1 and np.all(np.isfinite(params)) and value < 20


def test_a_trained_optimizer_is_not_slowed_on_what_it_was_trained_for(getkey):
    """Of 160 steps the fallback has a span of 5 and one of 10, after which the other settles again."""
    inner = l2o.pretrained("quadratic")
    key = getkey()
    safe, plain = (
        l2o.evaluate(one, Quadratic(16), num_steps=160, num_objectives=8, key=key).losses
        for one in (Safeguarded(inner, optax.adam(0.1)), inner)
    )
    assert np.median(np.log10(safe[:, -1]) - np.log10(plain[:, 130])) < 0
    assert np.max(safe[:, -1]) <= np.max(plain[:, 100])


def test_losses_are_bounded_by_what_was_accepted():
    """The first rule, on the run itself: after a refused point comes one that was accepted before it."""
    losses, _, state = run(Safeguarded(Scaled(jnp.float32(0.12)), Scaled(jnp.float32(0.01)), 3), START)
    losses = np.asarray(losses)
    assert state.guard.falls > 0 and np.any(losses[1:] > losses[0])
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
    with pytest.raises(l2o.ArgumentError, match="at most 262144"):
        Safeguarded(inner, SGD, 2**33)
    assert Safeguarded(Scaled(jnp.float32(1.0)), SGD).needs() == {"value"}
