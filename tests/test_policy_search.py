"""Policies: what they see, and what guided policy search makes of them."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import l2o_eqx
from l2o_eqx import policy_search
from l2o_eqx._devices import Restarts
from l2o_eqx._search._problem import Drawn, SearchSettings
from l2o_eqx._search._step import init_search, search_step
from l2o_eqx.callbacks import Checkpoint, load_checkpoint
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, Mixture, Quadratic
from l2o_eqx.optimizers import Clipped, LearnedStart, PolicyOptimizer
from l2o_eqx.weightings import Constant

NUM_STEPS, RATE = 5, 0.05


class Bowl(AbstractObjective):
    """½·Σ c_i (θ_i − m_i)², or NaN everywhere."""

    curvatures: jax.Array
    minimum_at: jax.Array
    broken: jax.Array

    def init(self, key):
        return jnp.ones(2)

    def loss(self, params, step, key):
        value = jnp.sum(self.curvatures * (params - self.minimum_at) ** 2) / 2
        return jnp.where(self.broken, jnp.nan, value)


class Bowls(AbstractObjectiveFamily):
    share_broken: float = eqx.field(static=True, default=0.0)

    def sample(self, key):
        ckey, mkey, bkey = jr.split(key, 3)
        broken = jr.uniform(bkey) < self.share_broken
        return Bowl(jr.uniform(ckey, (2,), minval=0.5, maxval=2.0), 0.3 * jr.normal(mkey, (2,)), broken)


SMALL: dict[str, Any] = dict(
    num_steps=NUM_STEPS,
    super_epochs=3,
    num_objectives=16,
    num_samples=4,
    inner_iterations=2,
    initial_rate=RATE,
    fit_updates=60,
    fit_batch=16,
    meta_optimizer=optax.adam(1e-2),
)


def policy(key=0, history=2, hidden=8):
    return PolicyOptimizer(2, history, hidden, key=jr.key(key))


def search(optimizer=None, family=None, **settings):
    given = {**SMALL, "key": jr.key(1), **settings}
    return policy_search(optimizer or policy(), family or Bowls(), **given)


@pytest.fixture(scope="module")
def found():
    return search()


def test_features_are_relative_changes_and_gradients():
    optimizer = PolicyOptimizer(2, 2, 4, floor=0.5, key=jr.key(0))
    values, grads = [2.0, 0.1, -1.0, 0.2], np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0], [0.25, 0.75]])
    state, answers = optimizer.init(jnp.zeros(2)), []
    for value, grad in zip(values, grads, strict=True):
        update, state = optimizer.update(
            jnp.asarray(grad, jnp.float32), state, None, value=jnp.asarray(value)
        )
        answers.append(update)
    nothing = [0.0, 0.0]
    seen = [
        [0, 0, *grads[0], *nothing],
        [(0.1 - 2) / 2, 0, *grads[1], *grads[0]],
        [(-1 - 0.1) / 1, (-1 - 2) / 2, *grads[2], *grads[1]],
        [(0.2 + 1) / 1, (0.2 - 0.1) / 0.5, *grads[3], *grads[2]],
    ]
    w, b, v, c = map(
        np.asarray, (optimizer.hidden, optimizer.hidden_bias, optimizer.readout, optimizer.readout_bias)
    )
    hidden = np.log1p(np.exp(np.array(seen) @ w.T + b))
    np.testing.assert_allclose(answers, hidden @ v.T + c, rtol=1e-4, atol=1e-6)


def test_controllers_begin_as_gradient_descent():
    settings = SearchSettings(NUM_STEPS, 3, "full", 1, 1, 0.2, RATE, 0.1, 0.01, 0.1, Constant(), 1, 1)
    keys = jr.split(jr.key(2), 3)
    drawn = Drawn.of(Bowls(), keys, Restarts(None))
    full = init_search(drawn, settings, Restarts(None)).controllers
    diagonal = init_search(drawn, settings._replace(structure="diagonal"), Restarts(None)).controllers
    for i, key in enumerate(keys):
        bowl = Bowls().sample(jr.split(key, 3)[0])
        # u = −α·c·(θ − m), at every step and everywhere.
        for t in range(NUM_STEPS):
            gain = full.gains[i, 0, t]
            np.testing.assert_allclose(gain, -RATE * np.diag(bowl.curvatures), rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(
                full.offsets[i, 0, t], RATE * bowl.curvatures * bowl.minimum_at, rtol=1e-4, atol=1e-6
            )
            # Random signs find the diagonal of a diagonal Hessian exactly.
            np.testing.assert_allclose(diagonal.gains[i, :, t, 0, 0], np.diagonal(gain), rtol=1e-5)


def test_a_policy_learns_more_than_the_descent_it_began_with(found):
    assert found.result == "completed" and not found.failed
    test: dict[str, Any] = dict(num_steps=NUM_STEPS + 1, num_objectives=32, key=jr.key(9))
    ours = np.mean(l2o_eqx.evaluate(found.optimizer, Bowls(), **test).losses[:, -1])
    descent = np.mean(l2o_eqx.evaluate(optax.sgd(RATE), Bowls(), **test).losses[:, -1])
    assert ours < 0.7 * descent
    assert found.metrics["teacher_loss"][-1] < found.metrics["teacher_loss"][0]


def test_a_search_goes_on_where_it_ended(found, tmp_path):
    search(super_epochs=2, callbacks=[Checkpoint(tmp_path)])
    rest = search(state=load_checkpoint(tmp_path))
    for x, y in zip(jax.tree.leaves(rest.state.alone()), jax.tree.leaves(found.state.alone()), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(rest.metrics["meta_loss"][-1], found.metrics["meta_loss"][-1])


def test_objectives_that_are_not_finite_are_left_out_and_named():
    family = Bowls(0.5)
    result = search(family=family, super_epochs=1)
    bad = [failed.key for failed in result.failed]
    assert 0 < len(bad) < SMALL["num_objectives"]
    assert all(bool(family.sample(key).broken) for key in bad)
    assert result.metrics["failed_objectives"][0] == len(bad)
    for leaf in jax.tree.leaves(eqx.filter(result.optimizer, eqx.is_inexact_array)):
        assert np.all(np.isfinite(leaf))


def test_a_step_calls_lapack_once_at_a_time():
    """Batches of matrices that do not depend on each other can wait for each other in XLA's threads."""
    settings = SearchSettings(NUM_STEPS, 3, "full", 2, 1, 0.2, RATE, 0.1, 0.01, 0.1, Constant(), 1, 1)
    runs, adam = Restarts(None), optax.adam(1e-3)
    drawn = Drawn.of(Bowls(), jr.split(jr.key(2), 3), runs)
    meta_state = adam.init(eqx.filter(policy(), eqx.is_inexact_array))
    start = init_search(drawn, settings, runs)
    step: Any = search_step
    lowered = step.lower(policy(), meta_state, start, drawn, jr.key(0), settings, adam, runs)
    # Compiled, because equal calls are one function before.
    calls = re.findall(r'custom_call_target="(lapack_\w+)"', lowered.compile().compiled.as_text())
    # The absolute values of the Hessians, one step after the other.
    assert calls == ["lapack_ssyevd_ffi"]


