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
from l2o_eqx._draws import losses_of
from l2o_eqx._search._badmm import badmm_step, init_badmm
from l2o_eqx._search._controllers import linearized
from l2o_eqx._search._fitter import Fitter
from l2o_eqx._search._mirror import init_mirror, mirror_step
from l2o_eqx._search._problem import Drawn, SearchSettings
from l2o_eqx.callbacks import Checkpoint, load_checkpoint
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, Mixture, Quadratic
from l2o_eqx.optimizers import Clipped, FromOptax, LearnedStart, PolicyOptimizer
from l2o_eqx.weightings import Constant

NUM_STEPS, RATE = 5, 0.05


class Bowl(AbstractObjective):
    """½·Σ c_i (θ_i − m_i)², or NaN everywhere."""

    curvatures: jax.Array
    minimum_at: jax.Array
    broken: jax.Array

    def init(self, key):
        return jnp.ones(2, self.curvatures.dtype)

    def loss(self, params, step, key):
        value = jnp.sum(self.curvatures * (params - self.minimum_at) ** 2) / 2
        # Its derivatives, too.
        return value * jnp.where(self.broken, jnp.nan, 1.0)


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


METHODS = ("mirror-descent", "badmm")
SETTINGS = SearchSettings(NUM_STEPS, 3, "full", 2, 1, 0.2, RATE, 0.1, 0.01, 0.1, Constant(), 1, 1)


@pytest.fixture(scope="module", params=METHODS)
def found(request):
    return request.param, search(method=request.param)


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
    settings = SETTINGS
    keys = jr.split(jr.key(2), 3)
    drawn = Drawn.of(Bowls(), keys, Restarts(None))
    full = init_badmm(drawn, settings, Restarts(None)).controllers
    diagonal = init_badmm(drawn, settings._replace(structure="diagonal"), Restarts(None)).controllers
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


def test_a_policy_on_its_own_goes_where_an_optimizer_goes():
    settings = SETTINGS._replace(num_samples=30)
    drawn = Drawn.of(Bowls(), jr.split(jr.key(2), 3), Restarts(None))
    problem = drawn.problem(drawn.arrays, settings)
    arrays, static = eqx.partition(policy(), eqx.is_array)
    fitter = Fitter(static, optax.adam(1e-3), problem)
    quiet, answers = fitter.sample(arrays, 1e-14 * jnp.eye(2)[None], jr.key(0))
    reached = losses_of(policy(), problem.draws, NUM_STEPS)
    np.testing.assert_allclose(quiet.losses[:, 0, :-1], reached, rtol=1e-5)
    np.testing.assert_allclose(fitter.means(arrays, quiet), answers, rtol=1e-5, atol=1e-8)
    noisy, answers = fitter.sample(arrays, 1e-2 * jnp.eye(2)[None], jr.key(0))
    np.testing.assert_allclose(fitter.means(arrays, noisy), answers, rtol=1e-5, atol=1e-8)
    noise = noisy.points[:, :, 1:] - noisy.points[:, :, :-1] - answers
    np.testing.assert_allclose(np.std(noise), 0.1, rtol=0.1)


def test_the_regression_of_gradient_descent_is_its_controller():
    """On a bowl gradient descent is linear in θ: u = −α·c·(θ − m)."""
    settings = SETTINGS._replace(num_samples=100)
    keys = jr.split(jr.key(2), 3)
    drawn = Drawn.of(Bowls(), keys, Restarts(None))
    problem = drawn.problem(drawn.arrays, settings)
    arrays, static = eqx.partition(FromOptax(optax.sgd(RATE)), eqx.is_array)
    noise = 0.01 * jnp.eye(2)[None]
    paths, answers = Fitter(static, optax.adam(1e-3), problem).sample(arrays, noise, jr.key(0))
    regressed = linearized(problem, answers, paths, noise, with_rest=True)
    exact = init_badmm(drawn, settings, Restarts(None)).controllers
    # All begin at one point, where nothing can be told apart.
    for name in ("gains", "offsets"):
        got, expected = (getattr(x, name)[:, :, 1:] for x in (regressed, exact))
        np.testing.assert_allclose(got, expected, rtol=0.05, atol=1e-3)
    np.testing.assert_allclose(regressed.covariances, jnp.broadcast_to(noise, (3, 1, 5, 2, 2)), atol=1e-4)


def test_a_policy_learns_more_than_gradient_descent(found):
    found = found[1]
    assert found.result == "completed" and not found.failed
    test: dict[str, Any] = dict(num_steps=NUM_STEPS + 1, num_objectives=32, key=jr.key(9))
    ours = np.mean(l2o_eqx.evaluate(found.optimizer, Bowls(), **test).losses[:, -1])
    descent = np.mean(l2o_eqx.evaluate(optax.sgd(RATE), Bowls(), **test).losses[:, -1])
    assert ours < 0.7 * descent
    assert found.metrics["teacher_loss"][-1] < found.metrics["teacher_loss"][0]


