"""Tasks of few examples and learners of their start: definitions written out by hand, and what follows."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import assert_trees_close
from jax import lax

import l2o_eqx as l2o
from l2o_eqx.estimators import Backprop, Replay
from l2o_eqx.objectives import FewShotObjective, Sinusoid
from l2o_eqx.optimizers import MAML, moves_head
from l2o_eqx.strategies import OncePerSuperEpoch
from l2o_eqx.weightings import FinalOnly

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
    "maml++": ({"rates": "leaf", "num_rates": 2}, lambda learned, step, i: learned[i][min(step, 1)]),
    "one_rate": ({"rates": "tree"}, lambda learned, step, i: learned[0]),
    "anil": (
        {"rates": "leaf", "moving": moves_head},
        lambda learned, step, i: learned[i - 4] if i >= 4 else 0.0,
    ),
}


@pytest.mark.parametrize(
    ("name", "estimator"),
    [(name, "true") for name in LEARNERS] + [("maml", "replay"), ("maml++", "first order")],
)
def test_the_meta_gradient_is_that_of_the_loop_by_hand(name, estimator):
    """In float64 to 1e-10, through `meta_train`: one update of gradient descent at the rate 1."""
    settings, rate = LEARNERS[name]
    made = {"true": Backprop(()), "replay": Replay(), "first order": Backprop()}[estimator]
    with jax.enable_x64(True):
        learner = MAML(start_of(FAMILY), 0.1, **settings)
        assert jax.tree.leaves(learner.start)[0].dtype == jnp.float64
        solution = l2o.meta_train(
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