def test_restarts_are_searched_for_as_if_alone():
    make = jax.vmap(lambda key: PolicyOptimizer(2, 2, 8, key=key))
    settings = dict(super_epochs=1, inner_iterations=1, fit_updates=5)
    batch = make(jr.split(jr.key(3), 2))
    both = search(batch, restarts=2, **settings)
    # The other way round, each with the other's draws: nothing of one gets into the other.
    others = search(jax.tree.map(lambda x: x[::-1], batch), restarts=2, **settings)
    assert both.metrics["final_loss"].shape == (1, 2)
    np.testing.assert_array_equal(both.metrics["teacher_loss"], others.metrics["teacher_loss"])
    twice = search(jax.tree.map(lambda x: x[jnp.array([0, 0])], batch), restarts=2, **settings)
    first = [l2o_eqx.select_restart(result.optimizer, 0) for result in (both, twice)]
    for x, y in zip(*map(jax.tree.leaves, first), strict=True):
        np.testing.assert_array_equal(x, y)
    trained: Any = twice.optimizer
    assert not np.array_equal(trained.readout[0], trained.readout[1])


def test_what_cannot_be_searched_for_says_so():
    with pytest.raises(l2o_eqx.ArgumentError, match="one family at a time"):
        search(family=Mixture({"a": Bowls(), "b": Quadratic(2)}))
    with pytest.raises(l2o_eqx.ArgumentError, match="learned start is not searched"):
        search(LearnedStart(policy(), jnp.zeros(2)))
    with pytest.raises(l2o_eqx.ArgumentError, match="kl_step"):
        search(kl_step=0.0)
    with pytest.raises(l2o_eqx.ArgumentError, match="functions of so many coordinates"):
        policy().init(jnp.zeros(3))
    with pytest.raises(l2o_eqx.ArgumentError, match="needs the loss"):
        policy().update(jnp.zeros(2), policy().init(jnp.zeros(2)), None)
    assert Clipped(policy()).initial_params(jnp.zeros(2)).shape == (2,)
