"""Tasks of few examples and learners of their start: definitions written out by hand, and what follows."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import assert_trees_close

import l2o_eqx as l2o
from l2o_eqx.objectives import FewShot, FewShotObjective, FromModel, Scaled, Sinusoid
from l2o_eqx.optimizers import MAML

KEY = jr.key(0)
# With a layer between the first and the last one, so that the head is not half of it.
FAMILY = Sinusoid(3, 4, (5, 4))


def start_of(family, key=KEY):
    return family.sample(key).init(key)


def test_sinusoid_is_its_formula():
    """All points of a task are on one curve, whose amplitude and phase solve two equations."""
    task = FAMILY.sample(KEY)
    support, query = np.asarray(task.support), np.asarray(task.query)
    assert support.shape == (2, 3, 1) and query.shape == (2, 4, 1)
    x, y = np.concatenate([support, query], axis=1)[..., 0].astype(np.float64)
    # a·sin(x − φ) = a·cos φ·sin x − a·sin φ·cos x
    (cosine, sine), *_ = np.linalg.lstsq(np.stack([np.sin(x), -np.cos(x)], 1), y)
    np.testing.assert_allclose(cosine * np.sin(x) - sine * np.cos(x), y, atol=1e-5)
    assert 0.1 <= np.hypot(cosine, sine) <= 5 and 0 <= np.arctan2(sine, cosine) <= np.pi


def test_sinusoids_are_drawn_from_the_whole_range():
    tasks = jax.vmap(Sinusoid(200).sample_task)(jr.split(KEY, 400))
    x, y = tasks[0]
    assert -5 <= x.min() < -4.9 and 4.9 < x.max() <= 5
    largest = jnp.abs(y).max(axis=(1, 2))
    # Uniform on [0.1, 5]: mean 2.55 and standard deviation 1.41, of 400 draws 0.07.
    assert abs(float(largest.mean()) - 2.55) < 0.25 and largest.min() < 0.3 and largest.max() > 4.8


def test_another_size_is_the_same_task():
    one, other = FAMILY.sample_task(KEY), Sinusoid(3, 50).sample_task(KEY)
    assert_trees_close(one[0], other[0], rtol=0, atol=0)


def test_loss_is_of_the_support_and_outer_loss_of_the_query_set():
    task = FAMILY.sample(KEY)
    assert isinstance(task, FewShotObjective) and task.has_outer_loss() and task.is_judged_by_outer_loss()
    params = start_of(FAMILY)
    for loss, (x, y) in ((task.loss, task.support), (task.outer_loss, task.query)):
        expected = np.mean((np.asarray(_network(jax.tree.leaves(params), x)) - np.asarray(y)) ** 2)
        np.testing.assert_allclose(loss(params, 0, KEY), expected, rtol=1e-5)


def _network(weights, x):
    w1, b1, w2, b2, w3, b3 = weights
    x = jax.nn.relu(x @ w1.T + b1[None])
    return jax.nn.relu(x @ w2.T + b2[None]) @ w3.T + b3[None]


def test_evaluations_show_the_query_set():
    """So do those of a wrapper; the steps are those on the support set."""
    learner = MAML(start_of(FAMILY), 0.05)
    keys = jr.split(jr.key(5), 2)
    found = l2o.evaluate(learner, FAMILY, num_steps=2, num_objectives=2, key=jr.key(5)).losses
    for row, key in zip(found, keys, strict=True):
        okey, _, lkey = jr.split(key, 3)
        task = FAMILY.sample(okey)
        adapted = l2o.adapt(learner, task)
        after = np.mean((np.asarray(jax.vmap(adapted)(task.query[0])) - np.asarray(task.query[1])) ** 2)
        np.testing.assert_allclose(row, [task.outer_loss(learner.start, 0, lkey), after], rtol=1e-5)
    scaled = Scaled(FAMILY, 2.0, 2.0)
    twice = l2o.evaluate(learner, scaled, num_steps=1, num_objectives=2, key=jr.key(5)).losses
    tasks = [scaled.sample(jr.split(k, 3)[0]).objective for k in keys]
    np.testing.assert_allclose(
        twice[:, 0], [2 * t.outer_loss(learner.start, 0, KEY) for t in tasks], rtol=1e-5
    )


class Normed(eqx.Module):
    """BatchNorm and dropout before a linear layer."""

    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        self.norm = eqx.nn.BatchNorm(1, "batch", mode="batch", momentum=0.5)
        self.dropout = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(1, 1, key=key)

    def __call__(self, x, state, key):
        x, state = self.norm(x, state)
        return self.out(self.dropout(x, key=key)), state


def predictions(model, x, state, key):
    call = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    return call(x, state, jr.split(key, len(x)))


TRACES: list[Any] = []


def error_and_predictions(model, batch, state, key):
    """The predictions as auxiliary output."""
    TRACES.append(batch)
    x, y = batch
    found, state = predictions(model, x, state, key)
    return jnp.mean((found - y) ** 2), (state, found)


def make_normed(key):
    return eqx.nn.make_with_state(Normed)(key)


def normed(query_mode: Any = "training"):
    task = Sinusoid(6, 4).sample_task
    return FewShot(make_normed, error_and_predictions, task, has_aux=True, query_mode=query_mode)


@pytest.mark.parametrize("query_mode", ["training", "inference"])
def test_which_statistics_the_query_set_is_scaled_by(query_mode):
    """Its own in training mode; those of the support set in inference mode, where dropout is off."""
    family = normed(query_mode)
    task, params = family.sample(KEY), start_of(family)
    _, state = task.loss_and_state(params, 0, KEY)
    after: Any = task.with_state(state)
    x, y = task.query
    others = FewShotObjective(
        after.make_model,
        after.static,
        after.loss_fn,
        after.support,
        (x.at[1:].add(3.0), y),
        after.trainable,
        state,
        query_mode=query_mode,
    )
    found, moved = (t.outer_loss_and_aux(params, 1, KEY)[1] for t in (after, others))
    model = eqx.nn.inference_mode(task.model(params))
    expected, _ = predictions(model, x, state, KEY)
    if query_mode == "inference":
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_array_equal(found[0], moved[0])
        assert after.outer_loss(params, 1, KEY) == after.outer_loss(params, 2, jr.key(9))
    else:
        seen = (x - x.mean()) / jnp.sqrt(x.var() + model.norm.eps)
        kept = jax.vmap(model.out)(2 * seen)
        # Half of the entries are dropped, the others doubled.
        assert np.all(np.isclose(found, kept, rtol=1e-4) | np.isclose(found, model.out.bias[0]))
        assert after.outer_loss(params, 1, KEY) != after.outer_loss(params, 2, KEY)
    # The query set leaves the state alone, the support set does not.
    assert not eqx.tree_equal(state, task.state)


def test_adapting_a_model_with_a_state_compiles_once_and_returns_both():
    family = normed()
    learner = MAML(start_of(family), 0.1)
    tasks = [family.sample(k) for k in jr.split(KEY, 2)]
    TRACES.clear()
    (model, state), _ = [l2o.adapt(learner, family, t.support, steps=3, key=KEY) for t in tasks]
    count = len(TRACES)
    assert count > 0
    l2o.adapt(learner, family, tuple(map(np.asarray, tasks[1].support)), steps=3, key=KEY)
    assert len(TRACES) == count
    assert isinstance(model, Normed)
    # The same by hand, step by step.
    task, params = tasks[0], learner.start
    for t in range(3):
        grads, after = eqx.filter_grad(
            lambda p, t=t, task=task: task.loss_and_state(p, t, KEY), has_aux=True
        )(params)
        params, task = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), task.with_state(after)
    assert_trees_close(eqx.filter(model, eqx.is_inexact_array), params, rtol=1e-5, atol=1e-6)
    assert_trees_close(jax.tree.leaves(state), jax.tree.leaves(task.state), rtol=1e-5, atol=1e-6)


def test_adapting_from_whatever_knows_the_model_is_the_same():
    learner, task = MAML(start_of(FAMILY), 0.1), FAMILY.sample(KEY)
    data = FromModel(FAMILY.make_model, FAMILY.loss_fn, task.support, 3)

    def weights(model):
        assert callable(model.activation)
        return jax.tree.leaves(eqx.filter(model, eqx.is_array))

    expected = weights(l2o.adapt(learner, task, steps=2))
    for known in (FAMILY, data, data.sample(KEY)):
        assert_trees_close(weights(l2o.adapt(learner, known, task.support, steps=2)), expected)
    assert_trees_close(weights(l2o.adapt(learner, task, steps=0)), jax.tree.leaves(learner.start))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sinusoid(0), "num_support=0"),
        (lambda: Sinusoid(interval=(1.0, -1.0)), r"interval=\(1.0, -1.0\)"),
        (lambda: FewShot(make_normed, lambda model: model, FAMILY.sample_task), "FewShot\\(loss_fn"),
        (lambda: l2o.adapt(MAML(start_of(FAMILY)), FAMILY), "give the examples"),
        (lambda: l2o.adapt(MAML(start_of(FAMILY)), FAMILY.sample(KEY), steps=-1), "steps=-1"),
        (lambda: l2o.adapt(MAML(start_of(Sinusoid(3))), FAMILY.sample(KEY)), "does not fit"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
