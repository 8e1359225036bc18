"""Meta-gradients of all strategies against plain automatic differentiation of their definitions."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import FAMILIES, LEARNED, STRATEGIES, assert_trees_close, estimator_of, sparing, to_float64
from jax import lax

import l2o_eqx
from l2o_eqx.estimators import Auto, Recorded
from l2o_eqx.objectives import Quadratic, sample_objectives
from l2o_eqx.optimizers import CoordinatewiseLSTM, PerLayer, by_leaf
from l2o_eqx.strategies import EveryStep, EveryWindow, OncePerSuperEpoch
from l2o_eqx.transforms import unit_norm
from l2o_eqx.weightings import Constant, FinalOnly, Linear


def run_strategy(strategy, optimizer, objective, key, *, num_steps, weighting, rate):
    """A super epoch on one objective with gradient descent as the meta-optimizer, and its meta-gradients."""
    objectives = sample_objectives(_Only(objective), key[None])

    def meta_update(optimizer, history, grads):
        i, kept = history
        kept = jax.tree.map(lambda all_, g: all_.at[i].set(g), kept, grads)
        moved = jax.tree.map(lambda g: -rate * g, grads)
        return eqx.apply_updates(optimizer, moved), (i + 1, kept)

    num_updates = strategy.num_updates(num_steps)
    empty = jax.tree.map(
        lambda x: jnp.zeros((num_updates, *x.shape), x.dtype), eqx.filter(optimizer, eqx.is_inexact_array)
    )
    result = eqx.filter_jit(strategy.super_epoch)(
        optimizer,
        (jnp.asarray(0), empty),
        objectives,
        meta_update=meta_update,
        weighting=weighting,
        num_steps=num_steps,
        init_keys=key[None],
        loss_keys=key[None],
        key=key,
    )
    grads = [jax.tree.map(lambda x, i=i: x[i], result.meta_state[1]) for i in range(num_updates)]
    return result, grads


REPLAYED_OR_RECORDED = {"replayed": Auto(), "recorded": Recorded()}


class _Only(l2o_eqx.objectives.AbstractObjectiveFamily):
    objective: Any

    def sample(self, key):
        return self.objective


def window_loss(optimizers, objective, params, state, start, key, *, weighting, num_steps, detach=False):
    """The meta-loss of a window whose steps are taken by `optimizers`, with constant gradients."""
    losses = []
    for i, optimizer in enumerate(optimizers):
        loss, grads = jax.value_and_grad(objective.loss)(params, start + i, key)
        losses.append(loss)
        if detach:
            state = lax.stop_gradient(state)
        updates, state = optimizer.update(lax.stop_gradient(grads), state, lax.stop_gradient(params))
        params = jax.tree.map(jnp.add, params, updates)
    return weighting(jnp.stack(losses), start, num_steps), (params, state)


@pytest.mark.parametrize("gradient", ["replayed", "recorded"])
def test_every_step_is_the_gradient_of_its_window(gradient, getkey):
    """Every window of a super epoch in which the meta-parameters move at every step."""
    with jax.enable_x64(True):
        window, num_steps, rate, weighting = 3, 7, 0.5, Linear()
        optimizer = to_float64(LEARNED["lstm_adam_like"](getkey()))
        objective, key = to_float64(Quadratic(3).sample(getkey())), getkey()
        strategy = EveryStep(window, REPLAYED_OR_RECORDED[gradient])
        settings = {"num_steps": num_steps, "weighting": weighting}
        result, found = run_strategy(strategy, optimizer, objective, key, rate=rate, **settings)

        @eqx.filter_jit
        def expected_gradient(now, history, params, state, start):
            def loss(shift):
                # Recorded: each step by the optimizer of its time; all of them are moved alike.
                taken_by = [eqx.apply_updates(o, shift) for o in history]
                return window_loss(taken_by, objective, params, state, start, key, **settings)[0]

            return jax.grad(loss)(jax.tree.map(jnp.zeros_like, eqx.filter(now, eqx.is_inexact_array)))

        params = to_float64(objective.init(key))
        state = to_float64(optimizer.init(params))
        points, optimizers, now = [(params, state)], [], optimizer
        step = eqx.filter_jit(lambda o, p, s, t: window_loss([o], objective, p, s, t, key, **settings)[1])
        for t in range(num_steps):
            optimizers.append(now)
            points.append(step(now, *points[-1], t))
            if t >= window - 1:
                start = t - window + 1
                history = optimizers[start:] if gradient == "recorded" else [now] * window
                expected = expected_gradient(now, history, *points[start], start)
                assert_trees_close(found[start], expected, rtol=1e-9, atol=1e-9)
                now = eqx.apply_updates(now, jax.tree.map(lambda g: -rate * g, found[start]))
        assert_trees_close(
            eqx.filter(result.optimizer, eqx.is_array), eqx.filter(now, eqx.is_array), rtol=1e-9
        )


@pytest.mark.parametrize("gradient", sparing(["replayed", "recorded"], but=["recorded"]))
@pytest.mark.parametrize("name", ["per_layer", "learned_momentum", "user_looking_lstm"])
def test_every_step_at_rest_is_meta_gradient(name, gradient, getkey):
    """While the meta-parameters stand still, both gradients are those of the same windows."""
    optimizer, objective = LEARNED[name](getkey()), FAMILIES["from_model"]().sample(getkey())
    key, settings = getkey(), {"num_steps": 5, "weighting": Linear()}
    _, found = run_strategy(
        EveryStep(3, REPLAYED_OR_RECORDED[gradient]), optimizer, objective, key, rate=0.0, **settings
    )
    params = objective.init(key)
    begin = l2o_eqx.unroll(optimizer, objective, params, optimizer.init(params), 2, key=key)
    result = l2o_eqx.meta_gradient(
        optimizer, objective, begin.params, begin.state, window=3, start=2, key=key, **settings
    )
    assert_trees_close(found[2], result.grads, rtol=1e-3, atol=1e-4)


def test_the_first_update_of_every_step_is_that_of_every_window(getkey):
    optimizer, objective, key = LEARNED["lstm_identity"](getkey()), Quadratic(3).sample(getkey()), getkey()
    settings = {"num_steps": 4, "weighting": Constant(), "rate": 0.1}
    _, often = run_strategy(EveryStep(4), optimizer, objective, key, **settings)
    _, once = run_strategy(OncePerSuperEpoch(), optimizer, objective, key, **settings)
    assert len(often) == len(once) == 1
    assert_trees_close(often[0], once[0], rtol=1e-6)


@pytest.mark.parametrize(
    "strategy",
    [
        EveryStep(4),
        EveryStep(4, Recorded()),
        EveryWindow(4),
        EveryWindow(4, Auto(())),
        EveryWindow(4, estimator_of(detach_state=True), include_final_loss=True, remainder="train"),
    ],
)
def test_memory_does_not_grow_with_the_horizon(strategy, getkey):
    optimizer, family = CoordinatewiseLSTM(key=getkey()), Quadratic(64)
    objectives = sample_objectives(family, getkey()[None])

    def temporaries(num_steps):
        def run(optimizer, key):
            def update(o, s, g):
                return eqx.apply_updates(o, g), s

            result = strategy.super_epoch(
                optimizer,
                None,
                objectives,
                meta_update=update,
                weighting=Constant(),
                num_steps=num_steps,
                init_keys=key[None],
                loss_keys=key[None],
                key=key,
            )
            return result.optimizer

        jitted: Any = eqx.filter_jit(run)
        lowered = jitted.lower(optimizer, jr.key(0))
        return lowered.compile().compiled.memory_analysis().temp_size_in_bytes

    # Only the losses and metrics of each step are kept. The remainder is there in both, with two steps.
    assert temporaries(4002) - temporaries(10) < 4000 * 64


@pytest.mark.parametrize(
    "order, include_final_loss", list(itertools.product(["first", "second"], [False, True]))
)
def test_detached_state(order, include_final_loss, getkey):
    """No derivatives through the state, by blocks or by plain autodiff."""
    with jax.enable_x64(True):
        optimizer = to_float64(LEARNED["lstm_identity"](getkey()))
        objective, key = to_float64(Quadratic(3).sample(getkey())), getkey()
        params = to_float64(objective.init(key))
        state = to_float64(optimizer.init(params))

        def plain(optimizer, detach):
            theta, h, losses = params, state, []
            for t in range(4 + include_final_loss):
                loss, grads = jax.value_and_grad(objective.loss)(theta, t, key)
                losses.append(loss)
                h = lax.stop_gradient(h) if detach else h
                grads = lax.stop_gradient(grads) if order == "first" else grads
                updates, h = optimizer.update(grads, h, theta)
                theta = theta + updates
            return jnp.sum(jnp.stack(losses))

        expected, full = (eqx.filter_jit(eqx.filter_grad(plain))(optimizer, d) for d in (True, False))
        found, through = (
            l2o_eqx.meta_gradient(
                optimizer,
                objective,
                params,
                state,
                window=4,
                weighting=Constant(),
                key=key,
                estimator=estimator_of(order, detach_state=detach),
                include_final_loss=include_final_loss,
            )
            for detach in (True, False)
        )
        assert found.losses.shape == (4 + include_final_loss,)
        assert_trees_close(found.grads, expected, rtol=1e-9, atol=1e-9)
        assert_trees_close(through.grads, full, rtol=1e-9, atol=1e-9)
        leaves = zip(jax.tree.leaves(expected), jax.tree.leaves(full), strict=True)
        assert any(not np.allclose(a, b, rtol=1e-3, atol=0) for a, b in leaves)


def test_lookahead_trains_a_window_of_one(getkey):
    """f(θ_2) after one update: dL/dφ = ∇f(θ_2)ᵀ ∂u_1/∂φ."""
    optimizer, objective, key = LEARNED["lstm_identity"](getkey()), Quadratic(3).sample(getkey()), getkey()
    settings = {"num_steps": 1, "weighting": FinalOnly(), "rate": 0.0}
    _, (grads,) = run_strategy(EveryWindow(1, include_final_loss=True), optimizer, objective, key, **settings)
    params = objective.init(key)

    @eqx.filter_jit
    @eqx.filter_grad
    def loss_after(optimizer):
        updates, _ = optimizer.update(
            jax.grad(objective.loss)(params, 0, key), optimizer.init(params), params
        )
        return objective.loss(params + updates, 1, key)

    assert_trees_close(grads, loss_after(optimizer), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("remainder, num_updates", [("skip", 2), ("train", 3)])
def test_remainder(remainder, num_updates, getkey):
    """7 steps in windows of 3 leave one step, 8 leave two, of which a shorter window can be made."""
    strategy = EveryWindow(3, remainder=remainder)
    assert strategy.num_updates(7) == 2, "one step is no window"
    assert strategy.num_updates(8) == num_updates
    assert strategy.num_trained_steps(8) == (8 if remainder == "train" else 6)
    optimizer, objective, key = LEARNED["lstm_identity"](getkey()), Quadratic(3).sample(getkey()), getkey()
    settings = {"num_steps": 8, "weighting": Constant(), "rate": 0.0}
    result, grads = run_strategy(strategy, optimizer, objective, key, **settings)
    params = objective.init(key)
    state = optimizer.init(params)
    whole = l2o_eqx.unroll(optimizer, objective, params, state, 8, key=key)
    np.testing.assert_allclose(result.losses[:, 0], whole.losses, rtol=1e-5)
    assert len(grads) == num_updates == result.meta_losses.shape[0]
    np.testing.assert_allclose(
        jnp.sum(result.meta_losses), jnp.sum(whole.losses[: 3 * num_updates]), rtol=1e-5
    )


@pytest.mark.parametrize("name", sparing(STRATEGIES, but=set(STRATEGIES) - {"every_window_rest"}))
def test_one_group_per_layer_is_the_optimizer_itself(name, getkey):
    """To the bit, with every strategy: PerLayer with a single label adds nothing."""
    inner, objective, key = (
        LEARNED["lstm_signed_log"](getkey()),
        FAMILIES["from_model"]().sample(getkey()),
        getkey(),
    )
    wrapped = PerLayer({"all": inner}, _same_label)
    settings = {"num_steps": 7, "weighting": Linear(), "rate": 0.1}
    alone, _ = run_strategy(STRATEGIES[name](), inner, objective, key, **settings)
    within, _ = run_strategy(STRATEGIES[name](), wrapped, objective, key, **settings)
    np.testing.assert_array_equal(alone.losses, within.losses)
    assert eqx.tree_equal(alone.optimizer, within.optimizer.optimizers["all"])


def _same_label(path, leaf):
    return "all"


def test_metrics_of_blocks(getkey):
    """The norms of the blocks make up the norm; a block whose gradient vanishes says so."""
    family = FAMILIES["from_model"]()
    params = family.sample(getkey()).init(getkey())
    make = LEARNED["lstm_signed_log"]
    optimizer = PerLayer.make(make, params, label=by_leaf, key=getkey())
    optimizer = PerLayer({**optimizer.optimizers, "unused": make(getkey())}, by_leaf)
    solution = l2o_eqx.meta_train(
        optimizer, family, EveryWindow(3), num_steps=3, super_epochs=1, key=getkey()
    )
    metrics = {name: values[0] for name, values in solution.metrics.items()}
    norms = [v for name, v in metrics.items() if name.startswith("grad_norm/")]
    assert len(norms) == 5
    np.testing.assert_allclose(np.linalg.norm(norms), metrics["grad_norm"], rtol=1e-5)
    assert metrics["zero_share/unused"] == 1 and metrics["grad_norm/unused"] == 0
    assert metrics["zero_share/layers.1.bias"] < 0.5


@pytest.mark.parametrize("name", ["per_layer", "hierarchical_rnn"])
def test_unit_norm_of_parts(name, getkey):
    optimizer = LEARNED[name](getkey())
    grads = jax.tree.map(lambda x: 1e-12 * x, eqx.filter(optimizer, eqx.is_inexact_array))
    scaled: Any = unit_norm("part").update(grads, unit_norm("part").init(grads))[0]
    assert len(scaled.parts()) >= 3
    for name, block in scaled.parts().items():
        flat, given = (
            np.concatenate([x.ravel() for x in jax.tree.leaves(b)]) for b in (block, grads.parts()[name])
        )
        np.testing.assert_allclose(np.linalg.norm(flat), 1, rtol=1e-5)
        np.testing.assert_allclose(flat, given / np.linalg.norm(given.astype(np.float64)), rtol=1e-4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EveryWindow(1), "window=1"),
        (lambda: EveryStep(1), "window=1"),
        (lambda: EveryStep(9).num_updates(8), "longer than the super epoch of 8"),
    ],
)
def test_errors(make, message):
    with pytest.raises(Exception, match=message):
        make()


def test_all_steps_of_every_step_are_reported(getkey):
    optimizer, objective, key = LEARNED["lstm_identity"](getkey()), Quadratic(3).sample(getkey()), getkey()
    result, _ = run_strategy(
        EveryStep(3), optimizer, objective, key, num_steps=6, weighting=Constant(), rate=0.0
    )
    whole = l2o_eqx.unroll(
        optimizer, objective, objective.init(key), optimizer.init(objective.init(key)), 6, key=key
    )
    np.testing.assert_allclose(result.losses[:, 0], whole.losses, rtol=1e-5)
    windows = [jnp.sum(whole.losses[i : i + 3]) for i in range(4)]
    np.testing.assert_allclose(result.meta_losses, windows, rtol=1e-5)
