"""Learners of a start: the meta-gradient against the loop written by hand, and what is trained with it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import LEARNED, assert_trees_close
from jax import lax
from test_few_shot import FAMILY, KEY, _network, start_of

import l2o_eqx as l2o
from l2o_eqx.estimators import Backprop, Replay, Reptile
from l2o_eqx.objectives import Quadratic, Sinusoid
from l2o_eqx.optimizers import MAML, GradientDescent, LearnedStart, moves_head
from l2o_eqx.strategies import EveryWindow, OncePerSuperEpoch
from l2o_eqx.weightings import FinalOnly, PerStep


def _by_hand(start, tasks, num_steps, rate, *, first_order):
    """Finn et al.'s algorithm 1, unrolled. `rate(learned, step, leaf)` of every leaf."""

    def error(weights, points):
        x, y = points
        return jnp.mean((_network(weights, x) - y) ** 2)

    def of_task(trained, support, query):
        weights, learned = trained
        for step in range(num_steps):
            grads = jax.grad(error)(weights, support)
            if first_order:
                grads = lax.stop_gradient(grads)
            weights = [
                w - rate(learned, step, i) * g for i, (w, g) in enumerate(zip(weights, grads, strict=True))
            ]
        return error(weights, query)

    def of_all(trained):
        return jnp.mean(jax.vmap(of_task, in_axes=(None, 0, 0))(trained, *tasks))

    return jax.jit(jax.value_and_grad(of_all))(start)


# Settings of the learner, and the rate of a leaf that they stand for. Leaves 4 and 5 are the head.
LEARNERS = {
    "maml": ({}, lambda learned, step, i: 0.1),
    "meta_sgd": ({"rates": "entry"}, lambda learned, step, i: learned[i]),
    "anil": (
        {"rates": "leaf", "num_rates": 2, "moving": moves_head},
        lambda learned, step, i: learned[i - 4][min(step, 1)] if i >= 4 else 0.0,
    ),
}


@pytest.mark.parametrize(
    ("name", "estimator"),
    [("maml", "true"), ("anil", "true"), ("meta_sgd", "replay")],
)
def test_the_meta_gradient_is_that_of_the_loop_by_hand(name, estimator):
    """In float64 to 1e-10, through `meta_train`: one update of gradient descent at the rate 1."""
    settings, rate = LEARNERS[name]
    made = {"true": Backprop(()), "replay": Replay()}[estimator]
    with jax.enable_x64(True):
        learner: Any = MAML(start_of(FAMILY), 0.1, **settings)
        assert jax.tree.leaves(learner.start)[0].dtype == jnp.float64
        solution: Any = l2o.meta_train(
            learner,
            FAMILY,
            OncePerSuperEpoch(made, include_final_loss=True),
            weighting=FinalOnly(),
            meta_optimizer=optax.sgd(1.0),
            num_steps=3,
            super_epochs=1,
            num_objectives=2,
            key=KEY,
        )
        tasks = [FAMILY.sample(k) for k in jr.split(jr.split(jr.fold_in(KEY, 0), 3)[0], 2)]
        stacked = [
            jax.tree.map(lambda *x: jnp.stack(x), *sets)
            for sets in zip(*((t.support, t.query) for t in tasks), strict=True)
        ]
        trained = (jax.tree.leaves(learner.start), jax.tree.leaves(learner.inner))
        loss, grads = _by_hand(trained, stacked, 3, rate, first_order=estimator != "true")
        np.testing.assert_allclose(solution.metrics["meta_loss"][0], loss, rtol=1e-12)
        expected = jax.tree.leaves(jax.tree.map(lambda x, g: x - g, trained, grads))
        found = jax.tree.leaves(solution.optimizer.start) + jax.tree.leaves(solution.optimizer.inner)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)
        assert all(np.any(g != 0) for g in jax.tree.leaves(grads))


def train(learner, estimator=None, **settings) -> Any:
    given: dict[str, Any] = {"num_steps": 2, "super_epochs": 2, "num_objectives": 2, "key": KEY}
    given |= {"weighting": FinalOnly(), "meta_optimizer": optax.sgd(1.0)}
    strategy = OncePerSuperEpoch(Backprop(()) if estimator is None else estimator, include_final_loss=True)
    return l2o.meta_train(learner, FAMILY, strategy, **{**given, **settings})


def test_reptile_goes_to_the_mean_of_the_adapted_params():
    learner = MAML(start_of(FAMILY), 0.1, rates="tree")
    with pytest.warns(l2o.ZeroGradientWarning, match="learned"):
        solution = train(learner, Reptile(), super_epochs=4)
    start = learner.start
    for i in range(4):
        tasks = [FAMILY.sample(k) for k in jr.split(jr.split(jr.fold_in(KEY, i), 3)[0], 2)]
        ends = [l2o.adapt(MAML(start, 0.1), task, steps=2) for task in tasks]
        ends = [eqx.filter(end, eqx.is_inexact_array) for end in ends]
        start = jax.tree.map(lambda *x: sum(x) / 2, *ends)
    assert_trees_close(
        jax.tree.leaves(solution.optimizer.start), jax.tree.leaves(start), rtol=1e-4, atol=1e-5
    )
    assert solution.optimizer.inner.learned == 0.1


