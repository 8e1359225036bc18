import csv
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.stats
from helpers import FAMILIES, LEARNED

import l2o_eqx
from l2o_eqx import Baseline, LineSearch
from l2o_eqx._draws import draw
from l2o_eqx._tune import tune
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import FromOptax


@pytest.mark.parametrize("family", ["quadratic", "scaled_from_model", "mnist_mixed", "mnist_conv"])
def test_evaluate_is_unroll(family, getkey):
    """Every row is `unroll` on the objective, start and minibatches that its key picks."""
    optimizer, family, key = LEARNED["lstm_log_and_sign"](getkey()), FAMILIES[family](), getkey()
    losses = l2o_eqx.evaluate(optimizer, family, num_steps=4, num_objectives=3, key=key).losses
    assert losses.shape == (3, 4)
    for row, k in zip(losses, jr.split(key, 3), strict=True):
        okey, ikey, lkey = jr.split(k, 3)
        objective = family.sample(okey)
        params = objective.init(ikey)
        run = l2o_eqx.unroll(optimizer, objective, params, optimizer.init(params), 4, key=lkey)
        np.testing.assert_allclose(row, run.losses, rtol=2e-4)


def test_evaluate_measures_where_it_ends(getkey):
    """More objectives than run in parallel, so that the last chunk is filled up."""
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


class Decay(l2o_eqx.optimizers.AbstractOptimizer):
    """Gradient descent with a rate that is a meta-parameter."""

    rate: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        return jax.tree.map(lambda g: -self.rate * g, grads), state


def test_share_of_restarts_and_csv(tmp_path, getkey):
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
    assert l2o_eqx.LEARNING_RATES[0] == 1e-4 and l2o_eqx.LEARNING_RATES[-1] == 100


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"learning_rates": ()}, "at least one learning rate"),
        ({"last": 3}, "last=3"),
    ],
)
def test_errors_name_the_argument(change, message, getkey):
    with pytest.raises(ValueError, match=message):
        l2o_eqx.compare({"SGD": optax.sgd}, Bowls(), **{"num_steps": 2, "key": getkey(), **change})


def test_momentum_and_schedule_are_tuned_too(getkey):
    """Gradient descent at rate 1 solves a bowl in one step, with a cosine too; the first of equals wins."""
    momentum = Baseline(optax.sgd, [{"momentum": 0.5}, {"momentum": 0.0}], ["constant", "cosine"])
    comparison = l2o_eqx.compare(
        {"SGD": momentum}, Bowls(), num_steps=5, num_objectives=3, learning_rates=(0.3, 1.0), key=getkey()
    )
    assert comparison.settings == {"SGD": {"learning_rate": 1.0, "momentum": 0.0, "schedule": "constant"}}
    np.testing.assert_array_equal(comparison.trajectories["SGD"].losses[:, 1:], 0.0)
    losses = comparison.tuning_losses["SGD"]
    assert losses.shape == (2,) and losses[0] > 0 == losses[1]
    assert comparison.summary()[0]["settings"] == comparison.settings["SGD"]


def test_settings_make_the_optimizer_that_was_run(getkey):
    """What a comparison found best, as a ready transformation, runs as it did: momentum, schedule, rate."""
    baseline = Baseline(optax.sgd, [{"momentum": 0.5}, {"momentum": 0.9}], ["cosine", "warm-up cosine"])
    kwargs: dict[str, Any] = {"num_steps": 12, "num_objectives": 3, "key": getkey()}
    found = l2o_eqx.compare({"SGD": baseline}, Bowls(), learning_rates=(0.05, 0.2), **kwargs)
    ready = baseline.with_settings(12, **found.settings["SGD"])
    again = l2o_eqx.compare(
        {"ready": ready, "longer": baseline.with_settings(24, **found.settings["SGD"])}, Bowls(), **kwargs
    )
    losses = found.trajectories["SGD"].losses
    np.testing.assert_allclose(again.trajectories["ready"].losses, losses, rtol=1e-5)
    assert not np.allclose(again.trajectories["longer"].losses, losses, rtol=0.01)
    with pytest.raises(ValueError, match="'constant'.*it has cosine, warm-up cosine"):
        baseline.with_settings(12, 0.1)


