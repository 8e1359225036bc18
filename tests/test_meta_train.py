from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import FAMILIES, LEARNED, STRATEGIES, CountedFamily, Traces, assert_trees_close, sparing

import l2o_eqx
from l2o_eqx._devices import Restarts
from l2o_eqx._meta_step import compiled_step, placed
from l2o_eqx._turns import super_epoch_lengths
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, Quadratic
from l2o_eqx.optimizers import CoordinatewiseLSTM, FromOptax
from l2o_eqx.strategies import EveryStep, EveryWindow, OncePerSuperEpoch
from l2o_eqx.weightings import Constant, FinalOnly, Linear

SMALL: dict[str, Any] = {"num_steps": 7, "super_epochs": 2, "num_objectives": 2}


def meta_leaves(optimizer):
    return jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array))


# An estimator that draws draws otherwise for each objective alone; windows may begin anywhere, too.
DRAWING = ("every_window_pes", "every_window_phase", "random_windows")
WINDOWED = [
    name for name, make in STRATEGIES.items() if not isinstance(make(), EveryStep) and name not in DRAWING
]


@pytest.mark.parametrize(
    "name", sparing(WINDOWED, but=["every_window_recomputed", "every_window_second", "every_window_kept"])
)
def test_strategy_is_a_loop_over_meta_gradients(name, getkey):
    """A super epoch by hand: windows, `meta_gradient` of each objective, mean, meta-update."""
    optimizer, family, key = CoordinatewiseLSTM((3,), key=getkey()), Quadratic(3), getkey()
    strategy: Any = STRATEGIES[name]()
    sgd = optax.sgd(0.1)
    solution = l2o_eqx.meta_train(
        optimizer,
        family,
        strategy,
        weighting=Linear(),
        meta_optimizer=sgd,
        num_steps=7,
        super_epochs=1,
        num_objectives=2,
        key=key,
    )

    okey, ikey, lkey = jr.split(jr.fold_in(key, 0), 3)
    objectives = [family.sample(k) for k in jr.split(okey, 2)]
    params = [f.init(k) for f, k in zip(objectives, jr.split(ikey, 2), strict=True)]
    states, keys, losses = [optimizer.init(p) for p in params], jr.split(lkey, 2), []
    window = 7 if isinstance(strategy, OncePerSuperEpoch) else strategy.window
    trained = strategy.num_trained_steps(7) if isinstance(strategy, EveryWindow) else 7
    for start in range(0, trained, window):
        results = [
            l2o_eqx.meta_gradient(
                optimizer,
                objectives[i],
                params[i],
                states[i],
                window=min(window, trained - start),
                start=start,
                num_steps=7,
                weighting=Linear(),
                key=keys[i],
                estimator=strategy.estimator,
                include_final_loss=strategy.include_final_loss,
            )
            for i in range(2)
        ]
        grads = jax.tree.map(lambda a, b: (a + b) / 2, *(r.grads for r in results))
        optimizer = eqx.apply_updates(optimizer, jax.tree.map(lambda g: -0.1 * g, grads))
        params, states = [r.params for r in results], [r.state for r in results]
        losses.append(np.mean([r.losses for r in results]))
    assert_trees_close(meta_leaves(solution.optimizer), meta_leaves(optimizer), rtol=1e-3, atol=1e-4)
    if window == 7:
        np.testing.assert_allclose(solution.metrics["mean_loss"], losses, rtol=1e-4)


def test_leftover_steps_are_taken_but_not_trained_on(getkey):
    assert EveryWindow(16).num_updates(375) == 23
    assert OncePerSuperEpoch().num_updates(80) == 1
    optimizer, key = CoordinatewiseLSTM((3,), key=getkey()), getkey()

    def train(num_steps):
        return l2o_eqx.meta_train(
            optimizer, Quadratic(3), EveryWindow(3), num_steps=num_steps, super_epochs=1, key=key
        )

    six, eight = train(6), train(8)
    assert_trees_close(meta_leaves(six.optimizer), meta_leaves(eight.optimizer))
    assert six.metrics["final_loss"] != eight.metrics["final_loss"]


def test_the_last_trained_step_is_the_final_one(getkey):
    """`FinalOnly` of the super epoch must not fall on a step after the last window."""
    solution = l2o_eqx.meta_train(
        CoordinatewiseLSTM((3,), key=getkey()),
        Quadratic(3),
        EveryWindow(3),
        weighting=FinalOnly("super_epoch"),
        num_steps=7,
        super_epochs=1,
        key=getkey(),
    )
    assert solution.metrics["grad_norm"] > 0


