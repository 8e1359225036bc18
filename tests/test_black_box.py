"""BlackBoxRNN: its equations, its meta-gradient, several workers, and searches in spaces of all kinds."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import ESTIMATORS, assert_trees_close, sparing, to_float64

import l2o_eqx
from l2o_eqx import Box, Space
from l2o_eqx._engine._inner import _DRAWS
from l2o_eqx.estimators import ES, PES, RTRL, Auto, Backprop, ClippedPerObjective, Forward, first_window
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, GaussianProcess, sample_objectives
from l2o_eqx.optimizers import (
    BlackBoxRNN,
    Clipped,
    CoordinatewiseLSTM,
    LearnedStart,
    PerLayer,
    UnitRMS,
    _search,
)
from l2o_eqx.strategies import EveryWindow, OncePerSuperEpoch
from l2o_eqx.weightings import Constant

SQUARE = Space([Box(-1.0, 1.0), Box(-1.0, 1.0)])


def make(dim=2, hidden_size=5, key=0, **settings):
    """As if a little trained: with starts and gates that are not zero."""
    rnn = BlackBoxRNN(dim, hidden_size, key=jr.key(key), **settings)
    moved = [0.4 * jr.normal(jr.key(7), x.shape) for x in (rnn.starts, rnn.offset)]
    return eqx.tree_at(lambda r: (r.starts, r.offset), rnn, moved)


def bumpy(point):
    x, y = point
    return 100 + 30 * ((x - 0.3) ** 2 + (y + 0.5) ** 2 + 0.3 * math.sin(5 * x))


def searched(rnn, values, count, space=SQUARE):
    """The points that are asked for, one after the other, and where the search ends."""
    state, points = rnn.init(space), []
    for _ in range(count):
        point, state = rnn.ask(state)
        state = rnn.tell(state, point, values(point))
        points.append(point)
    return np.asarray(points), state


# The network.


@pytest.mark.parametrize("into_box", ["sine", "tanh"])
def test_it_is_its_equations(into_box):
    """Four evaluations, written out in NumPy."""
    rnn = make(into_box=into_box)
    squash, inverse = {"sine": (np.sin, np.arcsin), "tanh": (np.tanh, np.arctanh)}[into_box]
    w_ih, w_hh, bias = (
        np.asarray(x, np.float64) for x in (rnn.cells[0].weight_ih, rnn.cells[0].weight_hh, rnn.cells[0].bias)
    )
    hidden, memory, points, values = np.zeros(5), np.zeros(5), [], []
    x = squash(np.asarray(rnn.starts[0], np.float64))
    found, _ = searched(rnn, bumpy, 4)
    for t in range(4):
        np.testing.assert_allclose(found[t], x, atol=1e-5)
        before = min(values, default=None)
        points, values = [*points, x], [*values, bumpy(x)]
        spread = max(values) - min(values)
        gain = (values[-1] - before) / spread if t else 0.0
        place = 2 * (values[-1] - min(values)) / spread - 1 if t else 0.0
        fine = np.sign(gain) * np.log(1 + 1000 * abs(gain)) / np.log(1001)
        best = points[int(np.argmin(values))]
        inputs = np.concatenate([x, best, [place, gain, fine, 1 - 2 * (t + 1) / 30]])
        i, f, cell, o = np.split(w_ih @ inputs + w_hh @ hidden + bias, 4)
        sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
        memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(cell)
        hidden = sigmoid(o) * np.tanh(memory)
        answers = np.asarray(rnn.readout, np.float64) @ hidden + np.asarray(rnn.offset, np.float64)
        x = squash(answers[:2] + sigmoid(answers[2]) * inverse(0.99 * best))


def test_scale_and_shift_of_the_values_do_not_matter():
    expected, _ = searched(make(), bumpy, 6)
    for factor, shift in ((1e-6, 0.0), (3.0, -50.0), (1e20, 1e22)):
        found, _ = searched(make(), lambda p, a=factor, b=shift: a * bumpy(p) + b, 6)
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_failed_evaluation_counts_as_the_highest_and_changes_nothing_else():
    rnn = make()
    _, state = searched(rnn, bumpy, 3)
    point, state = rnn.ask(state)
    highest = max(bumpy(p) for p in searched(rnn, bumpy, 3)[0]) - bumpy(searched(rnn, bumpy, 1)[0][0])
    failed = [rnn.tell(state, point, value) for value in (None, math.nan, math.inf, -math.inf, 1e300)]
    as_highest = rnn.told(state.inner, jnp.asarray(0), jnp.asarray(point), jnp.asarray(highest, jnp.float32))
    for one in failed:
        assert one.told == 4 and one.best == state.best
        assert_trees_close(one.inner.seen, state.inner.seen, rtol=0, atol=0)
        assert np.all(np.abs(one.queries) < 1)
    # The place of the highest value is 1, as that of a failure is.
    assert float(as_highest.seen.high) == float(state.inner.seen.high)
    first = rnn.tell(rnn.ask(rnn.init(SQUARE))[1], rnn.ask(rnn.init(SQUARE))[0], None)
    assert first.best is None and np.all(np.isfinite(first.queries))
    assert rnn.tell(first, [0.0, 0.0], 2.0).best == ([0.0, 0.0], 2.0)


@pytest.mark.parametrize("workers", [1, 3])
def test_ask_and_tell_are_the_inner_steps(workers):
    """`unroll` on the same function, with the workers in the order in which it has drawn them."""
    rnn, family, key = make(workers=workers), GaussianProcess(2, None, 16), jr.key(4)
    objective = family.sample(key)
    params = rnn.initial_params(objective.init(key))
    run = l2o_eqx.unroll(rnn, objective, params, rnn.init(params), 6, key=key)
    state = rnn.init(SQUARE)
    order = [int(rnn.init(params).worker)] + [
        int(jr.randint(jr.fold_in(jr.fold_in(key, _DRAWS), t), (), 0, workers)) for t in range(5)
    ]
    waiting = {}
    for worker, loss in zip(order, run.losses, strict=True):
        while not state.busy.all():
            free = int(np.argmin(state.busy))
            waiting[free], state = rnn.ask(state)
        value = float(objective.loss(jnp.asarray(waiting[worker]), 0, key))
        np.testing.assert_allclose(value, loss, atol=1e-4)
        state = rnn.tell(state, waiting[worker], value, worker=worker)
    assert len(set(order)) == workers


def test_the_first_worker_is_nearest_to_the_starting_point():
    rnn = make(workers=3)
    starts = np.sin(np.asarray(rnn.starts))
    for worker in range(3):
        near = jnp.asarray(starts[worker] + 0.01)
        np.testing.assert_allclose(rnn.initial_params(near), starts[worker], rtol=1e-6)
        assert int(rnn.init(near).worker) == worker


# Training.


class Rounded(AbstractObjective):
    """A bowl in steps: it has no gradient."""

    lowest: jax.Array

    def init(self, key):
        return jnp.zeros(2)

    def loss(self, params, step, key):
        params = jax.lax.stop_gradient(params)
        return jnp.round(8 * jnp.sum((params - self.lowest) ** 2)) / 8


class Bowls(AbstractObjectiveFamily):
    def sample(self, key):
        return Rounded(jr.uniform(key, (2,), minval=-0.8, maxval=0.8))


def window_of(rnn, family, length, count=2):
    keys = jr.split(jr.key(5), count)
    objectives = sample_objectives(family, keys)
    return (
        first_window(rnn, objectives, length, num_steps=length, init_keys=keys, loss_keys=keys),
        objectives,
        keys,
    )


@pytest.mark.parametrize("workers", sparing([1, 2], but=[1]))
def test_meta_gradient_is_plain_differentiation(workers):
    """Through values and queries, the learned first ones included; in float64, however it is got."""
    with jax.enable_x64(True):
        rnn, family, length = to_float64(make(workers=workers, hidden_size=3)), GaussianProcess(2, 0.6, 8), 5
        window, objectives, keys = window_of(rnn, family, length)

        def run(rnn, own, key):
            objective = objectives.select(own)
            params = rnn.initial_params(objective.init(key))
            state, total = rnn.init(params, length), 0.0
            for t in range(length):
                value = objective.loss(params, t, key)
                total += (t + 1) * value
                draw = jr.fold_in(jr.fold_in(key, _DRAWS), t)
                updates, state = rnn.update(params, state, params, value=value, key=draw)
                params = params + updates
            return total

        @eqx.filter_jit
        @eqx.filter_value_and_grad
        def plain(rnn):
            return jnp.mean(jax.vmap(functools.partial(run, rnn))(objectives.own, keys))

        weighting = l2o_eqx.weightings.Linear(1.0, first=0)
        loss, expected = plain(rnn)
        assert float(jnp.min(jnp.abs(expected.starts[0]))) > 0
        several = (Backprop({"grads"}), Backprop((), recompute=True)) if workers == 1 else ()
        for estimator in (Auto(()), *several):
            result, _ = eqx.filter_jit(estimator.estimate)(rnn, window, weighting, None, key=jr.key(0))
            np.testing.assert_allclose(result.meta_loss, loss, rtol=1e-10)
            assert_trees_close(
                result.grads, eqx.filter(expected, eqx.is_inexact_array), rtol=1e-8, atol=1e-10
            )


def test_estimators_that_leave_nothing_to_differentiate_say_so():
    rnn, lstm = make(), CoordinatewiseLSTM((2,), key=jr.key(0))
    fine = {"second_order", "es", "es_ranked", "pes", "nres", "forward", "forward_random", "rtrl"}
    for name, estimator in ESTIMATORS.items():
        estimator().check(lstm)
        if name in fine:
            estimator().check(rnn)
            continue
        for black in (rnn, Clipped(rnn, 0.1), UnitRMS(rnn, 0.1), PerLayer({"a": lstm, "b": rnn})):
            with pytest.raises(
                l2o_eqx.ArgumentError, match=r"BlackBoxRNN|Clipped|UnitRMS|PerLayer"
            ) as caught:
                estimator().check(black)
            assert caught.value.argument == "constants" and "Auto(())" in str(caught.value)
    for estimator in (
        Forward(constants={"value"}),
        RTRL({"params"}),
        ClippedPerObjective(Backprop({"value"})),
    ):
        with pytest.raises(l2o_eqx.ArgumentError, match="constants"):
            estimator.check(rnn)
    with pytest.raises(l2o_eqx.ArgumentError, match="sees nothing of an objective but its values"):
        l2o_eqx.meta_train(rnn, GaussianProcess(2, None, 4), EveryWindow(2), num_steps=4, key=jr.key(0))


def test_wrappers_are_as_blind_as_what_is_inside():
    rnn, lstm = BlackBoxRNN(2, key=jr.key(0)), CoordinatewiseLSTM((2,), key=jr.key(0))
    for wrap in (Clipped, UnitRMS, lambda inner: LearnedStart(inner, jnp.zeros(2))):
        assert wrap(rnn).is_black_box() and wrap(rnn).wants() == rnn.wants()
        assert not wrap(lstm).is_black_box()


def test_what_does_not_apply_says_what_to_use_instead():
    for convert in (l2o_eqx.as_optax, l2o_eqx.scale_by_learned):
        with pytest.raises(l2o_eqx.ArgumentError, match=r"`ask` and `tell`, or in the shell"):
            convert(make())


@pytest.mark.parametrize("estimator", sparing([ES(0.05, 4), PES(0.05, 2)], but=[ES(0.05, 4)]))
def test_it_is_trained_without_any_gradient(estimator):
    """On functions in steps all meta-parameters move; reverse mode finds nothing but zeros there."""
    strategy = EveryWindow(3, estimator)
    rnn, settings = (
        make(hidden_size=3),
        {"num_steps": 6, "super_epochs": 1, "num_objectives": 4, "key": jr.key(1)},
    )
    solution = l2o_eqx.meta_train(rnn, Bowls(), strategy, **settings)
    moved = [
        jnp.any(a != b)
        for a, b in zip(jax.tree.leaves(rnn), jax.tree.leaves(solution.optimizer), strict=True)
    ]
    assert all(moved)
    if isinstance(estimator, ES):
        with pytest.warns(l2o_eqx.ZeroGradientWarning):
            l2o_eqx.meta_train(rnn, Bowls(), EveryWindow(2, Auto(())), **{**settings, "num_steps": 8})


def test_training_finds_lower_points_and_restarts_are_single_runs():
    """Two restarts of a short training on a small family, compared with themselves untrained."""
    family = GaussianProcess(1, 0.5, 16, "log_expected_improvement", 8)
    settings = {"num_steps": 8, "super_epochs": 80, "num_objectives": 16, "weighting": Constant()}
    settings["meta_optimizer"] = l2o_eqx.default_meta_optimizer(0.01, normalization="clip")
    batch = eqx.filter_vmap(lambda key: BlackBoxRNN(1, 8, num_steps=8, key=key))(jr.split(jr.key(0), 2))
    strategy = OncePerSuperEpoch(Auto(()))
    trained = l2o_eqx.meta_train(batch, family, strategy, restarts=2, key=jr.key(1), **settings).optimizer
    found = l2o_eqx.compare(
        {"learned": trained, "untrained": batch, **l2o_eqx.baselines_for(family, make())},
        family,
        num_steps=8,
        num_objectives=64,
        best_so_far=True,
        restarts=2,
        key=jr.key(2),
    )
    assert list(found.trajectories) == ["learned", "untrained", "random search"]
    learned, untrained, _ = (found.final_losses(name).mean() for name in found.trajectories)
    assert learned < untrained - 0.1
    losses = np.asarray(found.trajectories["learned"].losses)
    assert losses.shape == (2, 64, 8) and np.all(np.diff(losses) <= 0)
    one = l2o_eqx.select_restart(trained, 1)
    alone = l2o_eqx.evaluate(one, family, num_steps=8, num_objectives=64, key=jr.split(jr.key(2))[1]).losses
    np.testing.assert_allclose(np.minimum.accumulate(np.asarray(alone), axis=1), losses[1], atol=1e-4)


def test_best_so_far_counts_in_tuning_and_passes_over_what_is_no_number():
    losses = jnp.array([[jnp.nan, 3.0, jnp.nan, 4.0, 1.0, 2.0]])
    np.testing.assert_array_equal(l2o_eqx._tune.lowest_so_far(losses), [[jnp.inf, 3, 3, 3, 1, 1]])
    np.testing.assert_array_equal(l2o_eqx._tune._final(losses, 2, True), [1])
    np.testing.assert_array_equal(l2o_eqx._tune._final(losses, 2, False), [1.5])


def test_random_search_is_uniform_in_its_box():
    run = l2o_eqx.unroll
    objective, search = Rounded(jnp.zeros(2)), l2o_eqx.RandomSearch(-1.0, 3.0)
    ends = jax.vmap(lambda key: run(search, objective, jnp.zeros(2), (), 2, key=key).params)(
        jr.split(jr.key(0), 500)
    )
    points = np.asarray(ends).ravel()
    assert points.min() < -0.9 and points.max() > 2.9 and np.all(np.abs(points - 1) <= 2)
    np.testing.assert_allclose(points.mean(), 1, atol=0.15)


# Searches.


TREE = {
    "rate": Box(1e-5, 1.0, log=True),
    "layers": [Box(1, 4, integer=True), Box(8, 256, log=True, integer=True)],
    "weights": Box(-2.0, 2.0, shape=(2, 2)),
}


def test_spaces_decode_what_they_encode():
    space = Space(TREE)
    assert space.dim == 7
    low, high = (space.decode(np.full(7, u)) for u in (-1.0, 1.0))
    assert low["rate"] == pytest.approx(1e-5) and high["rate"] == 1.0 and low["layers"] == [1, 8]
    assert high["layers"] == [4, 256] and np.all(high["weights"] == 2) and high["weights"].shape == (2, 2)
    middle = space.decode(np.zeros(7))
    assert middle["rate"] == pytest.approx(10**-2.5) and type(middle["layers"][1]) is int
    for unit in np.random.default_rng(0).uniform(-1, 1, (50, 7)):
        point = space.decode(unit)
        again = space.encode(point)
        assert jax.tree.all(jax.tree.map(lambda a, b: np.all(a == b), space.decode(again), point))
        real = [False] * 2 + [True] * 5
        # In the order of the tree's keys: layers, rate, weights.
        np.testing.assert_allclose(again[real], unit[real], atol=1e-9)


def test_whole_numbers_have_equal_shares():
    for box, shares in (
        (Box(1, 4, integer=True), [0.25] * 4),
        (Box(1, 2, log=True, integer=True), [0.682606, 0.317394]),
    ):
        space = Space(box)
        found = [space.decode(np.array([u])) for u in np.linspace(-1, 1, 4001)]
        # On a logarithmic scale a share is ln((n + ½)/(n − ½)).
        np.testing.assert_allclose(np.bincount(found)[1:] / 4001, shares, atol=1e-3)


def test_any_tree_is_searched_with_numbers_that_are_no_arrays_of_jax():
    def value(point):
        assert type(point["rate"]) is float and type(point["weights"]) is np.ndarray
        return abs(math.log(point["rate"])) + point["layers"][0] + float(point["weights"].sum())

    rnn, state = make(7), make(7).init(Space(TREE), 5)
    values, point = [], None
    compiled: Any = _search._tell
    for _ in range(5):
        point, state = rnn.ask(state)
        values.append(value(point))
        state = rnn.tell(state, point, np.float32(values[-1]))
    assert state.best is not None and state.best[1] == np.float32(min(values)) and state.told == 5
    assert float(state.inner.horizon) == 5
    before = compiled._cache_size()
    assert before >= 1
    rnn.tell(state, point, 1.0)
    assert compiled._cache_size() == before


def test_workers_are_told_in_any_order():
    """By number, or by the point; nobody can be asked who is busy."""
    rnn = make(workers=3)
    points, state = [], rnn.init(SQUARE)
    for _ in range(3):
        point, state = rnn.ask(state)
        points.append(point)
    np.testing.assert_allclose(points, np.sin(np.asarray(rnn.starts)), rtol=1e-6)
    with pytest.raises(l2o_eqx.ArgumentError, match="no worker is free"):
        rnn.ask(state)
    by_point = rnn.tell(state, points[1], 2.0)
    by_number = rnn.tell(state, points[1], 2.0, worker=1)
    assert_trees_close(by_point.inner, by_number.inner, rtol=0, atol=0)
    np.testing.assert_array_equal(by_point.busy, [True, False, True])
    again, after = rnn.ask(by_point)
    assert after.busy.all() and not np.allclose(again, points[1])
    # Who finishes is shown to the network: the same value from another one makes another query.
    other = rnn.tell(state, points[1], 2.0, worker=2)
    assert not np.allclose(other.queries[2], by_number.queries[1], atol=1e-4)
    np.testing.assert_array_equal(other.queries[:2], state.queries[:2])


def test_it_survives_a_file(tmp_path):
    rnn = make(workers=2)
    loaded = l2o_eqx.load(l2o_eqx.save(tmp_path / "rnn.safetensors", rnn))
    assert eqx.tree_equal(loaded, rnn)
    assert (
        l2o_eqx.optimizers.BlackBoxRNN.make({"a": jnp.ones((2, 2)), "b": jnp.ones(1)}, key=jr.key(0)).dim == 5
    )


@pytest.mark.parametrize(
    "do, message",
    [
        (lambda: BlackBoxRNN(0, key=jr.key(0)), "dim=0"),
        (lambda: BlackBoxRNN(2, workers=0, key=jr.key(0)), "workers=0"),
        (lambda: make().init(jnp.zeros(3)), r"made for 2 coordinates, but the params have 3"),
        (lambda: make().init(Space(TREE)), r"made for 2 coordinates, but the space has 7"),
        (lambda: make().update(jnp.zeros(2), make().init(jnp.zeros(2)), jnp.zeros(2)), "hand `value`"),
        (lambda: make().tell(make().init(SQUARE), [0.0, 2.0], 1.0), "is not in the space"),
        (lambda: make().tell(make().init(SQUARE), [0.0, math.nan], 1.0), "is not in the space"),
        (lambda: make().tell(make().init(SQUARE), {"x": 0.0}, 1.0), "not a tree like"),
        (lambda: make().tell(make().init(SQUARE), [0.0, np.zeros(2)], 1.0), "must have the shape"),
        (lambda: make().tell(make().init(SQUARE), [0.0, 0.0], 1.0, worker=1), "worker=1"),
        (lambda: Space({"a": 3.0}), "a is 3.0"),
        (lambda: Space({}), "at least one"),
        (lambda: Box(1.0, 1.0), "low must be below high"),
        (lambda: Box(0.0, 1.0, log=True), "ends above 0"),
        (lambda: Box(0.5, 2, integer=True), "whole ends"),
        (lambda: Box(0.0, math.inf), "finite"),
        (lambda: l2o_eqx.RandomSearch(1.0, 1.0), "low=1.0"),
    ],
)
def test_errors_say_what_is_wrong(do, message):
    with pytest.raises(l2o_eqx.ArgumentError, match=message):
        do()
