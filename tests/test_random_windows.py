"""Windows that begin anywhere, and lengths that vary from super epoch to super epoch."""

import collections

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from helpers import LEARNED, CountedFamily, Traces, assert_trees_close

import l2o_eqx
from l2o_eqx.objectives import Quadratic, sample_objectives
from l2o_eqx.strategies import EveryWindow, RandomWindows
from l2o_eqx.strategies._random_windows import _mean_of_part
from l2o_eqx.weightings import Linear


@eqx.filter_jit
def super_epoch(strategy, optimizer, family, num_steps, key, phase_key, rate=0.0):
    """Of two objectives, with gradient descent as the meta-optimizer."""

    def meta_update(optimizer, state, grads):
        return eqx.apply_updates(optimizer, jax.tree.map(lambda g: -rate * g, grads)), state

    keys = jr.split(key, 2)
    return strategy.super_epoch(
        optimizer,
        None,
        sample_objectives(family, keys),
        meta_update=meta_update,
        weighting=Linear(),
        num_steps=num_steps,
        init_keys=keys,
        loss_keys=keys,
        key=phase_key,
    )


def test_phases_are_uniform_and_windows_are_those_of_the_run():
    """With an optimizer at rest the losses of a phase are a stretch of the run without one."""
    optimizer, family, key = LEARNED["lstm_identity"](jr.key(0)), Quadratic(3), jr.key(1)
    plain = super_epoch(EveryWindow(2), optimizer, family, 12, key, key)
    strategy, phases = EveryWindow(4, random_phase=True), []
    assert strategy.num_updates(12) == 2 and strategy.num_trained_steps(12) == 8
    for number in range(40):
        found = super_epoch(strategy, optimizer, family, 12, key, jr.key(number))
        assert found.losses.shape == (8, 2) and found.meta_losses.shape == (2,)
        begin = int(np.argmin(np.abs(np.asarray(plain.losses[:, 0]) - found.losses[0, 0])))
        np.testing.assert_allclose(found.losses, plain.losses[begin : begin + 8], rtol=1e-5)
        phases.append(begin)
    # Forty draws of four: each has a chance of 1 - 4 * 0.75^40 to be there.
    assert {*phases} == {0, 1, 2, 3}


def test_a_phase_is_trained_as_the_same_windows_are_by_hand():
    """`meta_gradient` from where the phase ends, window by window."""
    optimizer, family, key = LEARNED["lstm_identity"](jr.key(0)), Quadratic(3), jr.key(1)
    found = super_epoch(EveryWindow(3, random_phase=True), optimizer, family, 9, key, jr.key(5), rate=0.1)
    keys = jr.split(key, 2)
    objectives = [family.sample(k) for k in keys]
    runs = [(f.init(k), optimizer.init(f.init(k))) for f, k in zip(objectives, keys, strict=True)]
    begin = 0
    while not np.isclose(found.losses[0, 0], objectives[0].loss(runs[0][0], begin, keys[0]), rtol=1e-5):
        for number, (f, k) in enumerate(zip(objectives, keys, strict=True)):
            params, state = runs[number]
            updates, state = optimizer.update(jax.grad(f.loss)(params, begin, k), state, params)
            runs[number] = eqx.apply_updates(params, updates), state
        begin += 1
    assert begin > 0, "take a key with a phase"
    for start in (begin, begin + 3):
        results = [
            l2o_eqx.meta_gradient(
                optimizer, f, *run, start=start, window=3, num_steps=begin + 6, weighting=Linear(), key=k
            )
            for f, k, run in zip(objectives, keys, runs, strict=True)
        ]
        runs = [(result.params, result.state) for result in results]
        grads = jax.tree.map(lambda *g: sum(g) / 2, *[result.grads for result in results])
        optimizer = eqx.apply_updates(optimizer, jax.tree.map(lambda g: -0.1 * g, grads))
    assert_trees_close(
        eqx.filter(found.optimizer, eqx.is_array), eqx.filter(optimizer, eqx.is_array), rtol=1e-4
    )


def test_lengths_keep_their_means_and_have_a_tail():
    for parts in (1, 3, 8):
        means = [_mean_of_part(part, parts) for part in range(parts)]
        assert means == sorted(means)
        np.testing.assert_allclose(np.mean(means), 1.0)
    strategy = RandomWindows(30, sizes=5, least=1 / 3, random_phase=False)
    programs = strategy.programs(1500)
    windows, steps = [s.window for s, _ in programs], [n for _, n in programs]
    np.testing.assert_allclose([np.mean(windows), np.mean(steps)], [30, 1500], rtol=0.03)
    assert min(windows) >= 10 and max(windows) > 2 * np.median(windows)
    assert all(n % window == 0 for n, window in zip(steps, windows, strict=True))
    # Long windows are not those of long super epochs.
    assert np.argmax(windows) != np.argmax(steps)


def test_there_are_no_more_programs_than_sizes():
    strategy, family, key = RandomWindows(3, sizes=3), CountedFamily(Traces()), jr.key(1)
    traced = []
    optimizer = LEARNED["lstm_identity"](jr.key(0))

    def note(progress):
        traced.append(len(family.traces))

    settings = {"num_steps": 9, "num_objectives": 2, "key": key}
    whole = l2o_eqx.meta_train(optimizer, family, strategy, super_epochs=12, callbacks=[note], **settings)
    chosen = strategy.chosen([9] * 12, key=key)
    assert strategy.chosen([9] * 20, key=key)[:12] == chosen
    steps = [a - b for a, b in zip(traced, [0, *traced], strict=False)]
    compiled = sum(step > 0 for step in steps)
    assert compiled == 3 == len({*strategy.programs(9)})
    half = l2o_eqx.meta_train(optimizer, family, strategy, super_epochs=5, **settings)
    resumed = l2o_eqx.meta_train(optimizer, family, strategy, super_epochs=12, state=half.state, **settings)
    assert eqx.tree_equal(whole.state, resumed.state)


def test_sizes_are_equally_probable():
    strategy = RandomWindows(4, sizes=4)
    counts = collections.Counter(strategy.chosen([16] * 400, key=jr.key(0)))
    # Each is within four standard deviations of its share.
    assert len(counts) == 4 and all(abs(count - 100) < 4 * 8.7 for count in counts.values())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EveryWindow(3, random_phase=True, remainder="train"), "remainder='train'"),
        (lambda: RandomWindows(1), "window=1"),
        (lambda: RandomWindows(4, sizes=0), "sizes=0"),
        (lambda: RandomWindows(4, least=1.0), "least=1.0"),
        (lambda: RandomWindows(4).num_updates(3), "longer than the super epoch of 3"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