@pytest.mark.parametrize(
    "name, schedule",
    [
        ("constant", lambda rate: optax.constant_schedule(rate)),
        ("cosine", lambda rate: optax.cosine_decay_schedule(rate, 20)),
        ("warm-up cosine", lambda rate: optax.warmup_cosine_decay_schedule(0.0, rate, 2, 20)),
    ],
)
def test_schedules_are_those_of_optax(name, schedule, getkey):
    """As one of several, picked by a traced number."""
    draws = draw(Quadratic(3), jr.split(getkey(), 4))
    kwargs = {"rates": (0.01, 0.02), "num_steps": 20}
    tuned = tune(Baseline(optax.adam), draws, mode="full", **kwargs)
    alone = tune(Baseline(lambda rate: optax.adam(schedule(rate)), schedules=["constant"]), draws, **kwargs)
    index = list(l2o_eqx.SCHEDULES).index(name)
    np.testing.assert_allclose(tuned.losses[index, 0], alone.losses[0, 0], rtol=1e-5)
    for step in range(21):
        factor = l2o_eqx.SCHEDULES[name](20)(step)
        np.testing.assert_allclose(factor, schedule(1.0)(step), atol=1e-6)


def test_a_search_in_stages_finds_what_trying_all_finds(getkey):
    """With a third of the runs; what it has tried it agrees about."""
    draws = draw(FiveSlopes(), jr.split(getkey(), 4))
    baseline = Baseline(optax.sgd, [{"momentum": m} for m in (0.5, 0.8, 0.9)])
    full, staged, again = (
        tune(baseline, draws, rates=l2o_eqx.LEARNING_RATES, num_steps=20, mode=mode)
        for mode in ("full", "staged", "staged")
    )
    assert staged.settings == full.settings == again.settings
    tried = ~np.isnan(staged.losses)
    assert full.losses.shape == (3, 3, 25) and not np.isnan(full.losses).any()
    assert tried.sum() < full.losses.size / 3
    np.testing.assert_allclose(staged.losses[tried], full.losses[tried], rtol=1e-4)
    assert np.isnan(staged.losses_by_rate[0]) and not np.isnan(full.losses_by_rate[0])


def test_staged_is_taken_where_full_would_cost_too_much(monkeypatch, getkey):
    draws = draw(Bowls(), jr.split(getkey(), 2))
    baseline = Baseline(optax.sgd)
    for cost, all_tried in ((1e9, True), (1.0, False)):
        monkeypatch.setattr("l2o_eqx._tune._FULL_COST", cost)
        losses = tune(baseline, draws, rates=l2o_eqx.LEARNING_RATES, num_steps=3).losses
        assert np.isnan(losses).any() != all_tried
    # Learning rates alone are all tried, whatever they cost.
    alone = tune(Baseline(optax.sgd, schedules=["constant"]), draws, rates=(0.1, 1.0), num_steps=3)
    assert not np.isnan(alone.losses).any()


def test_what_diverges_is_broken_and_not_beaten(getkey):
    comparison = l2o_eqx.compare(
        {
            "learned": Decay(jnp.array(0.5)),
            "NaN": Baseline(lambda rate: optax.scale(rate * jnp.nan), schedules=["constant"]),
            "too fast": optax.sgd(1e20),
            "SGD": optax.sgd(0.1),
        },
        Bowls(),
        num_steps=4,
        num_objectives=3,
        learning_rates=(0.1, 1.0),
        key=getkey(),
    )
    rows = {row["name"]: row for row in comparison.summary()}
    assert [name for name, row in rows.items() if row["broken"]] == ["NaN", "too fast"]
    assert rows["NaN"]["beaten"] is None and rows["SGD"]["beaten"] == 1.0
    assert np.isinf(comparison.tuning_losses["NaN"]).all()
    assert np.isnan(comparison.share_beating("learned", "NaN"))
    assert np.isnan(comparison.share_of_objectives("learned", "NaN").low)
    assert comparison.steps_to_pass("learned", "NaN") is None
    assert comparison.best_baseline() == "SGD" and comparison.learned == ("learned",)


