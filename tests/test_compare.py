import csv

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import FAMILIES, LEARNED

import l2o_eqx
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import FromOptax


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_is_unroll(family, getkey):
    """Every row is `unroll` on the objective, start and minibatches that its key picks."""
    optimizer, family, key = LEARNED["lstm_two_feature"](getkey()), FAMILIES[family](), getkey()
    losses = l2o_eqx.evaluate(optimizer, family, num_steps=4, num_objectives=3, key=key).losses
    assert losses.shape == (3, 4)
    for row, k in zip(losses, jr.split(key, 3), strict=True):
        okey, ikey, lkey = jr.split(k, 3)
        objective = family.sample(okey)
        params = objective.init(ikey)
        run = l2o_eqx.unroll(optimizer, objective, params, optimizer.init(params), 4, key=lkey)
        np.testing.assert_allclose(row, run.losses, rtol=2e-4)


def test_evaluate_measures_where_it_ends(getkey):
    """More objectives than run side by side, so that the last chunk is filled up."""
    optimizer, family, key = LEARNED["lstm_identity"](getkey()), Quadratic(512), getkey()

    def measure(objective, params):
        return {"residual": jnp.sum((objective.matrix @ params - objective.target) ** 2), "at": params[:2]}

    end = l2o_eqx.evaluate(optimizer, family, num_steps=2, num_objectives=5, measure=measure, key=key)
    longer = l2o_eqx.evaluate(optimizer, family, num_steps=3, num_objectives=5, key=key)
    assert end.measured["at"].shape == (5, 2)
    np.testing.assert_allclose(end.measured["residual"], longer.losses[:, 2], rtol=1e-4)
    assert longer.measured is None


