"""Objectives that are not finite cost their own share of a meta-update; none outweighs all others."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import LEARNED, assert_trees_close
from test_meta_gradient import meta_gradient_of_batch

import l2o_eqx
from l2o_eqx._engine._inner import init_params
from l2o_eqx.estimators import ES, PES, Auto, ClippedPerObjective, Recorded, Replay
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, Quadratic, sample_objectives
from l2o_eqx.optimizers import CoordinatewiseLSTM
from l2o_eqx.strategies import EveryStep, EveryWindow, OncePerSuperEpoch

# What a bad objective is multiplied by from step 1 on, or added to where it starts.
VALUES = {"nan": jnp.nan, "inf": jnp.inf, "huge": 1e38, "start": jnp.nan}


class FailingObjective(AbstractObjective):
    """A quadratic whose value or start is spoiled by a number; with 1 and 0 it is as it was."""

    quadratic: AbstractObjective
    factor: jax.Array
    offset: jax.Array

    def init(self, key):
        return self.quadratic.init(key) + self.offset

    def loss(self, params, step, key):
        return self.quadratic.loss(params, step, key) * jnp.where(jnp.asarray(step) >= 1, self.factor, 1.0)

    @property
    def bad(self):
        return jnp.isnan(self.factor)


class Failing(AbstractObjectiveFamily):
    share: float = eqx.field(static=True)

    def sample(self, key):
        factor = jnp.where(jr.uniform(jr.fold_in(key, 1)) < self.share, jnp.nan, 1.0)
        return FailingObjective(Quadratic(4).sample(key), factor, jnp.zeros(()))


def batch(bad, kind):
    keys = jr.split(jr.key(3), len(bad))
    objectives = sample_objectives(Failing(0.0), keys)
    name, harmless = ("offset", 0.0) if kind == "start" else ("factor", 1.0)
    values = jnp.where(jnp.asarray(bad), VALUES[kind], harmless)
    objectives = eqx.tree_at(lambda o: getattr(o.own, name), objectives, values)
    return objectives, init_params(objectives, keys), keys


def part_of(tree, indices):
    return jax.tree.map(lambda x: x[indices] if eqx.is_array(x) else x, tree)


@pytest.mark.parametrize(
    "name, activations, order",
    [
        ("lstm_adam_like", "recompute", "first"),
        pytest.param("lstm_adam_like", "keep", "second", marks=pytest.mark.thorough),
        pytest.param("learned_momentum", "recompute", "first", marks=pytest.mark.thorough),
        ("learned_momentum", "keep", "second"),
        pytest.param("user_looking_lstm", "keep", "first", marks=pytest.mark.thorough),
        pytest.param("user_looking_lstm", "recompute", "second", marks=pytest.mark.thorough),
    ],
)
def test_the_others_learn_as_without_the_bad_ones(name, activations, order, getkey):
    optimizer = LEARNED[name](getkey())
    good = np.array([0, 2, 3])
    # All kinds where it costs least to compile.
    for kind in VALUES if name == "lstm_adam_like" else ["nan"]:
        objectives, params, keys = batch([False, True, False, False], kind)
        result = meta_gradient_of_batch(optimizer, objectives, params, keys, activations, order=order)
        own = eqx.tree_at(lambda o: o.own, objectives, part_of(objectives.own, good))
        without = meta_gradient_of_batch(
            optimizer, own, part_of(params, good), part_of(keys, good), activations, order=order
        )
        assert result.health.sound.tolist() == [True, False, True, True], kind
        assert_trees_close(
            (result.grads, result.meta_loss, part_of(result.params, good)),
            (without.grads, without.meta_loss, without.params),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    "strategy",
    [
        EveryWindow(4),
        pytest.param(EveryWindow(4, Auto(())), marks=pytest.mark.thorough),
        EveryWindow(4, PES(0.1, 2)),
        pytest.param(OncePerSuperEpoch(), marks=pytest.mark.thorough),
        pytest.param(EveryStep(4), marks=pytest.mark.thorough),
        EveryStep(4, Recorded()),
    ],
)
def test_meta_training_goes_on_and_reports_the_keys(strategy, getkey):
    """2 % of 64 objectives fail: no meta-update is lost, and the keys reported draw the bad ones again."""
    family = Failing(0.02)
    optimizer = CoordinatewiseLSTM((3,), learning_rate=0.01, key=getkey())
    solution = l2o_eqx.meta_train(
        optimizer, family, strategy, num_steps=8, super_epochs=4, num_objectives=64, key=jr.key(7)
    )
    assert solution.metrics["skipped_updates"][-1] == 0
    assert np.all(np.isfinite(solution.metrics["meta_loss"])) and np.all(
        np.isfinite(solution.metrics["final_loss"])
    )
    assert len(solution.failed) == np.sum(solution.metrics["failed_objectives"]) > 0
    assert all(family.sample(f.key).bad for f in solution.failed)
    assert all(f.restart is None and 1 <= f.super_epoch <= 4 for f in solution.failed)


def test_keys_of_restarts(getkey):
    family = Failing(0.3)
    optimizers = eqx.filter_vmap(lambda k: CoordinatewiseLSTM((2,), key=k))(jr.split(getkey(), 3))
    solution = l2o_eqx.meta_train(
        optimizers,
        family,
        EveryWindow(2),
        num_steps=4,
        super_epochs=2,
        num_objectives=4,
        restarts=3,
        key=jr.key(1),
    )
    assert {f.restart for f in solution.failed} <= {0, 1, 2} and solution.failed
    assert all(family.sample(f.key).bad for f in solution.failed)


@pytest.mark.parametrize(
    "strategy",
    [
        EveryWindow(4, Replay()),
        EveryWindow(4, ClippedPerObjective(Auto(()), 1.0)),
        EveryWindow(4, ES(0.1, 2)),
        EveryStep(4, Recorded()),
    ],
)
@pytest.mark.filterwarnings("ignore::l2o_eqx.SkippedUpdatesWarning")
def test_if_all_fail_the_update_is_left_out(strategy, getkey):
    """Instead of a gradient of zero, which a meta-optimizer with momentum would move on."""
    optimizer = CoordinatewiseLSTM((3,), key=getkey())
    solution = l2o_eqx.meta_train(
        optimizer, Failing(2.0), strategy, num_steps=8, super_epochs=1, num_objectives=3, key=jr.key(0)
    )
    assert solution.metrics["skipped_updates"][-1] == strategy.num_updates(8)
    assert_trees_close(solution.optimizer, optimizer, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name, order",
    [
        ("lstm_adam_like", "first"),
        ("per_layer", "second"),
        pytest.param("learned_momentum", "first", marks=pytest.mark.thorough),
    ],
)
def test_clipping_per_objective(name, order, getkey):
    """The mean of the single meta-gradients, each clipped; the runs themselves do not change."""
    optimizer = LEARNED[name](getkey())
    objectives, params, keys = batch([False, False, True, False], "nan")

    def of(indices, **settings):
        own = eqx.tree_at(lambda o: o.own, objectives, part_of(objectives.own, indices))
        return meta_gradient_of_batch(
            optimizer,
            own,
            part_of(params, indices),
            part_of(keys, indices),
            "recompute" if order == "first" else "keep",
            order=order,
            **settings,
        )

    whole = of(np.arange(4))
    single = [of(np.array([i])).grads for i in (0, 1, 3)]
    norms = [np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(g))) for g in single]
    clip = float(np.median(norms))
    scaled = [
        jax.tree.map(lambda x, n=n: x * min(1.0, clip / n), g) for g, n in zip(single, norms, strict=True)
    ]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *scaled)
    clipped = of(np.arange(4), objective_clip=clip)
    assert_trees_close(clipped.grads, mean, rtol=1e-3, atol=1e-4)
    assert_trees_close(
        (clipped.losses[:, :2], part_of(clipped.params, np.array([0, 1, 3])), clipped.health.sound),
        (whole.losses[:, :2], part_of(whole.params, np.array([0, 1, 3])), whole.health.sound),
        rtol=1e-4,
        atol=1e-5,
    )


def test_clip_must_be_positive():
    with pytest.raises(ValueError, match=r"max_norm=0.0\)`: .* above 0"):
        ClippedPerObjective(Auto(), 0.0)