def test_rates_that_must_be_python_numbers(getkey):
    """optax asks whether the peak of this schedule is zero, which no traced number can answer."""

    def make(rate):
        return optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, 2, 8))

    reports = []
    comparison = l2o_eqx.compare(
        {"Adam": make, "alone": make(0.5)},
        Bowls(),
        num_steps=8,
        num_objectives=3,
        num_tuning_objectives=2,
        learning_rates=(0.01, 0.5),
        callbacks=[lambda p: reports.append((p.name, p.done, p.total))],
        key=getkey(),
    )
    assert comparison.learning_rates == {"Adam": 0.5}
    adam, alone = (comparison.trajectories[name].losses for name in ("Adam", "alone"))
    np.testing.assert_allclose(adam, alone, rtol=1e-5)
    assert reports[0] == ("Adam", 0, 2) and reports[-1] == ("alone", 2, 2)
    done = [index for _, index, _ in reports]
    assert done == sorted(done) and 0.45 in done


def test_a_comparison_goes_on_where_it_was_stopped(getkey):
    """What is known is not done again, and the whole is the same, in the order that was asked for."""
    made = []

    def adam(rate):
        made.append(rate)
        return optax.adam(rate)

    learned = eqx.filter_vmap(LEARNED["lstm_adam_like"])(jr.split(getkey(), 2))
    optimizers = {"SGD": optax.sgd, "learned": learned, "Adam": adam, "fixed": optax.sgd(0.1)}
    common: dict[str, Any] = dict(
        num_steps=6, num_objectives=3, num_tuning_objectives=2, learning_rates=(0.01, 0.1), restarts=2
    )
    key, seen = getkey(), []
    whole = l2o_eqx.compare(optimizers, Bowls(), key=key, callbacks=[seen.append], **common)
    assert [list(p.comparison.trajectories) for p in seen if p.done == int(p.done)] == [
        list(optimizers)[:n] for n in range(5)
    ]
    count, some = len(made), next(p.comparison for p in seen if p.done == 3)
    reordered = {name: some.trajectories[name] for name in ("Adam", "learned", "SGD")}
    known = eqx.tree_at(lambda c: c.trajectories, some, reordered, is_leaf=lambda x: x is some.trajectories)
    again = l2o_eqx.compare(optimizers, Bowls(), key=key, known=known, **common)
    assert (
        len(made) == count and eqx.tree_equal(again, whole) and list(again.trajectories) == list(optimizers)
    )
    changes: list[dict[str, Any]] = [{"num_steps": 5}, {"learning_rates": (0.1,)}, {"num_objectives": 2}]
    for changed in (*changes, {"restarts": 3}):
        with pytest.raises(
            l2o_eqx.ArgumentError, match=r"compare\(known=...\)` is of a comparison with other"
        ):
            l2o_eqx.compare(optimizers, Bowls(), key=key, known=known, **{**common, **changed})


class Slopes(Bowl):
    def loss(self, params, step, key):
        return jnp.sum(jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]) * params**2)


class FiveSlopes(l2o_eqx.objectives.AbstractObjectiveFamily):
    """Quadratics with a condition number of five."""

    def sample(self, key):
        return Slopes(jr.normal(key, (5,)))


def test_lbfgs_solves_a_quadratic_and_is_marked(getkey):
    comparison = l2o_eqx.compare(
        {"L-BFGS": LineSearch(optax.lbfgs()), "SGD": optax.sgd(0.01)},
        FiveSlopes(),
        num_steps=12,
        num_objectives=5,
        key=getkey(),
    )
    trajectories = comparison.trajectories["L-BFGS"]
    assert np.max(trajectories.final_losses) < 1e-8
    spent = np.asarray(trajectories.evaluations)
    assert spent.shape == (5, 12) and (spent[:, 0] == 1).all() and (np.diff(spent) >= 2).all()
    row = comparison.summary()[0]
    assert row["name"] == "L-BFGS" and row["evaluations_per_step"] == spent[:, -1].mean() / 12
    assert comparison.best_baseline() == "SGD"
    # After as many evaluations as SGD has steps.
    known = [losses[s <= 12][-1] for losses, s in zip(np.asarray(trajectories.losses), spent, strict=True)]
    np.testing.assert_allclose(row["median_per_evaluation"], np.median(known), rtol=1e-6)
    curves = comparison.curves_by_evaluations()
    np.testing.assert_array_equal(curves["SGD"], comparison.curves()["SGD"])
    assert curves["L-BFGS"].shape == (3, 12)