def test_evaluate_takes_optax_and_shares_draws(getkey):
    key = getkey()
    runs = [
        l2o_eqx.evaluate(o, Quadratic(3), num_steps=3, num_objectives=4, key=key).losses
        for o in (optax.sgd(0.01), FromOptax(optax.sgd(0.01)), LEARNED["lstm_identity"](key))
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_allclose(runs[0][:, 0], runs[2][:, 0], rtol=1e-6)
    assert not np.allclose(runs[0][:, 1], runs[2][:, 1])


def test_evaluate_restarts_is_each_alone(getkey):
    keys, key = jr.split(getkey(), 2), getkey()
    batch = eqx.filter_vmap(LEARNED["lstm_identity"])(keys)
    kwargs = {"num_steps": 3, "num_objectives": 4, "key": key}
    losses = l2o_eqx.evaluate(batch, Quadratic(3), restarts=2, **kwargs).losses
    assert losses.shape == (2, 4, 3)
    for i in range(2):
        one = l2o_eqx.evaluate(l2o_eqx.select_restart(batch, i), Quadratic(3), **kwargs)
        np.testing.assert_allclose(losses[i], one.losses, rtol=1e-5)


def test_any_number_of_objectives_and_old_keys(getkey):
    """131 is prime: the last chunk is filled up, and its filling left out again."""
    optimizer, key = LEARNED["lstm_identity"](getkey()), jr.PRNGKey(3)
    many = l2o_eqx.evaluate(optimizer, Quadratic(40), num_steps=2, num_objectives=131, key=key).losses
    keys = jr.split(key, 131)
    objective = Quadratic(40).sample(jr.split(keys[130], 3)[0])
    start = objective.loss(objective.init(jr.split(keys[130], 3)[1]), 0, key)
    assert many.shape == (131, 2)
    np.testing.assert_allclose(many[130, 0], start, rtol=1e-5)


def test_evaluate_refuses_what_is_no_batch(getkey):
    with pytest.raises(ValueError, match=r"evaluate\(restarts=7\)"):
        l2o_eqx.evaluate(
            LEARNED["lstm_identity"](getkey()), Quadratic(2), num_steps=2, restarts=7, key=getkey()
        )


class Bowl(l2o_eqx.objectives.AbstractObjective):
    start: jax.Array

    def init(self, key):
        return self.start

    def loss(self, params, step, key):
        return jnp.sum(params**2) / 2


class Bowls(l2o_eqx.objectives.AbstractObjectiveFamily):
    """f(θ) = ½θ²: SGD gives f(θ_t) = f(θ_0)·(1 − lr)^{2t}, best at lr = 1, diverging above 2."""

    def sample(self, key):
        return Bowl(jr.normal(key, (1,)))


def test_tuning_finds_the_best_rate(getkey):
    comparison = l2o_eqx.compare(
        {"SGD": optax.sgd, "fixed": optax.sgd(0.5)},
        Bowls(),
        num_steps=6,
        num_objectives=8,
        learning_rates=(0.1, 0.9, 1.3, 100.0),
        key=getkey(),
    )
    assert comparison.learning_rates == {"SGD": 0.9}
    sgd, fixed = (comparison.trajectories[n].losses for n in ("SGD", "fixed"))
    np.testing.assert_array_equal(sgd[:, 0], fixed[:, 0])
    np.testing.assert_allclose(sgd[:, 5], sgd[:, 0] * 0.1**10, rtol=1e-3)
    np.testing.assert_allclose(fixed[:, 5], sgd[:, 0] * 0.5**10, rtol=1e-3)
    medians = comparison.tuning_losses["SGD"]
    assert medians.argmin() == 1 and medians.shape == (4,)
    rows = comparison.summary()
    assert [row["name"] for row in rows] == ["SGD", "fixed"]
    np.testing.assert_allclose(rows[1]["median"], np.median(fixed[:, 5]), rtol=1e-6)
    assert not rows[0]["at_edge"] and rows[1]["learning_rate"] is None and not rows[1]["at_edge"]


def test_diverged_runs_count_as_infinite(getkey):
    comparison = l2o_eqx.compare(
        {"SGD": optax.sgd, "NaN": optax.scale(jnp.nan)},
        Bowls(),
        num_steps=4,
        num_objectives=3,
        learning_rates=(0.5,),
        key=getkey(),
    )
    nan = comparison.summary()[-1]
    assert nan["name"] == "NaN" and nan["median"] == np.inf and nan["diverged"] == 1
    assert comparison.summary()[0]["at_edge"]


def test_tuning_draws_are_not_the_comparison_draws(getkey):
    """With tuning on other draws, more tuning draws leave the compared runs as they are."""
    kwargs = {"num_steps": 2, "num_objectives": 4, "learning_rates": (0.5,), "key": getkey()}
    few, many = (
        l2o_eqx.compare({"SGD": optax.sgd}, Bowls(), num_tuning_objectives=n, **kwargs) for n in (2, 5)
    )
    np.testing.assert_array_equal(few.trajectories["SGD"].losses, many.trajectories["SGD"].losses)
    assert few.tuning_losses["SGD"] != many.tuning_losses["SGD"]


def test_share_of_restarts_and_csv(tmp_path, getkey):
    class Decay(l2o_eqx.optimizers.AbstractOptimizer):
        rate: jax.Array

        def init(self, params):
            return None

        def update(self, grads, state, params):
            return jax.tree.map(lambda g: -self.rate * g, grads), state

    comparison = l2o_eqx.compare(
        {"learned": Decay(jnp.array([0.2, 0.6, 0.9])), "SGD": optax.sgd(0.5)},
        Bowls(),
        num_steps=3,
        num_objectives=5,
        restarts=3,
        key=getkey(),
    )
    assert comparison.restart_medians("learned").shape == (3,)
    np.testing.assert_allclose(comparison.share_beating("learned", "SGD"), 2 / 3)

    comparison.write_final_losses(tmp_path / "final.csv")
    comparison.write_curves(tmp_path / "curves.csv")
    with open(tmp_path / "final.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5 + 5
    assert float(rows[7]["final_loss"]) == float(comparison.trajectories["learned"].final_losses[1, 2])
    with open(tmp_path / "curves.csv") as file:
        rows = list(csv.DictReader(file))
    median = float(next(r for r in rows if r["optimizer"] == "SGD" and r["step"] == "2")["median"])
    np.testing.assert_allclose(median, np.median(comparison.trajectories["SGD"].losses[:, 2]), rtol=1e-6)


def test_default_baselines_and_rates():
    names = "SGD, momentum, Nesterov, RMSprop, Adam, AdamW, Lion, Muon, L-BFGS, line search"
    assert list(l2o_eqx.BASELINES) == names.split(", ")
    assert len(l2o_eqx.LEARNING_RATES) == 25
    assert l2o_eqx.LEARNING_RATES[0] == 1e-5 and l2o_eqx.LEARNING_RATES[-1] == 10


@pytest.mark.parametrize(
    "change, message",
    [({"num_steps": 0}, "num_steps=0"), ({"learning_rates": ()}, "at least one learning rate")],
)
def test_errors_name_the_argument(change, message, getkey):
    with pytest.raises(ValueError, match=message):
        l2o_eqx.compare({"SGD": optax.sgd}, Bowls(), **{"num_steps": 2, "key": getkey(), **change})
