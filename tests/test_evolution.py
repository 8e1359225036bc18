"""Estimators without reverse mode: against it, against finite differences, and where truncation misleads."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import to_float64
from jax import lax
from jax.flatten_util import ravel_pytree
from l2o_cli._build import build
from l2o_cli._resolve import read_assignments, resolve

import l2o_eqx
from l2o_eqx.estimators import ES, FIRST_ORDER, NRES, PES, RTRL, Backprop, ClippedPerObjective, Forward
from l2o_eqx.estimators import first_window as make_first_window
from l2o_eqx.estimators._particles import draw_noise
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, sample_objectives
from l2o_eqx.optimizers import AbstractOptimizer, Blocks
from l2o_eqx.strategies import EveryStep, EveryWindow
from l2o_eqx.weightings import Constant, FinalOnly


class Bowl(AbstractObjective):
    """Has a minimum at 0, and third derivatives; judged by another loss if asked to."""

    curvature: jax.Array
    judged: bool = eqx.field(static=True, default=False)

    def init(self, key):
        return 1 + 0.1 * jr.normal(key, self.curvature.shape)

    def loss(self, params, step, key):
        return jnp.sum(self.curvature * params**2 + 0.1 * params**4)

    def outer_loss(self, params, step, key):
        return jnp.sum(jnp.cos(params)) if self.judged else self.loss(params, step, key)


class Bowls(AbstractObjectiveFamily):
    judged: bool = eqx.field(static=True, default=False)

    def sample(self, key):
        return Bowl(jr.uniform(key, (3,), minval=0.2, maxval=1.0), self.judged)


class Momentum(AbstractOptimizer):
    """The state, the params and the value all carry what the meta-parameters have done; so may the start."""

    rate: jax.Array
    decay: jax.Array
    shift: jax.Array
    starts: bool = eqx.field(static=True, default=False)
    blocks: bool = eqx.field(static=True, default=False)

    def layout(self, shapes):
        return Blocks() if self.blocks else super().layout(shapes)

    def wants(self):
        return frozenset({"value"})

    def initial_params(self, params):
        return params + self.shift if self.starts else params

    def init(self, params):
        # A number that is no float travels along, where the layout allows it.
        return jnp.zeros_like(params), jnp.zeros_like(params) if self.blocks else jnp.asarray(0)

    def update(self, grads, state, params, *, value=None, key=None):
        assert params is not None and value is not None
        velocity, count = state
        velocity = self.decay * velocity + grads + 0.01 * self.shift * params
        return -self.rate * velocity / (1 + 0.01 * value), (velocity, count + 1)


def momentum(**settings):
    return Momentum(jnp.asarray(0.1), jnp.asarray(0.8), jnp.asarray(0.3), **settings)


def flat(tree):
    return ravel_pytree(eqx.filter(tree, eqx.is_inexact_array))[0]


def gradients(estimator, optimizer, family, window, num_steps, *, weighting=None, after=False, count=2):
    """One line for every window of a super epoch, while φ stands still; and the losses."""
    keys = jr.split(jr.key(3), count)
    objectives = sample_objectives(family, keys)
    objectives = to_float64(objectives) if jax.config.read("jax_enable_x64") else objectives
    size, strategy = flat(optimizer).size, EveryWindow(window, estimator, include_final_loss=after)

    def record(optimizer, kept, grads):
        i, found = kept
        return optimizer, (i + 1, found.at[i].set(flat(grads)))

    @jax.jit
    def run(values):
        result = strategy.super_epoch(
            eqx.combine(values, eqx.filter(optimizer, eqx.is_inexact_array, inverse=True)),
            (jnp.asarray(0), jnp.zeros((strategy.num_updates(num_steps), size))),
            objectives,
            meta_update=record,
            weighting=Constant() if weighting is None else weighting,
            num_steps=num_steps,
            init_keys=keys,
            loss_keys=keys,
            key=jr.key(0),
        )
        return result.meta_state[1], result.meta_losses

    return run, eqx.filter(optimizer, eqx.is_inexact_array)


def sum_of(run, values):
    return np.sum(run(values)[0], axis=0)


def test_all_agree_about_a_bowl():
    """Four windows of 2 steps add up to the whole; the errors of samples are those of their number.

    Of n pairs along P = 3 meta-parameters the mean has a relative error of √((P + 1)/n), of signs
    √((P − 1)/n), and `PES` adds up K = 4 windows: at most √K times as much.
    """
    with jax.enable_x64(True):
        optimizer = to_float64(momentum())
        whole, values = gradients(Backprop(()), optimizer, Bowls(), 8, 8)
        expected = sum_of(whole, values)
        # Finite differences of the losses, along all three at once.
        step, (line, back) = 1e-6, ravel_pytree(values)
        up, down = (jnp.sum(whole(back(line + s * step))[1]) for s in (1, -1))
        np.testing.assert_allclose((up - down) / (2 * step), np.sum(expected), rtol=1e-8)
        for exact, window in ((Forward(), 8), (RTRL(), 2)):
            found = sum_of(*gradients(exact, optimizer, Bowls(), window, 8))
            np.testing.assert_allclose(found, expected, rtol=1e-10)

        def error(estimator, window):
            found = sum_of(*gradients(estimator, optimizer, Bowls(), window, 8))
            return np.linalg.norm(found - expected) / np.linalg.norm(expected)

        n = 2016
        assert error(ES(1e-3, n), 8) < 3 * np.sqrt(4 / n)
        assert error(NRES(1e-3, n), 2) < 3 * np.sqrt(4 / n)
        assert error(PES(1e-3, n), 2) < 3 * np.sqrt(4 * 4 / n)
        assert error(Forward(n), 8) < 3 * np.sqrt(2 / n)
        # What begins anew with each window is another gradient.
        for truncated in (ES(1e-3, n), Backprop(())):
            assert error(truncated, 2) > 0.3


@pytest.mark.parametrize("constants", [(), FIRST_ORDER], ids=sorted)
def test_forward_mode_is_reverse_mode(constants):
    """With a learned start, a held-out loss, the loss after the last update, blocks, and any constants."""
    with jax.enable_x64(True):
        optimizer = to_float64(momentum(starts=True, blocks=True))
        keys = jr.split(jr.key(1), 2)
        objectives = to_float64(sample_objectives(Bowls(judged=True), keys))
        window = make_first_window(
            optimizer,
            objectives,
            3,
            num_steps=3,
            init_keys=keys,
            loss_keys=keys,
            include_final_loss=True,
        )
        assert window.begins and objectives.has_outer_loss

        @eqx.filter_jit
        def both(optimizer, window):
            found = []
            for estimator in (Backprop(constants), Forward(constants=constants), RTRL(constants)):
                state = estimator.init(optimizer, window, key=keys[0])
                result, _ = estimator.estimate(optimizer, window, Constant(), state, key=keys[0])
                found.append(flat(result.grads))
            return found

        reverse, forward, carried = both(optimizer, window)
        assert np.all(reverse != 0)
        np.testing.assert_allclose(forward, reverse, rtol=1e-10)
        np.testing.assert_allclose(carried, reverse, rtol=1e-10)


class Target(AbstractObjective):
    """½(θ_1 − 1)²."""

    def init(self, key):
        return jnp.ones(23)

    def loss(self, params, step, key):
        return (params[0] - 1) ** 2 / 2


class Targets(AbstractObjectiveFamily):
    def sample(self, key):
        return Target()


class Balancing(AbstractOptimizer):
    """θ ← Aθ + φ·s, which ignores the gradient: a chain in which 10 coordinates get φ and 13 get −φ."""

    rate: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        assert params is not None
        signs = jnp.where(jnp.arange(23) < 10, 1.0, -1.0)
        ahead = jnp.concatenate([params[1:], jnp.zeros(1)])
        return 0.5 * params + 0.5 * ahead + self.rate * signs - params, state


def test_influence_balancing():
    """The short-term influence of φ on θ_1 is positive and the long-term one is negative.

    The example of Tallec and Ollivier (arXiv:1702.05043) and of the PES paper, with its n = 23, p = 10,
    φ = 0.5, and a loss after every step. The loss is quadratic in φ, so that smoothing changes nothing. It
    has its minimum at φ = −1/6, to which truncated ES never goes.
    """
    with jax.enable_x64(True):
        optimizer, num_steps = Balancing(jnp.asarray(0.5)), 100

        def loss(rate):
            def one_step(params, _):
                updates, _ = Balancing(rate).update(None, None, params)
                return params + updates, params[0] + updates[0] - 1

            errors = lax.scan(one_step, jnp.ones(23), None, num_steps)[1]
            # To a window of one step, φ adds φ alone.
            return jnp.sum(errors**2) / 2, jnp.sum(errors)

        expected, at_once = jax.grad(loss, has_aux=True)(jnp.asarray(0.5))
        assert at_once < 0 < expected

        def total(estimator):
            settings = {"weighting": FinalOnly(), "after": True, "count": 1}
            return sum_of(*gradients(estimator, optimizer, Targets(), 1, num_steps, **settings))[0]

        np.testing.assert_allclose(total(RTRL()), expected, rtol=1e-10)
        np.testing.assert_allclose(total(ES(0.1, 110)), at_once, rtol=0.3)
        pes, nres = total(PES(0.1, 1100)), total(NRES(0.1, 1100))
        np.testing.assert_allclose(pes, expected, rtol=0.25)
        np.testing.assert_allclose(nres, expected, rtol=0.15)


class Cliff(AbstractObjective):
    """θ², but there is nothing beyond |θ| = 1.2."""

    def init(self, key):
        return jnp.asarray(1.0)

    def loss(self, params, step, key):
        return jnp.where(jnp.abs(params) > 1.2, jnp.nan, params**2)


class Step(AbstractOptimizer):
    rate: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        return -self.rate * grads, state


@pytest.mark.parametrize("ranked", [False, True])
def test_pairs_that_fail_do_not_count(ranked):
    """L(φ) = 1 + (1 − 2φ)², unless beyond the cliff; then it is ranked last, or its pair is left out."""
    optimizer, std, pairs = Step(jnp.asarray(0.1)), 0.5, 12
    estimator = ES(std, pairs, ranked=ranked)
    found = l2o_eqx.meta_gradient(
        optimizer,
        Cliff(),
        jnp.asarray(1.0),
        None,
        window=2,
        weighting=Constant(),
        key=jr.key(0),
        estimator=estimator,
    )
    drawn = jr.fold_in(jr.key(0), 2**31 - 4)
    noise = np.asarray(draw_noise(drawn, optimizer, pairs).rate)
    end = 1 - 2 * (0.1 + std * np.stack([noise, -noise], axis=1))
    sound = np.abs(end) <= 1.2
    assert 0 < np.sum(np.all(sound, axis=1)) < pairs
    losses = 1 + end**2
    if ranked:
        order = np.where(sound, losses, np.inf)
        below = np.sum(order[..., None, None] > order, axis=(2, 3))
        level = np.sum(order[..., None, None] == order, axis=(2, 3)) - 1
        losses, counted = (below + level / 2) / (2 * pairs - 1) - 0.5, np.ones(pairs, bool)
    else:
        counted = np.all(sound, axis=1)
    slopes = (losses[:, 0] - losses[:, 1]) / (2 * std) * noise
    np.testing.assert_allclose(found.grads.rate, np.mean(slopes[counted]), rtol=1e-4)


def test_particles_that_have_failed_stay_out():
    """After the first window of some pairs, in which their losses were not finite; NaN if that is all."""

    class Cliffs(AbstractObjectiveFamily):
        def sample(self, key):
            return Cliff()

    optimizer = Step(jnp.asarray(0.1))
    with jax.enable_x64(True):
        for estimator in (PES(0.3, 12), ClippedPerObjective(NRES(0.3, 12), 100.0)):
            found = gradients(estimator, to_float64(optimizer), Cliffs(), 2, 6)
            assert np.all(np.isfinite(found[0](found[1])[0]))
        run, values = gradients(PES(1e6, 2), to_float64(optimizer), Cliffs(), 2, 6)
        assert np.all(np.isnan(run(values)[0]))


def test_memory_does_not_grow_with_the_horizon():
    """Of what is compiled for a window of 16 steps and of 256; that of reverse mode does."""

    def bytes_for(estimator, length):
        class Wide(AbstractObjectiveFamily):
            def sample(self, key):
                return Bowl(jnp.ones(300))

        run, values = gradients(estimator, momentum(), Wide(), length, length)
        analysis = run.lower(values).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    reverse = bytes_for(Backprop(()), 256)
    for estimator in (PES(0.1, 4), RTRL()):
        short, long = (bytes_for(estimator, length) for length in (16, 256))
        assert long < 1.5 * short and reverse > 5 * long, (short, long, reverse)


class Rounded(AbstractObjective):
    """‖θ‖² on a grid of 1/4: its gradient is zero everywhere."""

    def init(self, key):
        return 2 * jr.normal(key, (2,))

    def loss(self, params, step, key):
        return jnp.round(4 * jnp.sum(params**2)) / 4


class RoundedFamily(AbstractObjectiveFamily):
    def sample(self, key):
        return Rounded()


class Climber(AbstractOptimizer):
    """Random steps from the best point so far, by the value alone; learns how long they are."""

    log_step: jax.Array

    def init(self, params):
        return jnp.asarray(1e6), jnp.zeros_like(params)

    def wants(self):
        return frozenset({"value", "key"})

    def update(self, grads, state, params, *, value=None, key=None):
        assert key is not None and params is not None and value is not None
        best, last = state
        move = jnp.exp(self.log_step) * jr.normal(key, params.shape)
        updates = jnp.where(value <= best, 0.0, -last) + move
        return updates, (jnp.minimum(value, best), move)


def test_an_objective_without_gradient_is_trained_on():
    """The losses of unseen draws fall to less than half, where reverse mode finds a gradient of zero."""
    climber = Climber(jnp.asarray(-3.0))

    def train(estimator, super_epochs):
        return l2o_eqx.meta_train(
            climber,
            RoundedFamily(),
            EveryWindow(10, estimator),
            num_steps=30,
            super_epochs=super_epochs,
            num_objectives=16,
            meta_optimizer=optax.adam(0.1),
            key=jr.key(0),
        )

    trained = train(PES(0.1, 16), 20)
    before, after = (
        np.mean(
            l2o_eqx.evaluate(o, RoundedFamily(), num_steps=30, num_objectives=64, key=jr.key(9)).losses[:, -1]
        )
        for o in (climber, trained.optimizer)
    )
    assert after < 0.5 * before
    assert np.all(train(Backprop(()), 1).metrics["grad_norm"] == 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PES(0.0), r"PES\(std=...\)` must be positive. Got std=0.0"),
        (lambda: NRES(num_pairs=0), r"NRES\(num_pairs=...\)` must be at least 1. Got num_pairs=0"),
        (lambda: Forward(0), "num_tangents=0"),
        (lambda: Forward(constants={"grad"}), r"Forward\(constants=...\)`.* Got 'grad'"),
        (lambda: RTRL({"grad"}), r"RTRL\(constants=...\)`.* Got 'grad'"),
        (lambda: EveryStep(3, PES()), r"EveryStep\(estimator=PES\(...\)\)`.* overlap"),
        (lambda: EveryStep(3, ClippedPerObjective(RTRL())), "overlap"),
        (
            lambda: gradients(RTRL(max_numbers=35), momentum(), Bowls(), 4, 8)[0](momentum()),
            "of 3 meta-parameters on 12 numbers of params and state would have 36",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"kind": "pes", "std": "0.02", "num_pairs": "32"}, PES(0.02, 32)),
        ({"kind": "nres"}, NRES()),
        ({"kind": "es", "ranked": "true"}, ES(ranked=True)),
        ({"kind": "forward", "num_tangents": "4"}, Forward(4)),
        ({"kind": "rtrl", "constants": "grads,params,value"}, RTRL(FIRST_ORDER)),
    ],
)
def test_from_the_shell(given, expected):
    """The default preset's true gradient gives way."""
    settings = [f"strategy.estimator.{name}={value}" for name, value in given.items()]
    parts = build(resolve(read_assignments(["objective.kind=quadratic", *settings])))
    strategy: Any = parts.strategy
    assert strategy.estimator == expected
