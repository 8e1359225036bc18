"""Estimators, and what optimizers and objectives may ask of them, against plain automatic differentiation."""

import dataclasses
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import ESTIMATORS, LEARNED, assert_trees_close, sparing, to_float64
from jax import lax

import l2o_eqx
from l2o_eqx.estimators import (
    ES,
    FIRST_ORDER,
    Auto,
    Backprop,
    ClippedPerObjective,
    Recorded,
    Replay,
    first_window,
)
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, Quadratic, sample_objectives
from l2o_eqx.optimizers import AbstractOptimizer, Blocks, Clipped, PerLayer
from l2o_eqx.strategies import (
    AbstractUpdateStrategy,
    EveryStep,
    EveryWindow,
    OncePerSuperEpoch,
    SuperEpoch,
    grad_metrics,
)
from l2o_eqx.weightings import Constant, Linear

FIRST = {
    "keep": Backprop(),
    "recompute": Backprop(recompute=True),
    "replay": Replay(),
    "recorded": Recorded(),
    "clipped": ClippedPerObjective(Replay(), 1e9),
}
SECOND = {"keep": Backprop(()), "recompute": Backprop((), recompute=True), "auto": Auto(())}


class Started(AbstractOptimizer):
    """A learned starting point in front of another optimizer."""

    inner: AbstractOptimizer
    shift: jax.Array

    def layout(self, shapes):
        return self.inner.layout(shapes)

    def initial_params(self, params):
        return jax.tree.map(lambda p: 0.5 * p + self.shift, params)

    def init(self, params):
        return self.inner.init(params)

    def update(self, grads, state, params, *, value=None, key=None):
        return self.inner.update(grads, state, params)


class Valued(AbstractOptimizer):
    """Moves less where the loss is small; sees every coordinate alone."""

    rate: jax.Array
    apart: bool = eqx.field(static=True)

    def layout(self, shapes):
        return Blocks() if self.apart else super().layout(shapes)

    def wants(self):
        return frozenset({"value"})

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        assert value is not None
        return -self.rate * grads * value / (1 + value), state


class Noisy(AbstractOptimizer):
    """Draws at every step how far to go."""

    rate: jax.Array
    apart: bool = eqx.field(static=True)

    def layout(self, shapes):
        return Blocks() if self.apart else super().layout(shapes)

    def wants(self):
        return frozenset({"key"})

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        assert key is not None
        return -self.rate * grads * jr.uniform(key, grads.shape, grads.dtype), state


class HeldOut(AbstractObjective):
    """Judged by another quadratic than the one that is minimized."""

    train: AbstractObjective
    test: AbstractObjective

    def init(self, key):
        return self.train.init(key)

    def loss(self, params, step, key):
        return self.train.loss(params, step, key)

    def outer_loss(self, params, step, key):
        return self.test.loss(params, step, key)


class HeldOutFamily(AbstractObjectiveFamily):
    def sample(self, key):
        return HeldOut(Quadratic(3).sample(key), Quadratic(3).sample(jr.fold_in(key, 1)))


def window_of(optimizer, family, *, include_final_loss=False, length=4, num_objectives=2):
    """The first window of a super epoch of 6, in float64."""
    keys = jr.split(jr.key(3), num_objectives)
    objectives = to_float64(sample_objectives(family, keys))
    return first_window(
        optimizer,
        objectives,
        length,
        num_steps=6,
        init_keys=keys,
        loss_keys=keys,
        include_final_loss=include_final_loss,
    )


def plain(optimizer, window, constants):
    """The definition: automatic differentiation of a loop over steps, without any part of the engine."""

    def shown(name, x):
        return lax.stop_gradient(x) if name in constants else x

    def one(optimizer, own, params, key):
        objective, losses = window.objectives.select(own), []
        params = optimizer.initial_params(params)
        state = lax.stop_gradient(optimizer.init(params))
        for t in range(window.length + window.include_final_loss):
            value, grads = jax.value_and_grad(objective.loss)(params, t, key)
            losses.append(objective.outer_loss(params, t, key))
            asked = {"value": shown("value", value)} if "value" in optimizer.wants() else {}
            updates, state = optimizer.update(
                shown("grads", grads), shown("state", state), shown("params", params), **asked
            )
            params = params + updates
        return Linear()(jnp.stack(losses), 0, 6)

    @eqx.filter_jit
    @eqx.filter_grad
    def mean(optimizer):
        each = jax.vmap(one, in_axes=(None, 0, 0, 0))
        return jnp.mean(each(optimizer, window.objectives.own, window.params, window.keys))

    return mean(optimizer)