@pytest.mark.parametrize(
    ("learner", "strategy"),
    [
        (LEARNED["gradient_descent"](KEY), OncePerSuperEpoch(Reptile(), include_final_loss=True)),
        (MAML(jnp.zeros(3)), EveryWindow(2, Reptile())),
    ],
)
def test_reptile_wants_one_window_from_a_learned_start(learner, strategy):
    with pytest.raises(ValueError, match="`Reptile`: there is a window"):
        l2o.meta_train(learner, Quadratic(3), strategy, num_steps=4, key=KEY)


def test_a_learned_start_with_a_learned_optimizer():
    """Both are trained, as parts of their own; the file keeps both."""
    learner = LearnedStart(LEARNED["user_scaled_gradient"](KEY), start_of(FAMILY))
    solution = train(learner, meta_optimizer=l2o.default_meta_optimizer(normalization="part"))
    assert {"grad_norm/start", "grad_norm/optimizer"} <= {*solution.metrics}
    moved = jax.tree.map(
        lambda x, y: bool(np.any(x != y)), *map(jax.tree.leaves, (learner, solution.optimizer))
    )
    assert all(moved)


def test_every_variant_is_kept_in_a_file(tmp_path):
    maml_plus: dict[str, Any] = {"rates": "leaf", "num_rates": 2}
    meta_sgd: dict[str, Any] = {"rates": "entry"}
    for settings in (meta_sgd, {**maml_plus, "moving": moves_head}, {}):
        learner = MAML(start_of(FAMILY), **settings)
        loaded = l2o.load(l2o.save(tmp_path / "learner.safetensors", learner))
        assert eqx.tree_equal(loaded, learner)
        assert_trees_close(loaded.initial_params(start_of(FAMILY, jr.key(1))), learner.start)


def test_restarts_are_trainings_of_their_own_and_several_super_epochs_one_call():
    """The same numbers, and one progress a call: means over it, and those of the last super epoch."""
    keys = jr.split(jr.key(3), 2)
    batch = eqx.filter_vmap(lambda key: MAML(start_of(FAMILY, key)))(keys)
    seen = []
    one_by_one = train(batch, restarts=2, super_epochs=5)
    together = train(batch, restarts=2, super_epochs=5, per_call=3, callbacks=[seen.append])
    assert_trees_close(together.optimizer, one_by_one.optimizer, rtol=1e-5, atol=1e-6)
    assert_trees_close(together.metrics, one_by_one.metrics, rtol=1e-4, atol=1e-5)
    assert [p.super_epoch for p in seen] == [3, 5]
    for progress, rows in zip(seen, (slice(0, 3), slice(3, 5)), strict=True):
        mean = one_by_one.metrics["meta_loss"][rows].mean(0)
        np.testing.assert_allclose(progress.metrics["meta_loss"], mean, rtol=1e-4)
    ones: list[Any] = [l2o.select_restart(together.optimizer, i) for i in range(2)]
    first, second = (one.start for one in ones)
    assert not eqx.tree_equal(first, second)


def test_orders_and_weights_may_follow_each_other():
    """MAML++'s annealing: first order and all steps, then the true gradient and the last one."""
    learner = MAML(start_of(FAMILY), 0.1)
    weighting = PerStep((0.0, 0.5, 0.5))
    first = train(learner, Backprop(), weighting=weighting)
    both = train(learner, Backprop(()), super_epochs=4, state=first.state)
    assert len(both.metrics["meta_loss"]) == 2 and int(both.state.super_epoch) == 4
    assert not eqx.tree_equal(both.optimizer, first.optimizer)
    # The first meta-loss is the mean of the query losses after the steps.
    tasks = [FAMILY.sample(k) for k in jr.split(jr.split(jr.fold_in(KEY, 0), 3)[0], 2)]
    ends = [l2o.adapt(learner, t, steps=s) for t in tasks for s in (1, 2)]
    pairs = zip([t for t in tasks for _ in range(2)], ends, strict=True)
    losses = [t.outer_loss(eqx.filter(e, eqx.is_inexact_array), 0, KEY) for t, e in pairs]
    np.testing.assert_allclose(first.metrics["meta_loss"][0], np.mean(losses), rtol=1e-5)


def test_a_head_is_the_last_layer():
    marked = moves_head(start_of(FAMILY))
    assert jax.tree.leaves(marked) == [False] * 4 + [True] * 2
    grads = start_of(FAMILY, jr.key(2))
    updates, _ = GradientDescent(grads, moving=moves_head).update(grads, None, grads)
    assert [bool(np.any(u != 0)) for u in jax.tree.leaves(updates)][::2] == [False, False, True]


def test_training_makes_one_step_go_far():
    """On unseen tasks, where before it went nowhere."""
    family = Sinusoid(10, 10, (20, 20))
    untrained = MAML(start_of(family), 0.02)
    solution = l2o.meta_train(
        untrained,
        family,
        OncePerSuperEpoch(Backprop(()), include_final_loss=True),
        weighting=FinalOnly(),
        meta_optimizer=optax.adam(1e-2),
        num_steps=1,
        super_epochs=600,
        num_objectives=8,
        per_call=300,
        key=KEY,
    )
    before, after = (
        l2o.evaluate(o, family, num_steps=2, num_objectives=100, key=jr.key(7)).losses.mean(0)
        for o in (untrained, solution.optimizer)
    )
    assert before[1] > 0.8 * before[0] and after[1] < 0.5 * after[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GradientDescent(None, -1.0), "learning_rate=-1.0"),
        (lambda: GradientDescent(None, rates="fixed", num_rates=2), "num_rates=2"),
        (lambda: GradientDescent(jnp.ones(2), rates="entry").init(jnp.ones(3)), "other params"),
        (lambda: PerStep(()), "weights"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