def test_value_grad_and_value_fn_reach_whatever_takes_them(getkey):
    """Polyak's step on ½θ² is half of the gradient, which halves θ; alone, in a chain, or to be tuned."""
    search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5))

    def no_keywords_but_its_own():
        def update(grads, state, params=None, *, value):
            return optax.polyak_sgd().update(grads, state, params, value=value)

        keywords: Any = update
        return optax.GradientTransformationExtraArgs(optax.polyak_sgd().init, keywords)

    comparison = l2o_eqx.compare(
        {
            "ready": optax.polyak_sgd(),
            "tuned": optax.polyak_sgd,
            "chained": optax.chain(optax.clip(1e3), optax.polyak_sgd()),
            "own": no_keywords_but_its_own(),
            "search": search,
            "tuned search": lambda rate: optax.chain(optax.scale(rate), search),
        },
        Bowls(),
        num_steps=4,
        num_objectives=2,
        num_tuning_objectives=1,
        learning_rates=(1.0,),
        key=getkey(),
    )
    for name in ("ready", "tuned", "chained", "own"):
        losses = np.asarray(comparison.trajectories[name].losses)
        np.testing.assert_allclose(losses, losses[:, :1] / 4.0 ** np.arange(4), rtol=1e-5)
        assert comparison.evaluations_per_step(name) == 1
    for name in ("search", "tuned search"):
        assert comparison.evaluations_per_step(name) > 1
        # The full step is right at once.
        np.testing.assert_allclose(comparison.trajectories[name].losses[:, 1:], 0, atol=1e-12)


_COUNT = []


class Counted(Bowl):
    def loss(self, params, step, key):
        jax.debug.callback(lambda x: _COUNT.append(float(x[0])), params)
        # Not a quadratic, so that there is something to search.
        return jnp.sum(jnp.cosh(3 * params)) + jnp.sum(params**2)


class CountedBowls(l2o_eqx.objectives.AbstractObjectiveFamily):
    def sample(self, key):
        return Counted(jnp.ones(1))


@pytest.mark.parametrize(
    "transformation",
    [
        optax.lbfgs(),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=20)),
        optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(max_linesearch_steps=20)),
    ],
)
def test_every_evaluation_is_counted(transformation, getkey):
    """As many as without batching, where no branch is taken that is not needed."""
    objective = Counted(jnp.ones(1))
    params, num_steps, key = jnp.ones(1), 3, getkey()
    losses = l2o_eqx.compare(
        {"it": LineSearch(transformation)}, CountedBowls(), num_steps=num_steps + 1, num_objectives=1, key=key
    ).trajectories["it"]
    jax.effects_barrier()
    _COUNT.clear()
    state = transformation.init(params)
    for step in range(num_steps):

        def value_fn(params, step=step):
            return objective.loss(params, step, key)

        value, grads = jax.value_and_grad(value_fn)(params)
        np.testing.assert_allclose(losses.losses[0, step], value, rtol=1e-4)
        updates, state = transformation.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn
        )
        params = params + updates
    jax.effects_barrier()
    # The loss of one more step is known after its own evaluation.
    assert np.asarray(losses.evaluations)[0, -1] == len(_COUNT) + 1