def test_same_seed_same_bits_and_resume(getkey):
    optimizer, key = LEARNED["lstm_signed_log"](getkey()), getkey()

    def train(**kwargs):
        return l2o_eqx.meta_train(optimizer, Quadratic(3), EveryWindow(3), key=key, **{**SMALL, **kwargs})

    whole, again, half = train(super_epochs=4), train(super_epochs=4), train(super_epochs=2)
    resumed = train(super_epochs=4, state=half.state)
    for other in (again, resumed):
        assert eqx.tree_equal(whole.state, other.state)
    assert not eqx.tree_equal(whole.optimizer, half.optimizer)
    assert whole.metrics["meta_loss"].shape == (4,)


@pytest.mark.parametrize("name", sparing(["lstm_identity", "user_scaled_gradient"], but=["lstm_identity"]))
def test_restarts_are_independent_trainings(name, getkey):
    """Restart i of a batch is what training optimizer i alone with its own key would give."""
    keys, key = jr.split(getkey(), 3), getkey()
    batch = jax.tree.map(lambda *x: jnp.stack(x), *(LEARNED[name](k) for k in keys))
    kwargs: dict[str, Any] = {"num_steps": 6, "num_objectives": 2, "super_epochs": 1}
    solution = l2o_eqx.meta_train(batch, Quadratic(3), EveryWindow(3), restarts=3, key=key, **kwargs)
    assert solution.metrics["final_loss"].shape == (1, 3)

    arrays, static = eqx.partition(batch, eqx.is_array)
    for i, restart_key in enumerate(jr.split(jr.fold_in(key, 0), 3)):
        okey, ikey, lkey = jr.split(restart_key, 3)
        optimizer = eqx.combine(jax.tree.map(lambda x, i=i: x[i], arrays), static)
        meta_optimizer = l2o_eqx.default_meta_optimizer()

        def meta_update(optimizer, meta_state, grads, meta_optimizer=meta_optimizer):
            updates, meta_state = meta_optimizer.update(grads, meta_state)
            return eqx.apply_updates(optimizer, updates), meta_state

        alone = eqx.filter_jit(EveryWindow(3).super_epoch)(
            optimizer,
            meta_optimizer.init(eqx.filter(optimizer, eqx.is_inexact_array)),
            l2o_eqx.objectives.sample_objectives(Quadratic(3), jr.split(okey, 2)),
            meta_update=meta_update,
            weighting=Constant(),
            num_steps=6,
            init_keys=jr.split(ikey, 2),
            loss_keys=jr.split(lkey, 2),
            key=restart_key,
        )
        one = l2o_eqx.select_restart(solution.optimizer, i)
        assert_trees_close(meta_leaves(one), meta_leaves(alone.optimizer), rtol=1e-3, atol=1e-4)


# Each with and without restarts in turn: neither knows of the other.
@pytest.mark.parametrize(
    "name",
    sparing(
        STRATEGIES,
        but=set(STRATEGIES) - {"every_window", "every_window_pes", "random_windows", "every_step_recorded"},
    ),
)
def test_nothing_compiles_again_between_super_epochs(name, getkey):
    restarts = (None, 2)[list(STRATEGIES).index(name) % 2]
    family = CountedFamily(Traces())
    optimizers = [LEARNED["lstm_identity"](getkey()) for _ in range(restarts or 1)]
    optimizer = jax.tree.map(lambda *x: jnp.stack(x), *optimizers) if restarts else optimizers[0]
    traced = []
    l2o_eqx.meta_train(
        optimizer,
        family,
        STRATEGIES[name](),
        weighting=Linear(),
        meta_optimizer=l2o_eqx.default_meta_optimizer(),
        num_steps=7,
        super_epochs=4,
        num_objectives=2,
        restarts=restarts,
        key=getkey(),
        callbacks=[lambda progress: traced.append(len(family.traces))],
    )
    assert len(traced) >= 4 and traced[0] > 0 and set(traced) == {traced[0]}


