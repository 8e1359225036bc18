"""What `meta_train` keeps: the best snapshot by validation, and the mean of the last optimizers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import ScaledGradient, assert_trees_close, stop_at

import l2o_eqx
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, Quadratic
from l2o_eqx.strategies import EveryWindow


class Bowl(AbstractObjective):
    """f(θ) = c·(θ² + floor), from θ = 1."""

    scale: jax.Array
    floor: float = eqx.field(static=True)
    traces: Any = eqx.field(static=True)

    def init(self, key):
        return jnp.ones(1)

    def loss(self, params, step, key):
        self.traces.append(step)
        return self.scale * (jnp.sum(params**2) + self.floor)


class Traces(list):
    """A list that is itself alone, so that it can be a static field."""

    def __hash__(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return id(self)

    def __eq__(self, other):
        return self is other


class Bowls(AbstractObjectiveFamily):
    """Scales of 1 to `highest`; counts in `traces` how often a loss is traced."""

    floor: float = eqx.field(static=True)
    highest: float = eqx.field(static=True)
    traces: Any = eqx.field(static=True)

    def sample(self, key):
        return Bowl(jr.uniform(key, (), minval=1.0, maxval=self.highest), self.floor, self.traces)


def family(floor=0.0, highest=4.0):
    return Bowls(floor, highest, Traces())


def rates(*values: float):
    """Gradient descent with learned rates: one, or a batch of restarts."""
    batch = jnp.array(values, jnp.float32).reshape(-1 if len(values) > 1 else ())
    return ScaledGradient(batch, jnp.zeros_like(batch))


def rate(optimizer: Any):
    return optimizer.rate


# A meta-optimizer that moves the rate by 0.1 each update, whatever the gradient says: good rates are passed.
MARCH = optax.GradientTransformation(
    lambda params: optax.EmptyState(),
    lambda updates, state, params=None: (jax.tree.map(lambda u: jnp.full_like(u, 0.1), updates), state),
)


def march(optimizer, train_on, **settings: Any):
    kwargs = {"num_steps": 4, "super_epochs": 9, "num_objectives": 2, "key": jr.key(0), **settings}
    return l2o_eqx.meta_train(optimizer, train_on, EveryWindow(4), meta_optimizer=MARCH, **kwargs)


def test_best_snapshot_is_the_one_with_the_best_score():
    """A training that runs past the best rate: the last one diverges, the best one is kept."""
    bowls = family()
    validation = l2o_eqx.Validation(bowls, 8, 4, every=1, key=jr.key(1))
    seen = []
    solution = march(rates(0.0), bowls, validation=validation, callbacks=[lambda p: seen.append(p.state)])
    best, scores = solution.best, solution.metrics["validation_loss"]
    assert best is not None and scores.shape == (9,)
    assert int(best.super_epoch) == 1 + np.argmin(scores) < 9 and not best.averaged
    np.testing.assert_allclose(best.score, scores.min(), rtol=1e-6)
    assert scores[-1] > 1e6 * best.score
    # It is the optimizer of that super epoch, and the score can be had again.
    assert eqx.tree_equal(best.optimizer, seen[int(best.super_epoch) - 1].optimizer)
    np.testing.assert_array_equal(validation.score(best.optimizer), best.score)
    runs = l2o_eqx.evaluate(best.optimizer, bowls, num_steps=8, num_objectives=4, key=jr.key(1))
    np.testing.assert_allclose(best.score, np.exp(np.mean(np.log(runs.final_losses))), rtol=1e-5)


def test_validation_changes_nothing_else():
    bowls = family()
    plain = march(rates(0.0), bowls)
    kept = march(rates(0.0), bowls, validation=bowls, average=0.5)
    assert eqx.tree_equal(plain.optimizer, kept.optimizer)
    assert plain.best is None and plain.averaged is None and "validation_loss" not in plain.metrics
    for name, values in plain.metrics.items():
        np.testing.assert_array_equal(values, kept.metrics[name])


def test_it_runs_when_it_should_and_compiles_once():
    bowls, counted = family(), family()
    validation = l2o_eqx.Validation(counted, 8, 4, every=4, key=jr.key(1))
    traced = []
    solution = march(
        rates(0.0), bowls, validation=validation, callbacks=[lambda p: traced.append(len(counted.traces))]
    )
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(solution.metrics["validation_loss"])), [3, 7, 8])
    assert set(traced) == {traced[0]} and traced[0] > 0


def test_each_restart_has_its_own_best():
    """Rates of 0, 0.1 and 0.25 march alike; the best of each is where it would be alone."""
    bowls = family()
    validation = l2o_eqx.Validation(bowls, 8, 4, every=1, key=jr.key(1))
    starts = [0.0, 0.1, 0.25]
    together = march(rates(*starts), bowls, validation=validation, restarts=3, average=0.3).best
    assert together is not None and len({*np.asarray(together.super_epoch).tolist()}) == 3
    for i, start in enumerate(starts):
        alone = march(rates(start), bowls, validation=validation, average=0.3).best
        assert alone is not None
        one = jax.tree.map(lambda x, i=i: x[i], together)
        assert_trees_close(one, alone, rtol=1e-4)
        np.testing.assert_array_equal(one.super_epoch, alone.super_epoch)


def test_the_untrained_optimizer_is_a_candidate():
    """Training from a good rate on makes it worse: nothing is better than the start."""
    bowls = family()
    best = march(rates(0.2), bowls, validation=bowls).best
    assert best is not None and int(best.super_epoch) == 0
    np.testing.assert_allclose(rate(best.optimizer), 0.2)


def test_what_is_not_finite_is_never_best():
    """If nothing is finite, the last optimizer is kept, as without a validation."""
    bowls = family()
    key = jr.key(1)
    kept = march(rates(0.0), bowls, validation=l2o_eqx.Validation(family(jnp.nan), 4, key=key)).best
    assert kept is not None and int(kept.super_epoch) == 9 and np.isinf(kept.score)
    # A loss of zero counts as tiny.
    score = l2o_eqx.Validation(bowls, 1, key=key).score(rates(0.0))
    still = l2o_eqx.Validation(family(-1.0), 1, key=key).score(rates(0.0))
    assert 1 < score < 4 and still == np.finfo(np.float32).tiny


def test_mean_of_the_last_losses():
    """`last` losses of each objective are averaged before the logarithm."""
    bowls = family()
    validation = l2o_eqx.Validation(bowls, 8, 4, last=3, key=jr.key(1))
    losses = l2o_eqx.evaluate(rates(0.1), bowls, num_steps=8, num_objectives=4, key=jr.key(1)).losses
    expected = np.exp(np.mean(np.log(np.mean(losses[:, -3:], axis=1))))
    np.testing.assert_allclose(validation.score(rates(0.1)), expected, rtol=1e-5)


@pytest.mark.parametrize("restarts", [None, 2])
def test_average_is_the_mean_over_the_last_super_epochs(restarts):
    bowls = family()
    optimizer = rates(0.0, 0.1) if restarts else rates(0.0)
    seen = []
    solution = march(
        optimizer, bowls, average=1 / 3, restarts=restarts, callbacks=[lambda p: seen.append(p.state)]
    )
    assert solution.averaged is not None and [s.average is not None for s in seen] == [False] * 6 + [True] * 3
    expected = np.mean([rate(s.optimizer) for s in seen[-3:]], axis=0)
    np.testing.assert_allclose(rate(solution.averaged), expected, rtol=1e-6)
    assert solution.state.average is not None and int(solution.state.average.count) == 3


def test_average_damps_what_a_large_meta_learning_rate_shakes():
    """On one bowl the best rate is 0.5; steps of ±0.2 around it end off it, and their mean does not."""

    def shake(updates, state, params=None):
        return jax.tree.map(lambda u: jnp.where(state % 2, -0.2, 0.2).astype(u.dtype), updates), state + 1

    shaking = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), shake)

    one = family(highest=1.0)
    validation = l2o_eqx.Validation(one, 6, 2, every=1, key=jr.key(1))
    solution = l2o_eqx.meta_train(
        rates(0.4),
        one,
        EveryWindow(4),
        meta_optimizer=shaking,
        num_steps=4,
        super_epochs=8,
        validation=validation,
        average=0.5,
        key=jr.key(0),
    )
    assert solution.averaged is not None and solution.best is not None
    np.testing.assert_allclose(rate(solution.averaged), 0.5, rtol=1e-5)
    assert (
        bool(solution.best.averaged) and solution.best.score < 1e-2 * solution.metrics["validation_loss"][-1]
    )


@pytest.mark.parametrize("done", [5, 8])
def test_resumed_training_keeps_what_the_whole_one_keeps(done):
    """Stopped after `done` super epochs, in the middle of an average or before."""
    bowls = family()
    validation = l2o_eqx.Validation(bowls, 8, 4, every=1, key=jr.key(1))
    settings: Any = {"validation": validation, "average": 0.3}
    whole = march(rates(0.0), bowls, **settings)
    half = march(rates(0.0), bowls, callbacks=[stop_at(done)], **settings)
    assert half.result == "stopped" and half.best is not None
    resumed = march(rates(0.0), bowls, state=half.state, **settings)
    assert eqx.tree_equal(whole.state, resumed.state)


def test_stopped_training_validates_its_last_optimizer():
    bowls = family()
    validation = l2o_eqx.Validation(bowls, 8, 4, every=100, key=jr.key(1))
    solution = march(
        rates(0.0),
        bowls,
        validation=validation,
        callbacks=[stop_at(2)],
    )
    assert solution.best is not None and int(solution.best.super_epoch) == 2
    np.testing.assert_array_equal(solution.metrics["validation_loss"], [np.nan, solution.best.score])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: l2o_eqx.Validation(Quadratic(2), 0, key=jr.key(0)), "num_steps=0"),
        (lambda: l2o_eqx.Validation(Quadratic(2), 5, every=0, key=jr.key(0)), "every=0"),
        (lambda: l2o_eqx.Validation(Quadratic(2), 5, last=6, key=jr.key(0)), "last=6"),
        (lambda: march(rates(0.0), Quadratic(2), average=1.5), "average=1.5"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