@pytest.mark.parametrize("wins, count", [(0, 7), (3, 7), (7, 7)])
def test_the_share_of_objectives_has_wilsons_interval(wins, count):
    losses = {
        "learned": np.zeros((2, count, 1)),
        "SGD": np.where(np.arange(count) < wins, 1.0, -1.0)[:, None],
    }
    trajectories = {name: l2o_eqx.Trajectories(jnp.asarray(x, jnp.float32)) for name, x in losses.items()}
    comparison = l2o_eqx.Comparison(trajectories, {}, {}, (0.1,))
    share = comparison.share_of_objectives("learned", "SGD")
    expected = scipy.stats.binomtest(wins, count).proportion_ci(method="wilson")
    np.testing.assert_allclose(share, (wins / count, *expected), atol=1e-9)
    row = next(row for row in comparison.summary() if row["name"] == "SGD")
    assert (row["beaten"], row["beaten_low"], row["beaten_high"]) == tuple(share)


def test_steps_to_pass_and_means_of_last_steps():
    """learned halves its loss at every step, SGD ends at 0.2: passed after three steps, means after four."""
    halves = jnp.tile(0.5 ** jnp.arange(8.0), (2, 3, 1))
    flat = jnp.full((3, 8), 0.2)
    trajectories = {"learned": l2o_eqx.Trajectories(halves), "SGD": l2o_eqx.Trajectories(flat)}
    make = functools.partial(l2o_eqx.Comparison, trajectories, {}, {}, (0.1,))
    assert make().steps_to_pass("learned", "SGD") == 3
    assert make().steps_to_pass("SGD", "learned") is None
    # (0.25 + 0.125)/2 < 0.2, known with the loss after three steps.
    smooth = make(last=2)
    assert smooth.steps_to_pass("learned", "SGD") == 3 and make(last=3).steps_to_pass("learned", "SGD") == 4
    np.testing.assert_allclose(smooth.final_losses("learned"), np.full((2, 3), 1.5 * 0.5**7))
    assert smooth.share_beating("learned", "SGD") == 1.0


def test_the_mean_of_the_last_losses_is_tuned(getkey):
    """At rate 1.9 a bowl's loss falls by 0.81 a step: best of these after many steps, worst of few."""
    run = functools.partial(
        l2o_eqx.compare,
        {"SGD": optax.sgd},
        Bowls(),
        num_steps=3,
        num_objectives=2,
        num_tuning_objectives=3,
        learning_rates=(0.5, 0.9),
        key=getkey(),
    )
    one, all_steps = run(last=1), run(last=3)
    start = one.tuning_losses["SGD"][0] / 0.5**4
    np.testing.assert_allclose(one.tuning_losses["SGD"], start * np.array([0.5**4, 0.1**4]), rtol=1e-4)
    means = start * np.array([1 + 0.5**2 + 0.5**4, 1 + 0.1**2 + 0.1**4]) / 3
    np.testing.assert_allclose(all_steps.tuning_losses["SGD"], means, rtol=1e-4)
    assert all_steps.last == 3


def test_muon_is_for_matrices():
    assert "Muon" not in l2o_eqx.baselines_for(Quadratic(3))
    assert list(l2o_eqx.baselines_for(FAMILIES["mnist"]())) == list(l2o_eqx.BASELINES)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"grid": []}, "at least one entry"),
        ({"grid": [{"b1": 0.9}, {"b2": 0.9}]}, "same keywords"),
        ({"schedules": ["linear"]}, "no schedule 'linear'"),
    ],
)
def test_baselines_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Baseline(optax.adam, **arguments)


def test_all_baselines_run_on_a_network(getkey):
    """Every one with its own number of settings; none is broken at these rates."""
    family = FAMILIES["from_model"]()
    comparison = l2o_eqx.compare(
        {
            name: Baseline(one.make, one.grid[:2]) if isinstance(one, Baseline) else one
            for name, one in l2o_eqx.baselines_for(family).items()
        },
        family,
        num_steps=3,
        num_objectives=2,
        num_tuning_objectives=2,
        learning_rates=(1e-4, 1e-3),
        last=2,
        key=getkey(),
    )
    assert not any(row["broken"] for row in comparison.summary())
    assert set(comparison.settings) == set(l2o_eqx.BASELINES) - {"L-BFGS", "line search"}