def grads_of(estimator, optimizer, window, key=None):
    @eqx.filter_jit
    def run(optimizer, window, key):
        state = estimator.init(optimizer, window, key=key)
        return estimator.estimate(optimizer, window, Linear(), state, key=key)[0].grads

    return run(optimizer, window, jr.key(5) if key is None else key)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_says_where_the_window_ends(name, getkey):
    """And the meta-loss of the run itself; its gradient has the structure of the optimizer."""
    optimizer, estimator = LEARNED["lstm_signed_log"](getkey()), ESTIMATORS[name]()
    keys = jr.split(jr.key(3), 2)
    window = first_window(
        optimizer,
        sample_objectives(Quadratic(3), keys),
        4,
        num_steps=4,
        init_keys=keys,
        loss_keys=keys,
    )

    @eqx.filter_jit
    def run(optimizer, window):
        state = estimator.init(optimizer, window, key=keys[0])
        return estimator.estimate(optimizer, window, Linear(), state, key=keys[1])[0]

    result = run(optimizer, window)
    params, _, record = window.run(optimizer)
    meta_loss, health = window.meta_loss(Linear(), record)
    assert_trees_close((result.params, result.losses), (params, record.losses))
    np.testing.assert_allclose(result.meta_loss, meta_loss, rtol=1e-5)
    assert_trees_close(result.health, health)
    trained = eqx.filter(optimizer, eqx.is_inexact_array)
    assert jax.tree.structure(result.grads) == jax.tree.structure(trained)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(result.grads))
    assert any(np.any(g != 0) for g in jax.tree.leaves(result.grads))


@pytest.mark.parametrize("include_final_loss", [False, True])
@pytest.mark.parametrize(
    "inner", sparing(["user_looking_lstm", "user_scaled_gradient"], but=["user_looking_lstm"])
)
def test_a_learned_start_is_differentiated_by_every_estimator(inner, include_final_loss, getkey):
    """λ_0 = Σ w_t ∇f(θ_t), with and without second derivatives; later windows know nothing of it."""
    with jax.enable_x64(True):
        optimizer = to_float64(Started(LEARNED[inner](getkey()), jnp.asarray(0.3)))
        window = window_of(optimizer, Quadratic(3), include_final_loss=include_final_loss)
        assert window.begins
        for estimators, constants in ((FIRST, FIRST_ORDER), (SECOND, frozenset())):
            expected = plain(optimizer, window, constants)
            for estimator in estimators.values():
                found = grads_of(estimator, optimizer, window)
                assert_trees_close(found, expected, rtol=1e-9, atol=1e-9)
            assert expected.shift != 0
        later = dataclasses.replace(window, begins=False)
        assert grads_of(Replay(), optimizer, later).shift == 0