@pytest.mark.parametrize(
    "name, restarts",
    [("lstm_adam_like", 2), ("per_layer", None), ("learned_momentum", 2), ("user_scaled_gradient", None)],
)
def test_compiles_once_and_transfers_nothing(name, restarts, getkey):
    family = CountedFamily(Traces())
    optimizer = LEARNED[name](getkey())
    if restarts:
        optimizer = jax.tree.map(lambda *x: jnp.stack(x), *(LEARNED[name](getkey()) for _ in range(restarts)))
    meta_optimizer = l2o_eqx.default_meta_optimizer()
    state = l2o_eqx.init_meta_state(optimizer, meta_optimizer, restarts=restarts)
    key = getkey()

    def step(state):
        return l2o_eqx.meta_step(
            state,
            family,
            EveryWindow(3),
            weighting=Constant(),
            meta_optimizer=meta_optimizer,
            num_steps=6,
            num_objectives=2,
            restarts=restarts,
            key=key,
        )

    state, _ = step(state)
    # A derivative of what was evaluated already, and no evaluation of its own, is the second trace.
    traced = len(family.traces)
    assert 1 <= traced <= 2
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, _ = step(state)
    assert len(family.traces) == traced


def test_lengths_are_drawn_and_compiled_once_each(getkey):
    """Super epochs of several lengths are those of each length alone, in the order that the key draws."""
    family, optimizer, key = CountedFamily(Traces()), LEARNED["lstm_identity"](getkey()), getkey()
    seen = []
    settings: dict[str, Any] = {"num_objectives": 2, "key": key}
    settings["callbacks"] = [lambda progress: seen.append(len(family.traces))]

    def train(num_steps, super_epochs, state=None):
        return l2o_eqx.meta_train(
            optimizer,
            family,
            EveryWindow(3),
            num_steps=num_steps,
            super_epochs=super_epochs,
            state=state,
            **settings,
        )

    lengths = (3, 6, 8)
    drawn = super_epoch_lengths(lengths, 8, key)
    assert {*drawn} == {*lengths} and drawn != sorted(drawn)
    assert super_epoch_lengths(lengths, 5, key) == drawn[:5]
    assert super_epoch_lengths(lengths, 8, getkey()) != drawn
    whole = train(lengths, 8)
    is_new = [length not in drawn[:i] for i, length in enumerate(drawn)]
    assert [now > before for before, now in zip([0, *seen], seen, strict=False)] == is_new
    resumed = train(lengths, 8, train(lengths, 3).state)
    state = None
    for done, length in enumerate(drawn):
        state = train(length, done + 1, state).state
    for other in (resumed.state, state):
        assert eqx.tree_equal(whole.state, other)
    assert len(family.traces) == seen[7]


@pytest.mark.parametrize(
    "lengths, strategy, message",
    [
        ((3, 8), EveryWindow(5), "longer than the super epoch of 3"),
        ((8, 1), OncePerSuperEpoch(), "at least 2 steps"),
        ((8, 0), EveryWindow(3), "num_steps=0"),
        ((), EveryWindow(3), "num_steps=0"),
    ],
)
def test_every_length_must_fit(lengths, strategy, message, getkey):
    with pytest.raises(ValueError, match=message):
        l2o_eqx.meta_train(
            CoordinatewiseLSTM((2,), key=getkey()), Quadratic(2), strategy, num_steps=lengths, key=getkey()
        )


def test_training_improves_the_optimizer(getkey):
    """On bowls of one kind a few hundred meta-updates beat the untrained optimizer by far."""
    optimizer, family = CoordinatewiseLSTM((8,), learning_rate=0.01, key=getkey()), Quadratic(2)
    solution = l2o_eqx.meta_train(
        optimizer,
        family,
        EveryWindow(10),
        num_steps=40,
        super_epochs=80,
        num_objectives=8,
        key=getkey(),
    )
    key = getkey()

    def median(optimizer):
        run = l2o_eqx.evaluate(optimizer, family, num_steps=40, num_objectives=64, key=key)
        return np.median(run.final_losses)

    assert median(solution.optimizer) < 0.3 * median(optimizer)
    assert solution.result == "completed"


def test_callbacks_see_every_super_epoch_and_can_stop(getkey):
    seen = []

    def callback(progress):
        seen.append((progress.super_epoch, progress.super_epochs, set(progress.metrics)))
        return l2o_eqx.StopTraining("enough") if progress.super_epoch == 2 else None

    solution = l2o_eqx.meta_train(
        CoordinatewiseLSTM((2,), key=getkey()),
        Quadratic(2),
        EveryWindow(3),
        key=getkey(),
        callbacks=[callback],
        **{**SMALL, "super_epochs": 5},
    )
    assert [row[:2] for row in seen] == [(1, 5), (2, 5)]
    assert seen[0][2] == {
        "meta_loss",
        "mean_loss",
        "final_loss",
        "grad_norm",
        "zero_share",
        "skipped_updates",
        "failed_objectives",
    }
    assert solution.result == "stopped" and solution.reason == "enough"
    assert int(solution.state.super_epoch) == 2