def test_a_search_goes_on_where_it_ended(found, tmp_path):
    method, found = found
    search(method=method, super_epochs=2, callbacks=[Checkpoint(tmp_path)])
    rest = search(method=method, state=load_checkpoint(tmp_path))
    for x, y in zip(jax.tree.leaves(rest.state.alone()), jax.tree.leaves(found.state.alone()), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(rest.metrics["meta_loss"][-1], found.metrics["meta_loss"][-1])


@pytest.mark.parametrize("method", METHODS)
def test_objectives_that_are_not_finite_are_left_out_and_named(method):
    family = Bowls(0.5)
    result = search(method=method, family=family, super_epochs=2)
    assert all(bool(family.sample(failed.key).broken) for failed in result.failed)
    bad = [{str(jr.key_data(f.key)) for f in result.failed if f.super_epoch == i} for i in (1, 2)]
    for keys, count in zip(bad, result.metrics["failed_objectives"], strict=True):
        assert 0 < len(keys) == count < SMALL["num_objectives"]
    # New ones in every super epoch, or the same for ever.
    assert (bad[0] == bad[1]) == (method == "badmm")
    for leaf in jax.tree.leaves(eqx.filter(result.optimizer, eqx.is_inexact_array)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_learned_where_all_fail(method):
    result = search(method=method, family=Bowls(1.0), super_epochs=2)
    assert result.metrics["failed_objectives"].tolist() == [16, 16]
    for x, y in zip(jax.tree.leaves(result.optimizer), jax.tree.leaves(policy()), strict=True):
        np.testing.assert_array_equal(x, y)
    # Nor is what Adam remembers of a better time.
    before = search(method=method, super_epochs=1)
    after = search(method=method, super_epochs=2, family=Bowls(1.0), state=before.state)
    for x, y in zip(jax.tree.leaves(after.optimizer), jax.tree.leaves(before.optimizer), strict=True):
        np.testing.assert_array_equal(x, y)


class Steep(AbstractObjectiveFamily):
    """Bowls, some of which are so steep that nothing can be said of where a step leads."""

    def sample(self, key):
        bowl = Bowls().sample(key)
        steep = jr.bernoulli(jr.fold_in(key, 1), 0.2)
        return eqx.tree_at(lambda b: b.curvatures, bowl, bowl.curvatures * jnp.where(steep, 1e17, 1.0))


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("method", METHODS)
def test_a_few_hopeless_objectives_do_not_end_a_search(method, structure):
    result = search(method=method, structure=structure, family=Steep(), super_epochs=2)
    assert all(0 < n < 8 for n in result.metrics["failed_objectives"])
    assert np.all(np.isfinite(result.metrics["meta_loss"]))
    for leaf in jax.tree.leaves(eqx.filter(result.optimizer, eqx.is_inexact_array)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_params_of_half_precision(method, dtype):
    class Half(AbstractObjectiveFamily):
        def sample(self, key):
            where = lambda b: (b.curvatures, b.minimum_at)  # noqa: E731
            bowl = Bowls().sample(key)
            return eqx.tree_at(where, bowl, [x.astype(dtype) for x in where(bowl)])

    result = search(method=method, family=Half(), super_epochs=1)
    assert not result.failed and np.isfinite(result.metrics["meta_loss"][0])


@pytest.mark.parametrize(("init", "step"), [(init_mirror, mirror_step), (init_badmm, badmm_step)])
def test_a_step_calls_lapack_once_at_a_time(init: Any, step: Any):
    """Batches of matrices that do not depend on each other can wait for each other in XLA's threads."""
    runs, adam = Restarts(None), optax.adam(1e-3)
    drawn = Drawn.of(Bowls(), jr.split(jr.key(2), 3), runs)
    meta_state = adam.init(eqx.filter(policy(), eqx.is_inexact_array))
    start = init(drawn, SETTINGS, runs)
    lowered = step.lower(policy(), meta_state, start, drawn, jr.key(0), SETTINGS, adam, runs)
    # Compiled, because equal calls are one function before.
    calls = re.findall(r'custom_call_target="(lapack_\w+)"', lowered.compile().compiled.as_text())
    # The absolute values of the Hessians, one step after the other.
    assert calls == ["lapack_ssyevd_ffi"]


@pytest.mark.parametrize("method", METHODS)
def test_restarts_are_searched_for_as_if_alone(method):
    make = jax.vmap(lambda key: PolicyOptimizer(2, 2, 8, key=key))
    settings = dict(method=method, super_epochs=1, inner_iterations=1, fit_updates=5)
    batch = make(jr.split(jr.key(3), 2))
    both = search(batch, restarts=2, **settings)
    assert both.metrics["final_loss"].shape == (1, 2)
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