@pytest.mark.parametrize("estimator", [Auto(), Recorded()])
@pytest.mark.parametrize("make", [EveryWindow, EveryStep, OncePerSuperEpoch])
def test_strategies_train_a_learned_start(make, estimator, getkey):
    """The first meta-gradient is that of the first window, the others leave the start alone."""
    length = 6 if make is OncePerSuperEpoch else 3
    settings: dict[str, Any] = {} if make is OncePerSuperEpoch else {"window": 3}
    strategy = make(estimator=estimator, **settings)
    with jax.enable_x64(True):
        optimizer = to_float64(Started(LEARNED["user_scaled_gradient"](getkey()), jnp.asarray(0.3)))
        window = window_of(optimizer, Quadratic(3), length=length)

        def meta_update(optimizer, kept, grads):
            i, shifts = kept
            return optimizer, (i + 1, shifts.at[i].set(grads.shift))

        result = eqx.filter_jit(strategy.super_epoch)(
            optimizer,
            (jnp.asarray(0), jnp.full(strategy.num_updates(6), jnp.nan)),
            window.objectives,
            meta_update=meta_update,
            weighting=Linear(),
            num_steps=6,
            init_keys=window.keys,
            loss_keys=window.keys,
            key=jr.key(0),
        )
        expected = plain(optimizer, window, FIRST_ORDER).shift
        np.testing.assert_allclose(result.meta_state[1][0], expected, rtol=1e-9)
        np.testing.assert_array_equal(result.meta_state[1][1:], 0)
        # The run itself begins where the optimizer says.
        start = jax.vmap(optimizer.initial_params)(window.params)
        first = jax.vmap(lambda own, p, k: window.objectives.select(own).loss(p, 0, k))
        np.testing.assert_allclose(result.losses[0], first(window.objectives.own, start, window.keys))


def test_evaluation_begins_at_a_learned_start(getkey):
    optimizer = Started(LEARNED["user_scaled_gradient"](getkey()), jnp.asarray(7.0))
    near, far = (
        l2o_eqx.evaluate(o, Quadratic(3), num_steps=2, num_objectives=3, key=getkey())
        for o in (optimizer.inner, optimizer)
    )
    assert np.all(far.losses[:, 0] > near.losses[:, 0])
    wrapped = Clipped(PerLayer({"params": optimizer}), 0.1)
    np.testing.assert_allclose(wrapped.initial_params(jnp.ones(2)), 7.5)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("constants", [FIRST_ORDER, frozenset({"grads", "params"}), frozenset()], ids=sorted)
def test_value(constants, apart):
    """The loss is shown, in blocks to every coordinate that of its objective; a constant if it is said so."""
    with jax.enable_x64(True):
        optimizer = Valued(jnp.asarray(0.05), apart)
        window = window_of(optimizer, Quadratic(3))
        expected = plain(Valued(optimizer.rate, False), window, constants).rate
        for estimator in (
            FIRST.values() if constants == FIRST_ORDER else (Backprop(constants), Auto(constants))
        ):
            found = grads_of(estimator, optimizer, window)
            np.testing.assert_allclose(found.rate, expected, rtol=1e-9)


def test_value_decides_by_itself_what_is_constant():
    with jax.enable_x64(True):
        optimizer = Valued(jnp.asarray(0.05), False)
        window = window_of(optimizer, Quadratic(3))
        first, flowing = (plain(optimizer, window, c).rate for c in (FIRST_ORDER, {"grads", "params"}))
        assert not np.isclose(first, flowing, rtol=1e-3)


@pytest.mark.parametrize("apart", [False, True])
def test_keys_are_the_same_whenever_a_step_is_taken_again(apart):
    with jax.enable_x64(True):
        optimizer = Noisy(jnp.asarray(0.05), apart)
        window = window_of(optimizer, Quadratic(3))
        kept, *others = (grads_of(FIRST[name], optimizer, window) for name in ("keep", "recompute", "replay"))
        for other in others:
            assert_trees_close(other, kept, rtol=1e-9)
        params, _, record = eqx.filter_jit(window.run)(optimizer)
        ratios = (params - window.params) / jnp.sum(record.grads.reshape(4, 2, 3), 0)
        assert np.unique(np.round(ratios, 6)).size == 6, "every entry draws for itself"


