"""Recipes of claims that have no figure: their parts, and what they decide on made-up results."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import assert_trees_close
from jax import lax

from l2o_eqx import data, recipes
from l2o_eqx._inner import as_batch, run_steps
from l2o_eqx._layout import batched_init
from l2o_eqx._replay import replay, suffix_sums
from l2o_eqx.objectives import MNIST, Quadratic
from l2o_eqx.objectives._minibatch import minibatch_indices
from l2o_eqx.optimizers import Blocks, CoordinatewiseLSTM, Seen
from l2o_eqx.recipes import _experiment, _sec_baselines
from l2o_eqx.recipes._experiment import no_results
from l2o_eqx.recipes._sec_gradients import gradient_sizes, shares_above_one
from l2o_eqx.recipes._sec_settings import BiasedReadout, fluctuation
from l2o_eqx.recipes._sec_windows import window_memory, window_times
from l2o_eqx.recipes._statistics import median_interval
from l2o_eqx.recipes._verdicts import beside, judge_median
from l2o_eqx.strategies import EveryWindow

DIGITS = data.load_mnist("embedded")
SETUP = recipes.Setup(DIGITS, "quick")
RESTARTS = 12


def tiny(key):
    return CoordinatewiseLSTM((2,), key=key)


@pytest.fixture
def biased(getkey):
    lstm = CoordinatewiseLSTM((3,), learning_rate=0.1, linear_readout=True, key=getkey())
    return BiasedReadout(lstm, jnp.asarray(0.7, jnp.float32))


def test_a_bias_moves_every_coordinate_alike(biased, getkey):
    params = {"a": jr.normal(getkey(), (3, 2)), "b": jr.normal(getkey(), (4,))}
    state = biased.init(params)
    with_bias, next_state = biased.update(params, state, None)
    without, expected_state = biased.lstm.update(params, state, None)
    assert_trees_close(with_bias, jax.tree.map(lambda u: u + 0.07, without), rtol=1e-6)
    assert_trees_close(next_state, expected_state, rtol=0, atol=0)


def test_meta_gradient_of_a_biased_readout_is_plain_autodiff_in_blocks(biased, getkey):
    objective, key = Quadratic(5).sample(getkey()), getkey()
    params = objective.init(getkey())
    batch = params[None]
    state = batched_init(biased, batch, block_size=2)
    assert isinstance(state.layout, Blocks)
    join = state.layout.join

    @eqx.filter_jit
    def in_blocks(optimizer):
        *_, record = run_steps(optimizer, as_batch(objective), batch, state, 4, start=0, keys=key[None])
        weights = jnp.ones_like(record.losses)
        grads = jax.vmap(join)(record.grads)
        cotangents = suffix_sums(grads, jnp.ones_like(grads))
        return replay(optimizer, batch, state, Seen(record.grads), record.grads, weights), cotangents

    @eqx.filter_jit
    @eqx.filter_grad
    def plain(optimizer):
        def one_step(carry, step):
            theta, h = carry
            loss, grads = jax.value_and_grad(objective.loss)(theta, step, key)
            updates, h = optimizer.update(lax.stop_gradient(grads), h, None)
            return (theta + updates, h), loss

        return jnp.sum(lax.scan(one_step, (params, biased.init(params)), jnp.arange(4))[1])

    grads, cotangents = in_blocks(biased)
    assert_trees_close(grads, plain(biased), rtol=1e-4, atol=1e-5)
    # Every update has the bias in it once per coordinate, times α.
    np.testing.assert_allclose(grads.bias, 0.1 * jnp.sum(cotangents), rtol=1e-5)


@pytest.mark.parametrize(
    "low, high, status",
    [(2.1, 2.2, "holds"), (1.0, 1.9, "does not hold"), (1.0, 3.0, "undecided"), (2.5, np.inf, "holds")],
)
def test_a_median_is_at_least_what_its_whole_interval_is(low, high, status):
    values = np.array([low] * 6 + [high] * 6)
    assert judge_median(1, values, "them", at_least=2.0).status == status
    opposite = {"holds": "does not hold", "does not hold": "holds"}
    assert judge_median(1, values, "them", at_most=2.0).status == opposite.get(status, status)
    assert judge_median(1, values[-4:], "them", at_least=2.0).status == "undecided"
    with pytest.raises(ValueError, match="`judge_median` needs either"):
        judge_median(1, values, "them")


def test_numbers_beside_a_verdict_do_not_change_it():
    verdict = judge_median(1, np.ones(9), "them", at_most=2.0)
    more = beside(verdict, median_interval(np.full(9, 3.0), what="others"))
    assert (more.claim, more.status) == (verdict.claim, verdict.status)
    assert more.statement.startswith(verdict.statement) and more.statement.endswith("others: 3 (3 to 3)")
    assert [e.value for e in more.estimates] == [1, 3]


def falling(end, *, start=4.0, seed=0):
    """Losses of restarts that fall from `start` to about `end`."""
    spread = 1 + 0.02 * np.random.default_rng(seed).standard_normal((RESTARTS, 1))
    return np.linspace(start, end * spread[:, 0], 40, axis=1).astype(np.float32)


def made_up(figure, losses, metrics=lambda label: {}, measured=lambda panel, label: {}):
    """Results of all experiments of a figure, from `(panel, label) -> losses`."""
    return {
        panel.name: {
            label: recipes.Results(
                losses(panel.name, label), measured(panel.name, label), metrics(label), 1.0
            )
            for label in panel.series
        }
        for panel in figure.panels
    }


def statuses(name, losses=lambda panel, label: falling(1.0), *, extra=None, **others):
    figure = recipes.FIGURES[name](SETUP)
    verdicts = figure.verdicts(made_up(figure, losses, **others), extra)
    assert tuple(v.claim for v in verdicts) == figure.claims
    return {v.claim: v.status for v in verdicts}


@pytest.mark.parametrize("end, status", [(3.9, "holds"), (1.0, "does not hold")])
def test_a_readout_learns_nothing_above_90_percent(end, status):
    assert statuses("readout", lambda panel, label: falling(end if "bias" in label else 1.0))[2] == status


@pytest.mark.parametrize("better, status", [(None, "holds"), ("α=0.1", "does not hold")])
def test_the_best_learning_rate_beats_all_others(better, status):
    best = {"learning-rate a": "α=0.001", "learning-rate b": "α=0.01"}

    def losses(panel, label):
        if label == better:
            return falling(0.5)
        return falling(1.0 if best[panel] == label else 2.0, seed=len(label))

    assert statuses("learning-rate", losses)[3] == status


@pytest.mark.parametrize("eight, status", [(2.0, "holds"), (0.5, "does not hold")])
def test_windows_must_differ_with_as_many_updates_too(eight, status):
    def losses(panel, label):
        ends = {("18a", "T=8"): 2.0, ("18c", "T=8"): eight}
        return falling(ends.get((panel, label), 1.0), seed=len(label))

    assert statuses("fig18", losses) == {30: status, 31: "holds"}


@pytest.mark.parametrize("fair, status", [(2.0, "holds"), (0.5, "does not hold")])
def test_a_long_super_epoch_must_end_lower_than_as_many_updates_of_a_short_one(fair, status):
    def losses(panel, label):
        long = label in ("trained on 3200 steps", "trained on 10 epochs")
        return np.tile(falling(fair if "updates" in label else 1.0 if long else 2.0), (1, 80))

    assert statuses("fig8", losses)[7] == status


@pytest.mark.parametrize(
    "often, status", [(1.0, "holds"), (3.0, "holds"), (0.8, "does not hold"), (0.5, "does not hold")]
)
def test_every_step_may_end_higher_but_not_lower(often, status):
    def metrics(label):
        return {"final_loss": np.full((RESTARTS, 8), 1.0 if "every step" in label else 2.0)}

    def losses(panel, label):
        return falling(often if "every step" in label else 1.0, seed=len(label))

    assert statuses("every-step", losses, metrics=metrics)[33] == status


@pytest.mark.parametrize("norms, status", [((1e-4, 1e-3), "holds"), ((0.1, 1.0), "does not hold")])
def test_very_small_meta_gradients_are_below_a_hundredth(norms, status):
    # The metrics have no panel: the quadratic's restarts come first.
    panels = iter([norms[1]] * 2 + [norms[0]] * 2)

    def metrics(label):
        return {"grad_norm": next(panels) * np.linspace(0.9, 1.1, RESTARTS)[:, None]}

    assert statuses("fig11", metrics=metrics)[14] == status


@pytest.mark.parametrize("best, status", [({}, "holds"), ({"ReLU": 3.0}, "undecided")])
def test_one_restart_below_a_half_can_be_trained(best, status):
    def losses(panel, label):
        found = falling(2.0)
        found[0] = best.get(label, 0.3)
        return found

    assert statuses("fig12", losses)[17] == status


@pytest.mark.parametrize("relu_below, status", [(11, "undecided"), (0, "does not hold")])
def test_one_optimizer_per_layer_is_to_do_as_well_with_relu(relu_below, status):
    """With sigmoid fewer restarts learn; twelve restarts cannot show two shares to be alike."""

    def losses(panel, label):
        below = {("15a", "one per layer"): 0, ("15b", "one per layer"): relu_below}.get(
            (panel, label), RESTARTS
        )
        end = np.where(np.arange(RESTARTS) < below, 1.0, 2.3)
        return np.repeat(end[:, None], 40, axis=1).astype(np.float32)

    def metrics(label):
        return {f"grad_norm/layers.{i}": np.full((RESTARTS, 5), 1.0 + i) for i in (0, 1)}

    assert statuses("fig15", losses, metrics=metrics)[23] == status


@pytest.mark.parametrize("entropy, status", [(np.log(10), "holds"), (1.0, "does not hold")])
def test_guessing_is_judged_by_loss_and_entropy(entropy, status):
    found = statuses(
        "fig10",
        lambda panel, label: np.full((RESTARTS, 40), np.log(10), np.float32),
        measured=lambda panel, label: {"entropy": np.full(RESTARTS, entropy)},
    )
    assert found[11] == status


def test_fluctuation_is_what_a_line_leaves_over():
    line = np.linspace(3.0, 1.0, 30)
    swinging = line + 0.25 * (-1.0) ** np.arange(30)
    diverged = np.where(np.arange(30) < 25, line, np.nan)
    found = fluctuation(np.stack([line, swinging, diverged]).astype(np.float32))
    assert found[0] < 1e-6 and found[2] == np.inf
    # Twenty alternating values, less the little that a line through them explains.
    np.testing.assert_allclose(found[1], 0.25, rtol=0.01)


@pytest.mark.parametrize("power, status", [(-1, "holds"), (1, "does not hold")])
def test_smaller_batches_fluctuate_more(power, status):
    def losses(panel, label):
        size = float(label.split()[0])
        noise = np.random.default_rng(0).standard_normal((RESTARTS, 40))
        return (2 + 0.01 * size**power * noise).astype(np.float32)

    assert statuses("batch-size", losses)[4] == status


@pytest.mark.parametrize("foreign, status", [(0.7, "holds"), (1.1, "holds"), (1.5, "does not hold")])
def test_carrying_over_is_to_be_at_most_a_quarter_worse(foreign, status):
    found = statuses("transfer", lambda panel, label: falling(foreign if "n=16" in label else 1.0))
    assert found[37] == status


@pytest.mark.parametrize(
    "zero_share, end, expected",
    [
        ([0.0, 1.0, 0.3], 1.0, {25: "holds", 26: "holds"}),
        ([0.0, 1.0, 0.3], 3.9, {25: "holds", 26: "does not hold"}),
        ([0.0, 0.9, 0.9], 1.0, {25: "does not hold", 26: "undecided"}),
    ],
)
def test_a_layer_has_vanished_after_a_super_epoch_of_zeros(zero_share, end, expected):
    metrics = {
        "zero_share/layers.0": np.tile(np.float32(zero_share), (RESTARTS, 1)),
        "grad_norm/layers.0": np.ones((RESTARTS, 3), np.float32),
    }
    assert statuses("conv", lambda *_: falling(end), metrics=lambda label: metrics) == expected


def test_the_blocks_of_the_convolutional_network_are_its_layers():
    optimizer = eqx.filter_eval_shape(SETUP.conv_network("relu").make_optimizer, jr.key(0))
    assert list(optimizer.parts()) == ["layers.0", "layers.1", "layers.2"]


def found_baselines(adam):
    one = {"learning_rate": 0.01, "at_edge": False, "final": adam, "last": adam}
    return {"SGD": {**one, "final": None, "last": None}, "Adam": one}


@pytest.mark.parametrize(
    "on_quadratic, on_network, status",
    [
        # None of twelve beats the best baseline, which says little of the best case.
        (2.0, 0.2, "undecided"),
        (0.5, 0.5, "does not hold"),
        (2.0, 3.0, "does not hold"),
    ],
)
def test_learned_optimizers_beat_adam_on_quadratics_and_less_elsewhere(on_quadratic, on_network, status):
    extra = {"quadratic": found_baselines(on_quadratic), "MNIST": found_baselines(on_network)}
    assert statuses("baselines", extra=extra)[36] == status


@pytest.mark.parametrize(
    "ahead, status", [(0, "undecided"), (1, "holds"), (9, "undecided"), (RESTARTS, "does not hold")]
)
def test_the_best_baseline_on_networks_is_beaten_in_the_best_case_only(ahead, status):
    """All beat tuned Adam on the quadratic."""

    def losses(panel, label):
        end = np.where(np.arange(RESTARTS) < ahead, 1.0, 1.5) if panel == "baselines b" else np.ones(RESTARTS)
        return np.repeat(end[:, None], 40, axis=1).astype(np.float32)

    extra = {"quadratic": found_baselines(2.0), "MNIST": found_baselines(1.2)}
    assert statuses("baselines", losses, extra=extra)[36] == status


def test_baselines_see_the_draws_that_restarts_are_tested_on(monkeypatch):
    monkeypatch.setattr(_sec_baselines, "_BASELINES", {"SGD": optax.sgd})
    family = Quadratic(3, theta_std=0.5)
    experiment = SETUP.quadratic(
        family=family,
        make_optimizer=tiny,
        num_steps=6,
        super_epochs=1,
        strategy=EveryWindow(3),
        num_test_objectives=5,
    )
    found = _sec_baselines.run_baselines(experiment, seed=4, num_tuning_objectives=2)["SGD"]
    keys = [jr.split(k, 3) for k in jr.split(_experiment.key_of_tests(4), 5)]
    trajectories = []
    for okey, ikey, _ in keys:
        objective = family.sample(okey)
        matrix, target = np.asarray(objective.matrix), np.asarray(objective.target)
        theta, losses = np.asarray(objective.init(ikey)), []
        for _ in range(6):
            residual = matrix @ theta - target
            losses.append(residual @ residual)
            theta = theta - found["learning_rate"] * 2 * matrix.T @ residual
        trajectories.append(losses)
    median = np.median(trajectories, axis=0)
    np.testing.assert_allclose([found["final"], found["last"]], [median[-1], median.mean()], rtol=1e-4)
    assert not found["at_edge"] and median[-1] < median[0]
    learned = recipes.run(experiment, restarts=2, seed=4)
    np.testing.assert_allclose(learned.losses[:, 0], median[0], rtol=1e-5)


def test_gradient_sizes_are_those_of_the_gradient():
    family = MNIST((3,), batch_size=8, digits=DIGITS)
    key = jr.key(3)
    found = gradient_sizes(family, num_networks=2, key=key)
    for sizes in found.values():
        small, zero, rest = (np.array(sizes[name]) for name in ("small", "zero", "small_not_zero"))
        np.testing.assert_allclose(small, zero + (1 - zero) * rest, atol=1e-6)

    sizes = {name: values[1] for name, values in found["untrained"].items()}
    okey, ikey, lkey = jr.split(jr.split(key, 2)[1], 3)
    objective = family.sample(okey)
    grads = jax.grad(objective.loss)(objective.init(ikey), 0, lkey)
    hidden, output = grads.layers
    np.testing.assert_allclose(sizes["output_bias"], jnp.mean(jnp.abs(output.bias)), rtol=1e-5)
    indices = minibatch_indices(0, lkey, num_examples=family.num_examples, batch_size=8)
    black = np.sum(np.all(DIGITS.train_images[np.asarray(indices)] == 0, axis=0))
    assert round(sizes["zero"] * (784 * 3 + 3 + 33 + 7)) == 3 * black
    magnitudes = np.abs(np.concatenate([hidden.weight.ravel(), hidden.bias]))
    np.testing.assert_allclose(sizes["hidden"], magnitudes[magnitudes > 0].mean(), rtol=1e-5)


def gradient_numbers(*, above_one=0.3, **changes):
    sizes = {"output_bias": 1.0, "other": 0.1, "hidden": 0.1, "output": 0.5, "small": 0.01}
    stage = {name: [x] * RESTARTS for name, x in {**sizes, "small_not_zero": 0.01, **changes}.items()}
    large = [above_one] * RESTARTS
    stages = ("untrained", "after 100 steps of Adam")
    return {**dict.fromkeys(stages, stage), "quadratic, share above 1": dict.fromkeys(stages, large)}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, {10: "holds", 12: "holds", 13: "holds"}),
        ({"above_one": 0.02}, {10: "does not hold", 12: "holds", 13: "holds"}),
        ({"other": 0.6}, {10: "holds", 12: "does not hold", 13: "holds"}),
        ({"hidden": 0.6}, {10: "holds", 12: "does not hold", 13: "holds"}),
        ({"small": 0.4}, {10: "holds", 12: "holds", 13: "does not hold"}),
    ],
)
def test_gradients_are_judged_by_ratio_and_share(changes, expected):
    assert statuses("gradients", extra=gradient_numbers(**changes)) == expected


def test_shares_above_one_are_those_of_the_gradient():
    family, key = Quadratic(5, squared=False), jr.key(3)
    found = shares_above_one(family, num_objectives=3, key=key)
    okey, ikey, lkey = jr.split(jr.split(key, 3)[2], 3)
    objective = family.sample(okey)
    grads = jax.grad(objective.loss)(objective.init(ikey), 0, lkey)
    assert found["untrained"][2] == pytest.approx(float(np.mean(np.abs(grads) > 1)))
    assert len(found["after 100 steps of Adam"]) == 3


@pytest.mark.parametrize(
    "wrong, status",
    [
        ({}, "holds"),
        ({("output-layer b", "sigmoid output"): 0.05}, "does not hold"),
        ({("output-layer a", "softmax output"): 0.05}, "does not hold"),
        # Not among what is compared.
        ({("output-layer b", "softmax output"): 0.05}, "holds"),
    ],
)
def test_the_same_activation_twice_is_to_classify_better(wrong, status):
    errors = {("output-layer a", "sigmoid output"): 0.1, **wrong}

    def measured(panel, label):
        return {"accuracy": 1 - errors.get((panel, label), 0.2) * (1 + 0.01 * np.arange(RESTARTS))}

    assert statuses("output-layer", measured=measured)[22] == status


def test_the_outputs_that_are_compared_are_two_functions():
    softmax, sigmoid = recipes.FIGURES["output-layer"](SETUP).panels[0].series.values()
    assert softmax.digest == SETUP.short_network("sigmoid").digest != sigmoid.digest
    losses = []
    for experiment in (softmax, sigmoid):
        objective = experiment.family.sample(jr.key(0))
        losses.append(float(objective.loss(objective.init(jr.key(1)), 0, jr.key(2))))
    assert abs(losses[0] - losses[1]) > 1e-4


def test_memory_is_that_of_one_block_unless_everything_is_differentiated():
    """2048 coordinates are eight blocks of 256; a step of a window costs less than a third."""
    found = window_memory(Quadratic(2048), (2, 6), key=jr.key(0))
    first, second = (found[order]["6"] - found[order]["2"] for order in ("first", "second"))
    assert 0 < 3 * first < second


def test_times_come_in_turn_for_every_window():
    experiments = {
        t: SETUP.quadratic(family=Quadratic(2), make_optimizer=tiny, num_steps=8, strategy=EveryWindow(t))
        for t in (2, 4)
    }
    found = window_times(experiments, runs=3, key=jr.key(0))
    assert list(found) == ["2", "4"]
    assert all(len(runs) == 3 and min(runs) > 0 for runs in found.values())


@pytest.mark.parametrize("ratio, status", [(3.0, "holds"), (1.0, "does not hold")])
@pytest.mark.parametrize("per_step, memory", [(10**7, "holds"), (10**5, "does not hold")])
def test_windows_are_judged_by_what_the_longest_need(ratio, status, per_step, memory):
    extra = {
        "bytes": {order: {"16": 16 * per_step, "64": 64 * per_step} for order in ("first", "second")},
        "seconds_per_step": {"16": [1e-4] * 5, "64": [ratio * 1e-4] * 5},
    }
    assert statuses("windows", extra=extra) == {29: memory, 32: status}


def pretrained(wrong):
    return {"sign_agreement": [1 - wrong] * RESTARTS, "relative_error": [1.0] * RESTARTS}


# What figures measure beside their experiments.
MADE_UP = {
    "gradients": gradient_numbers(),
    "baselines": {"quadratic": found_baselines(2.0), "MNIST": found_baselines(0.2)},
    "windows": {
        "bytes": {order: {"16": 10**8, "64": 4 * 10**8} for order in ("first", "second")},
        "seconds_per_step": {"16": [1e-4] * 5, "64": [3e-4] * 5},
    },
    "pretraining-loss": dict.fromkeys(("sign-weighted", "squared", "squared, ε = 1e-12"), pretrained(0.1)),
}


@pytest.mark.parametrize("small_epsilon, status", [(0.2, "holds"), (0.01, "does not hold")])
def test_pretraining_losses_are_judged_by_wrong_signs(small_epsilon, status):
    extra = {
        "sign-weighted": pretrained(0.05),
        "squared": pretrained(0.4),
        "squared, ε = 1e-12": pretrained(small_epsilon),
    }
    assert statuses("pretraining-loss", extra=extra)[27] == status


@pytest.mark.parametrize("name", recipes.FIGURES)
def test_claims_are_undecided_without_restarts(name):
    figure = recipes.FIGURES[name](SETUP)
    nothing = {p.name: {k: no_results(e) for k, e in p.series.items()} for p in figure.panels}
    assert (figure.extra is None) == (name not in MADE_UP)
    verdicts = figure.verdicts(nothing, MADE_UP.get(name))
    assert tuple(v.claim for v in verdicts) == figure.claims
    if figure.experiments():
        assert {v.status for v in verdicts} <= {"undecided"}


def test_verdicts_need_the_extra_of_a_figure():
    with pytest.raises(ValueError, match=r"extra=.*must be given: 'What a window costs'"):
        recipes.FIGURES["windows"](SETUP).verdicts({})