def test_nonfinite_meta_gradients_are_left_out(getkey):
    class Broken(AbstractObjective):
        def init(self, key):
            return jnp.ones(2)

        def loss(self, params, step, key):
            return jnp.sum(params**2) * jnp.where(step < 3, 1.0, jnp.nan)

    class Family(AbstractObjectiveFamily):
        def sample(self, key):
            return Broken()

    optimizer = CoordinatewiseLSTM((2,), key=getkey())
    solution = l2o_eqx.meta_train(
        optimizer, Family(), EveryWindow(3), num_steps=6, super_epochs=2, key=getkey()
    )
    assert all(np.all(np.isfinite(x)) for x in meta_leaves(solution.optimizer))
    np.testing.assert_array_equal(solution.metrics["skipped_updates"], [1, 2])
    assert not eqx.tree_equal(solution.optimizer, optimizer)


@pytest.mark.parametrize(
    "family",
    sparing(
        ["quadratic_norm", "scaled_from_model", "mnist_mixed", "mnist_conv", "mnist_sigmoid_output"],
        but=["mnist_conv", "mnist_sigmoid_output"],
    ),
)
def test_every_kind_of_family_trains(family, getkey):
    optimizer = LEARNED["lstm_log_and_sign"](getkey())
    solution = l2o_eqx.meta_train(optimizer, FAMILIES[family](), EveryWindow(3), key=getkey(), **SMALL)
    assert np.all(np.isfinite(solution.metrics["final_loss"]))
    assert np.all(solution.metrics["grad_norm"] > 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_objectives": 0}, "num_objectives=0"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"super_epochs": 0}, "super_epochs=0"),
        ({"restarts": 0}, "restarts=0"),
        ({"restarts": 2}, "restarts=2.*leading axis"),
        ({"strategy": EveryWindow(8)}, "longer than the super epoch of 7"),
        ({"optimizer": FromOptax(optax.sgd(0.1))}, "nothing to train"),
    ],
)
def test_errors_name_the_argument(change, message, getkey):
    kwargs = {
        "optimizer": CoordinatewiseLSTM((2,), key=getkey()),
        "strategy": EveryWindow(3),
        **SMALL,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        l2o_eqx.meta_train(family=Quadratic(2), key=getkey(), **kwargs)


def test_state_of_another_optimizer_is_refused(getkey):
    small, large = (CoordinatewiseLSTM((n,), key=getkey()) for n in (2, 3))
    solution = l2o_eqx.meta_train(small, Quadratic(2), EveryWindow(3), key=getkey(), **SMALL)
    with pytest.raises(ValueError, match="`optimizer`"):
        l2o_eqx.meta_train(large, Quadratic(2), EveryWindow(3), key=getkey(), state=solution.state, **SMALL)


def test_super_epoch_of_one_step_is_refused():
    with pytest.raises(ValueError, match="at least 2 steps"):
        OncePerSuperEpoch().num_updates(1)


def test_window_of_one_is_refused():
    with pytest.raises(ValueError, match="window=1"):
        EveryWindow(1)


def test_memory_does_not_grow_with_restarts_beyond_their_own_arrays(getkey):
    """Restarts too large to run in parallel run one after the other in the same program."""
    meta_optimizer = l2o_eqx.default_meta_optimizer()

    step: Any = compiled_step
    strategy = EveryWindow(3)

    def temporaries(restarts):
        make = eqx.filter_vmap(lambda key: CoordinatewiseLSTM((4,), key=key))
        optimizer = make(jr.split(getkey(), restarts))
        state = l2o_eqx.init_meta_state(optimizer, meta_optimizer, restarts=restarts)
        lowered = step.lower(
            *placed(state, Quadratic(64), strategy, 40, Restarts(restarts)),
            strategy=strategy,
            weighting=Constant(),
            meta_optimizer=meta_optimizer,
            num_steps=6,
            num_objectives=40,
            key=getkey(),
        )
        own = sum(x.nbytes for x in meta_leaves(optimizer))
        return lowered.compile().compiled.memory_analysis().temp_size_in_bytes, own

    (few, own_few), (many, own_many) = temporaries(2), temporaries(12)
    # Twice Adam's moments, the weights, and their next values.
    assert many - few < 8 * (own_many - own_few) < 0.1 * few