@pytest.mark.parametrize("include_final_loss", sparing([False, True], but=[False]))
def test_outer_loss(include_final_loss, getkey):
    """The weighting weighs it; the optimizer is shown the loss."""
    with jax.enable_x64(True):
        optimizer = to_float64(LEARNED["user_looking_lstm"](getkey()))
        window = window_of(optimizer, HeldOutFamily(), include_final_loss=include_final_loss)
        for estimators, constants in ((FIRST, FIRST_ORDER), (SECOND, frozenset())):
            expected = plain(optimizer, window, constants)
            for estimator in estimators.values():
                assert_trees_close(grads_of(estimator, optimizer, window), expected, rtol=1e-9, atol=1e-9)
        assert Quadratic(3).sample(jr.key(0)).has_outer_loss() is False
        scaled = l2o_eqx.objectives.Scaled(HeldOutFamily(), 0.5, 2.0).sample(jr.key(0))
        params = scaled.init(jr.key(1))
        np.testing.assert_allclose(
            scaled.outer_loss(params, 0, jr.key(2)) / scaled.loss(params, 0, jr.key(2)),
            scaled.objective.outer_loss(scaled.inner(params), 0, jr.key(2))
            / scaled.objective.loss(scaled.inner(params), 0, jr.key(2)),
        )


@pytest.mark.parametrize("name", ["EveryStep", "EveryWindow"])
def test_outer_loss_in_strategies(name, getkey):
    """Of windows that overlap and of others, the first meta-loss is that of the first window."""
    strategy = {"EveryStep": EveryStep(3, Recorded()), "EveryWindow": EveryWindow(3)}[name]
    solution = l2o_eqx.meta_train(
        LEARNED["user_scaled_gradient"](getkey()),
        HeldOutFamily(),
        strategy,
        num_steps=3,
        super_epochs=1,
        key=jr.key(0),
    )
    okey, ikey, lkey = (jr.split(k, 1) for k in jr.split(jr.fold_in(jr.key(0), 0), 3))
    objectives = sample_objectives(HeldOutFamily(), okey)
    optimizer = LEARNED["user_scaled_gradient"](getkey())
    window = first_window(optimizer, objectives, 3, num_steps=3, init_keys=ikey, loss_keys=lkey)
    *_, record = window.run(optimizer)
    assert record.outer is not None
    np.testing.assert_allclose(solution.metrics["meta_loss"][0], jnp.sum(record.outer[0]), rtol=1e-5)
    assert not np.allclose(record.outer[0], record.losses)


def test_es_is_the_gradient_of_a_smoothed_quadratic():
    """L(φ) = f(θ_1) + f(θ_1 − φθ_1), f(θ) = θ²/2, θ_1 = 3: smoothing a quadratic leaves L' = −9(1 − φ).

    A pair gives L'·ε²; the mean of 4,000 has a standard deviation of 2.2 %.
    """

    class Half(AbstractObjective):
        def init(self, key):
            return jnp.asarray(3.0)

        def loss(self, params, step, key):
            return params**2 / 2

    class Step(AbstractOptimizer):
        rate: jax.Array

        def init(self, params):
            return None

        def update(self, grads, state, params, *, value=None, key=None):
            return -self.rate * grads, state

    result = l2o_eqx.meta_gradient(
        Step(jnp.asarray(0.1)),
        Half(),
        jnp.asarray(3.0),
        None,
        window=2,
        weighting=Constant(),
        key=jr.key(0),
        estimator=ES(0.5, 4000),
    )
    np.testing.assert_allclose(result.grads.rate, -8.1, rtol=0.09)
    np.testing.assert_allclose(result.losses, [4.5, 3.645], rtol=1e-6)


def test_the_mean_of_es_is_the_true_gradient():
    """With 3 meta-parameters and 4,000 pairs its error is about √(4/4000) = 3 % of the gradient's norm."""
    with jax.enable_x64(True):
        optimizer = to_float64(Started(LEARNED["user_scaled_gradient"](jr.key(0)), jnp.asarray(0.3)))
        window = window_of(optimizer, Quadratic(3))
        expected = jnp.stack(jax.tree.leaves(grads_of(Backprop(()), optimizer, window)))
        found = jnp.stack(jax.tree.leaves(grads_of(ES(1e-3, 4000), optimizer, window)))
        assert jnp.linalg.norm(found - expected) < 0.12 * jnp.linalg.norm(expected)
        again = jnp.stack(jax.tree.leaves(grads_of(ES(1e-3, 4000), optimizer, window, jr.key(6))))
        assert not np.allclose(again, found, rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Backprop({"grad"}), "'grads', 'params', 'state', 'value'.* Got 'grad'"),
        (lambda: Auto("grads"), "Got 'a'"),
        (lambda: ES(0.0), "std=0.0"),
        (lambda: ES(num_pairs=0), "num_pairs=0"),
        (lambda: Clipped(LEARNED["lstm_identity"](jr.key(0)), 0.0), "max_delta=0.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recorded_gradient_can_be_clipped_per_objective(getkey):
    """Clipped at nothing, with records of other optimizers, it is what it was."""
    optimizer = LEARNED["lstm_adam_like"](getkey())
    settings: dict[str, Any] = {"num_steps": 5, "super_epochs": 1, "num_objectives": 2, "key": getkey()}
    one, other = (
        l2o_eqx.meta_train(optimizer, Quadratic(3), EveryStep(3, e), **settings)
        for e in (Recorded(), ClippedPerObjective(Recorded(), 1e9))
    )
    np.testing.assert_allclose(one.metrics["grad_norm"], other.metrics["grad_norm"], rtol=1e-4)


class Alternating(AbstractUpdateStrategy):
    """A strategy from public names alone: first and second order in turn, over the whole training."""

    window: int = eqx.field(static=True, default=3)

    def init(self, optimizer, *, key):
        return jnp.asarray(0)

    def num_updates(self, num_steps):
        return num_steps // self.window

    def super_epoch(
        self,
        optimizer,
        meta_state,
        objectives,
        *,
        meta_update,
        weighting,
        num_steps,
        init_keys,
        loss_keys,
        key,
        strategy_state=None,
    ):
        window = first_window(
            optimizer,
            objectives,
            self.window,
            num_steps=num_steps,
            init_keys=init_keys,
            loss_keys=loss_keys,
        )
        losses, meta_losses, metrics = [], [], []
        for i in range(self.num_updates(num_steps)):
            results = [e.estimate(optimizer, window, weighting, None, key=key)[0] for e in (Auto(), Auto(()))]
            second = (strategy_state + i) % 2
            grads = jax.tree.map(lambda *g: jnp.stack(g), *(r.grads for r in results))
            grads = jax.tree.map(operator.itemgetter(second), grads)
            optimizer, meta_state = meta_update(optimizer, meta_state, grads)
            window = window.after(results[0])
            losses.append(results[0].losses)
            meta_losses.append(results[0].meta_loss)
            metrics.append(grad_metrics(grads))
        return SuperEpoch(
            optimizer,
            meta_state,
            jnp.concatenate(losses),
            jnp.stack(meta_losses),
            jax.tree.map(lambda *x: jnp.stack(x), *metrics),
            window.health.sound,
            strategy_state + len(losses),
        )


@pytest.mark.parametrize("restarts", [None, 2])
def test_a_strategy_of_a_users_own_remembers(restarts, getkey):
    """One window a super epoch: the first is of first order, the second of second; also when resumed."""
    keys = getkey() if restarts is None else jr.split(getkey(), restarts)
    make = LEARNED["user_scaled_gradient"]
    optimizer = make(keys) if restarts is None else eqx.filter_vmap(make)(keys)
    key = getkey()

    def train(strategy, super_epochs, state=None):
        return l2o_eqx.meta_train(
            optimizer,
            Quadratic(3),
            strategy,
            num_steps=3,
            super_epochs=super_epochs,
            restarts=restarts,
            key=key,
            state=state,
        )

    half, whole = train(Alternating(), 1), train(Alternating(), 2)
    resumed = train(Alternating(), 2, half.state)
    np.testing.assert_array_equal(
        whole.state.strategy_state, np.full(np.shape(whole.state.strategy_state), 2)
    )
    assert eqx.tree_equal(whole.state, resumed.state)
    first = train(EveryWindow(3), 1)
    assert_trees_close(half.optimizer, first.optimizer, rtol=1e-5)
    with pytest.raises(ValueError, match="strategy and restarts"):
        train(EveryWindow(3), 2, half.state)
