"""Any model as an objective: keys, auxiliary output, state, frozen leaves, dtypes."""

import functools
from typing import Any

import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import sparing
from jax import lax

import l2o_eqx
from l2o_eqx import estimators, strategies
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, FromModel, Quadratic, Scaled
from l2o_eqx.weightings import Constant

X = jr.normal(jr.key(0), (24, 3))
Y = jnp.sin(X[:, :1])


class Linear(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __init__(self, key, dtype=jnp.float32):
        # The same whatever the dtype.
        weight, bias = jr.normal(key, (3, 1), jnp.float32), jnp.zeros((1, 1))
        self.weight, self.bias = weight.astype(dtype), bias.astype(dtype)

    def __call__(self, x):
        return x @ self.weight + self.bias


def squared_error(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


class Normed(eqx.Module):
    """BatchNorm, dropout, a layer; and a frozen layer and a buffer, which are behind `stop_gradient`."""

    frozen: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear
    buffer: jax.Array
    dropout: eqx.nn.Dropout

    def __init__(self, key, mode: Any = "batch"):
        fkey, okey = jr.split(key)
        self.frozen = eqx.nn.Linear(3, 2, key=fkey)
        self.norm = eqx.nn.BatchNorm(2, "batch", mode=mode, momentum=0.9)
        self.out = eqx.nn.Linear(2, 1, key=okey)
        self.buffer = jnp.full(2, 0.5)
        self.dropout = eqx.nn.Dropout(0.25)

    def __call__(self, x, state, key):
        frozen, buffer = lax.stop_gradient((self.frozen, self.buffer))
        h, state = self.norm(frozen(x) * buffer, state)
        return self.out(self.dropout(h, key=key)), state


def normed_loss(model, state, batch, key):
    x, y = batch
    call = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    predicted, state = call(x, state, jr.split(key, len(x)))
    return jnp.mean((predicted - y) ** 2), state


def _normed(mode="batch"):
    return FromModel(functools.partial(Normed, mode=mode), normed_loss, (X, Y), 8)


class Learned(l2o_eqx.optimizers.AbstractOptimizer):
    """Moves whatever it is shown, also where the gradient is zero."""

    rate: jax.Array
    drift: jax.Array

    def init(self, params):
        return jnp.zeros(())

    def update(self, grads, state, params, *, value=None, key=None):
        return jax.tree.map(lambda g: -self.rate * g - self.drift, grads), state + 1


def _learned(dtype=jnp.float32):
    return Learned(jnp.asarray(0.05, dtype), jnp.asarray(0.001, dtype))


def test_the_same_step_and_key_draw_the_same_mask(getkey):
    def loss(model, batch, *, key):
        mask = jr.bernoulli(key, 0.5, (32,))
        return jnp.mean(model(batch[0])) + 0 * jnp.sum(mask), mask

    objective: Any = FromModel(Linear, loss, (X, Y), 4, has_aux=True).sample(getkey())
    params, key = objective.init(getkey()), getkey()
    masks = [objective.loss_and_aux(params, step, key)[1] for step in (0, 0, jnp.asarray(0), 1)]
    masks.append(objective.loss_and_aux(params, 0, getkey())[1])
    assert (masks[0] == masks[1]).all() and (masks[0] == masks[2]).all()
    assert (masks[0] != masks[3]).any() and (masks[0] != masks[4]).any()


def test_losses_are_called_by_the_names_of_their_parameters(getkey):
    def plain(model, batch):
        return squared_error(model, batch)

    def unused_key(model, batch, key=None):
        assert key is not None
        return squared_error(model, batch)

    def with_aux(model, batch, scale=1.0):
        return scale * squared_error(model, batch), {"size": len(batch[0])}

    bound = functools.partial(lambda model, batch, key: squared_error(model, batch), key=None)
    key, losses = getkey(), []
    for loss, has_aux in [
        (plain, False),
        (eqx.filter_jit(unused_key), False),
        (with_aux, True),
        (bound, False),
    ]:
        objective: Any = FromModel(Linear, loss, (X, Y), 4, has_aux=has_aux).sample(key)
        params = objective.init(key)
        losses.append(float(objective.loss(params, 2, key)))
        aux = objective.loss_and_aux(params, 2, key)[1]
        assert aux == ({"size": 4} if has_aux else None)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def _per_example(model, batch):
    return jnp.sum((model(batch[0]) - batch[1]) ** 2, axis=1)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (_per_example, r"one floating-point number. Got an array of shape \(4,\).*mean"),
        (lambda model, batch: 3, "dtype int32"),
        (lambda model, batch: (jnp.zeros(()), 1), "has_aux=True"),
        (lambda model, batch: jnp.zeros(()), "nothing to train"),
        (lambda model: 1.0, "the model, the batch"),
        (lambda model, x, y: 1.0, "the model, the batch"),
        (lambda model, batch, *, other: 1.0, "the model, the batch"),
        (lambda model, batch, state: (1.0, state), "the model has none"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_in_one_sentence(loss, says, getkey):
    with pytest.raises(l2o_eqx.ArgumentError, match=says) as error:
        l2o_eqx.evaluate(
            optax.sgd(0.1), FromModel(Linear, loss, (X, Y), 4), num_steps=2, num_objectives=1, key=getkey()
        )
    assert "\n" not in str(error.value)


def test_a_pair_is_asked_for(getkey):
    family = FromModel(Linear, squared_error, (X, Y), 4, has_aux=True)
    with pytest.raises(l2o_eqx.ArgumentError, match=r"must return `\(loss, aux\)`"):
        family.sample(getkey())
    with pytest.raises(l2o_eqx.ArgumentError, match=r"must return `\(loss, state\)`"):
        FromModel(Normed, lambda model, batch, state: jnp.zeros(()), (X, Y), 4).sample(getkey())
    with pytest.raises(l2o_eqx.ArgumentError, match="a parameter named `state`"):
        FromModel(Normed, lambda model, batch: jnp.zeros(()), (X, Y), 4).sample(getkey())


def test_objectives_of_ones_own_that_return_no_scalar_are_refused(getkey):
    class Many(AbstractObjective):
        def init(self, key):
            return jnp.ones(3)

        def loss(self, params, step, key) -> Any:
            return params**2

    class Family(AbstractObjectiveFamily):
        def sample(self, key):
            return Many()

    with pytest.raises(l2o_eqx.ArgumentError, match=r"`Many.loss` must return one .* shape \(3,\)"):
        l2o_eqx.evaluate(optax.sgd(0.1), Family(), num_steps=2, num_objectives=1, key=getkey())


def _all_but_bias(model):
    return eqx.tree_at(lambda m: m.bias, jax.tree.map(lambda _: True, model), False)


@pytest.mark.parametrize(
    "trainable", [_all_but_bias(Linear(jr.key(0))), lambda leaf: getattr(leaf, "shape", None) == (3, 1)]
)
def test_leaves_that_are_not_trainable_stay_as_they_are(trainable, getkey):
    def make(key):
        return eqx.tree_at(lambda m: m.bias, Linear(key), jnp.full((1, 1), 0.3))

    family = FromModel(make, squared_error, (X, Y), 4, trainable=trainable)
    assert l2o_eqx.count_coordinates(family) == 3

    def measure(objective, params):
        return objective.model(params)

    end = l2o_eqx.evaluate(
        _learned(), family, num_steps=1000, num_objectives=2, measure=measure, key=getkey()
    ).measured
    assert (np.asarray(end.bias) == np.float32(0.3)).all() and (np.asarray(end.weight) != 0).all()


def test_what_has_no_derivative_is_no_coordinate(getkey):
    """What is behind `stop_gradient`, inside of compiled functions and loops too, and what is not used."""
    names = ["used", "frozen", "in_a_loop", "not_used", "integer"]

    def make(key):
        leaves: dict[str, Any] = {name: jr.normal(key, (3, 3)) for name in names}
        return leaves | {"integer": jnp.arange(3)}

    @eqx.filter_jit
    def loss(model, batch):
        def step(h, _):
            return jnp.tanh(h @ model["used"] + lax.stop_gradient(model["in_a_loop"])[:1]), None

        h = batch[0] @ lax.stop_gradient(model["frozen"]) * model["integer"][None]
        return jnp.mean(lax.scan(step, h, None, length=2)[0])

    family = FromModel(make, loss, (X, Y), 4)
    shapes = l2o_eqx.objectives.params_shapes(family)
    assert {name for name in names if shapes[name] is not None} == {"used"}
    objective: Any = family.sample(getkey())
    whole = objective.model(objective.init(getkey()))
    assert all(whole[name] is not None for name in names)


def test_batch_norm_is_that_of_a_loop_written_by_hand(getkey):
    """Running statistics are no coordinates, and are those of a plain training loop; nothing frozen moves."""
    family, optimizer, key, num_steps = _normed(), optax.sgd(0.1), getkey(), 1000
    # The norm's and the last layer's weights and biases.
    assert l2o_eqx.count_coordinates(family) == 2 + 2 + 2 + 1

    def measure(objective, params):
        return eqx.filter(objective.model(params), eqx.is_array), objective.state

    model, state = l2o_eqx.evaluate(
        optimizer, family, num_steps=num_steps, num_objectives=1, measure=measure, key=key
    ).measured
    okey, ikey, lkey = jr.split(jr.split(key, 1)[0], 3)
    objective: Any = family.sample(okey)
    start, _ = eqx.nn.make_with_state(Normed)(ikey)
    drawn = objective.model(objective.init(ikey))
    np.testing.assert_array_equal(drawn.out.weight, start.out.weight)
    for moved, own in [(model.frozen.weight, drawn.frozen.weight), (model.buffer, drawn.buffer)]:
        np.testing.assert_array_equal(moved[0], own)

    @jax.jit
    def by_hand(params):
        _, state = eqx.nn.make_with_state(Normed)(ikey)

        def step(carry, t):
            params, state = carry

            def of_params(params):
                return objective.with_state(state).loss_and_state(params, t, lkey)

            grads, state = jax.grad(of_params, has_aux=True)(params)
            return (jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state), None

        return lax.scan(step, (params, state), jnp.arange(num_steps))[0]

    params, expected = by_hand(objective.init(ikey))
    np.testing.assert_allclose(model.out.weight[0], params.out.weight, rtol=1e-3, atol=1e-5)
    initial = jax.tree.leaves(eqx.nn.make_with_state(Normed)(ikey)[1])
    for found, right, first in zip(jax.tree.leaves(state), jax.tree.leaves(expected), initial, strict=True):
        np.testing.assert_allclose(found[0], right, rtol=1e-3, atol=1e-5)
        assert (np.asarray(right) != np.asarray(first)).all()


class Moving(AbstractObjective):
    """‖θ − s‖², s the mean of all θ so far, in which the state has its say in value and gradient."""

    target: jax.Array
    mean: Any = None

    def init(self, key):
        return self.target + 0.3 * jr.normal(key, self.target.shape, self.target.dtype)

    def init_state(self, key):
        return {"mean": self.target, "count": jnp.zeros((), jnp.int32)}

    def with_state(self, state):
        return Moving(self.target, state)

    def loss(self, params, step, key):
        return jnp.sum((params - self.mean["mean"]) ** 2) + jnp.sum((params - self.target) ** 4)

    def loss_and_state(self, params, step, key):
        count = self.mean["count"] + 1
        mean = self.mean["mean"] + (params - self.mean["mean"]) / (count + 1)
        return self.loss(params, step, key), {"mean": mean, "count": count}


class Movings(AbstractObjectiveFamily):
    dim: int = 2

    def sample(self, key):
        return Moving(0.3 * jr.normal(key, (self.dim,)))


def _run_by_hand(optimizer, objective, params, states, num_steps, key, *, first_order=False):
    """Losses, params and states along a plain loop, the state's influence cut."""
    losses, state = [], optimizer.init(params)
    seen = []
    for t in range(num_steps):
        seen.append(states)
        at = objective.with_state(lax.stop_gradient(states))
        (loss, states), grads = jax.value_and_grad(at.loss_and_state, has_aux=True)(params, t, key)
        grads = lax.stop_gradient(grads) if first_order else grads
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        losses.append(loss)
    return jnp.stack(losses), params, states


STATEFUL = ["every_window", "every_window_second", "every_window_pes", "every_step", "every_step_recorded"]


@pytest.mark.parametrize(
    "name", sparing([*STATEFUL, "clipped"], but=["every_window_second", "every_step_recorded"])
)
def test_states_are_threaded_through_every_strategy(name, getkey):
    """Without meta-updates a training sees the losses of plain runs, window after window."""
    strategy = (
        strategies.EveryWindow(3, helpers.ESTIMATORS["clipped"]())
        if name == "clipped"
        else helpers.STRATEGIES[name]()
    )
    key, family = getkey(), Scaled(Movings(), 2.0, 2.0)
    solution = l2o_eqx.meta_train(
        _learned(),
        family,
        strategy,
        meta_optimizer=optax.sgd(0.0),
        num_steps=7,
        super_epochs=1,
        num_objectives=2,
        key=key,
    )
    keys = [jr.split(k, 2) for k in jr.split(jr.fold_in(key, 0), 3)]
    losses = []
    for okey, ikey, lkey in zip(*keys, strict=True):
        objective = family.sample(okey)
        params = objective.init(ikey)
        losses.append(_run_by_hand(_learned(), objective, params, objective.init_state(ikey), 7, lkey)[0])
    np.testing.assert_allclose(solution.metrics["mean_loss"], [np.mean(losses)], rtol=1e-5)


def test_every_step_replays_the_states_of_the_past(getkey):
    """A window that runs along is evaluated from the state where it begins: both ways give one gradient."""
    key, trained = getkey(), []
    for estimator in (estimators.Replay(), estimators.Recorded()):
        solution = l2o_eqx.meta_train(
            _learned(),
            Movings(),
            strategies.EveryStep(3, estimator),
            meta_optimizer=optax.sgd(1e-9),
            num_steps=7,
            super_epochs=1,
            num_objectives=1,
            key=key,
        )
        trained.append(solution.metrics["grad_norm"])
    np.testing.assert_allclose(trained[0], trained[1], rtol=1e-5)


@pytest.mark.parametrize("order", ["first", "second"])
def test_the_meta_gradient_takes_the_state_for_a_constant(order, getkey):
    """In float64, it is that of a plain loop in which the state is cut off; windows go on where one ended."""
    with jax.enable_x64(True):
        model = functools.partial(Normed, mode="ema")

        def make(key):
            return helpers.to_float64(model(key))

        family = FromModel(make, normed_loss, helpers.to_float64((X, Y)), 8)
        optimizer, key = _learned(jnp.float64), getkey()
        objective = family.sample(getkey())
        params, states = objective.init(key), objective.init_state(key)
        # Running statistics that are not those of the beginning, since these are taken from the batch.
        begun = l2o_eqx.unroll(optimizer, objective, params, optimizer.init(params), 2, key=key)
        estimator = estimators.Replay() if order == "first" else estimators.Backprop(())
        found = l2o_eqx.meta_gradient(
            optimizer,
            objective,
            begun.params,
            begun.state,
            window=3,
            start=2,
            weighting=Constant(),
            key=key,
            estimator=estimator,
            objective_state=begun.objective_state,
        )

        def meta_loss(optimizer):
            shifted = _Shifted(objective, 2)
            run = _run_by_hand(
                optimizer, shifted, begun.params, begun.objective_state, 3, key, first_order=order == "first"
            )
            return jnp.mean(run[0]), run

        by_hand = eqx.filter_jit(eqx.filter_value_and_grad(meta_loss, has_aux=True))
        (expected, run), grads = by_hand(optimizer)
        np.testing.assert_allclose(found.losses, run[0], rtol=1e-9)
        scale = float(found.meta_loss / expected)
        helpers.assert_trees_close(found.grads, jax.tree.map(lambda g: scale * g, grads), rtol=1e-8)
        helpers.assert_trees_close(found.objective_state, run[2], rtol=1e-9)
        assert not np.allclose(_flat(begun.objective_state), _flat(states))
        # The state matters here: with the first one the loss is another.
        other = objective.with_state(states).loss(begun.params, 2, key)
        assert abs(float(other - run[0][0])) > 1e-3


def _flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


class _Shifted:
    # The same from another step on.
    def __init__(self, objective, start):
        self.objective, self.start = objective, start

    def with_state(self, state):
        return _Shifted(self.objective.with_state(state), self.start)

    def loss_and_state(self, params, step, key):
        return self.objective.loss_and_state(params, step + self.start, key)


def test_wrappers_and_imitation_thread_states(getkey):
    family, key = Scaled(_normed(), 2.0, 2.0), getkey()

    def measure(objective, params):
        return objective.objective.state

    scaled = l2o_eqx.evaluate(
        optax.sgd(0.05), family, num_steps=5, num_objectives=2, measure=measure, key=key
    )
    first = family.sample(jr.key(0)).init_state(jr.key(0))
    assert all(
        (np.asarray(x) != np.asarray(y)).all()
        for x, y in zip(*map(jax.tree.leaves, (scaled.measured, first)), strict=True)
    )
    found = l2o_eqx.imitate(
        _learned(),
        optax.sgd(0.05),
        Movings(),
        num_steps=4,
        window=2,
        super_epochs=1,
        num_objectives=1,
        key=key,
    )
    assert np.isfinite(found.losses).all()


def test_a_state_of_another_structure_is_refused(getkey):
    class Forgetful(Moving):
        def with_state(self, state):
            return Forgetful(self.target, state)

        def loss_and_state(self, params, step, key):
            return self.loss(params, step, key), {}

    objective = Forgetful(jnp.ones(2))
    with pytest.raises(ValueError, match="a state of the structure that it had"):
        l2o_eqx.unroll(_learned(), objective, jnp.ones(2), jnp.zeros(()), 2, key=getkey())


DTYPES = ["bfloat16", "float16", "float64", "float32 with x64"]


def _descent(params, num_steps, rate, drift):
    """The losses of gradient descent that drifts on all data, in float64 and NumPy."""
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    weight, bias = (np.asarray(p, np.float64) for p in (params.weight, params.bias))
    losses = []
    for _ in range(num_steps):
        error = x @ weight + bias - y
        losses.append(np.mean(error**2))
        weight = weight - rate * 2 * x.T @ error / len(x) - drift
        bias = bias - rate * 2 * np.mean(error, keepdims=True) - drift
    return losses, weight


@pytest.mark.parametrize("name", sparing(DTYPES, but=["float16", "float64"]))
def test_every_verb_takes_models_of_every_dtype(name):
    """The params keep their dtype, and the numbers are those of float64 up to rounding."""
    dtype, key = jnp.dtype(name.split()[0]), jr.key(1)
    close = functools.partial(np.testing.assert_allclose, rtol=0.06 if "16" in name else 1e-5)
    with jax.enable_x64("64" in name):
        data = jax.tree.map(lambda x: x.astype(dtype), (X, Y))
        family = FromModel(functools.partial(Linear, dtype=dtype), squared_error, data, 24)
        optimizer = _learned()

        def start(okey, ikey):
            return family.sample(okey).init(ikey)

        found = l2o_eqx.evaluate(
            optimizer, family, num_steps=4, num_objectives=1, measure=lambda o, p: p.weight, key=key
        )
        okey, ikey, _ = jr.split(jr.split(key, 1)[0], 3)
        losses, weight = _descent(start(okey, ikey), 4, 0.05, 0.001)
        close(found.losses[0].astype(float), losses)
        assert found.measured.dtype == dtype
        close(found.measured[0].astype(float), weight)

        estimator = estimators.Backprop(()) if name in ("bfloat16", "float64") else estimators.Replay()
        strategy = strategies.EveryWindow(2, estimator)
        trained = l2o_eqx.meta_train(
            optimizer, family, strategy, meta_optimizer=optax.sgd(0.0), num_steps=4, super_epochs=1, key=key
        )
        okey, ikey, _ = (jr.split(k, 1)[0] for k in jr.split(jr.fold_in(key, 0), 3))
        losses, _ = _descent(start(okey, ikey), 4, 0.05, 0.001)
        # The sum over a window, in the mean over windows.
        close(trained.metrics["meta_loss"], [np.sum(losses) / 2])
        assert trained.metrics["grad_norm"] > 0

        compared = l2o_eqx.compare(
            {"SGD": optax.sgd, "Polyak": optax.polyak_sgd(0.05)},
            family,
            num_steps=4,
            num_objectives=1,
            num_tuning_objectives=1,
            learning_rates=(0.05,),
            key=key,
        )
        okey, ikey, _ = jr.split(jr.split(jr.split(key)[1], 1)[0], 3)
        losses, _ = _descent(start(okey, ikey), 4, 0.05, 0.0)
        for trajectory in compared.trajectories.values():
            # Polyak's step is never larger than 0.05, and would be.
            close(np.asarray(trajectory.losses[0], np.float64), losses)


def test_wider_gradients_do_not_promote_params():
    """float32 gradients and rates beside bfloat16 params."""

    class Widening(l2o_eqx.optimizers.AbstractOptimizer):
        rate: jax.Array

        def init(self, params):
            return jax.tree.map(jnp.zeros_like, params)

        def update(self, grads, state, params, *, value=None, key=None):
            state = jax.tree.map(lambda s, g: 0.5 * s + self.rate * g, state, grads)
            return jax.tree.map(jnp.negative, state), state

    class Narrow(AbstractObjective):
        def init(self, key):
            return jnp.ones(3, jnp.bfloat16)

        def loss(self, params, step, key):
            return jnp.sum(params.astype(jnp.float32) ** 2)

    objective = Narrow()
    params = objective.init(jr.key(0))
    optimizer = Widening(jnp.float32(0.1))
    run = l2o_eqx.unroll(optimizer, objective, params, optimizer.init(params), 2, key=jr.key(0))
    assert run.params.dtype == run.state.dtype == jnp.bfloat16 and run.losses.dtype == jnp.float32
    # θ: 1, 0.8; each rounded to eight bits.
    np.testing.assert_allclose(run.losses, [3.0, 3 * 0.8**2], rtol=1e-2)


class _Halves(l2o_eqx.optimizers.AbstractOptimizer):
    """Trained and not: one of its rates is not used, one is behind a `stop_gradient`, one has no entries."""

    rate: jax.Array
    unused: jax.Array
    stopped: dict[str, jax.Array]
    empty: jax.Array

    def init(self, params):
        return jnp.zeros(())

    def update(self, grads, state, params, *, value=None, key=None):
        rate = self.rate * lax.stop_gradient(self.stopped["a"])
        return jax.tree.map(lambda g: -rate * g, grads), state


def _train(optimizer, num_steps=12, super_epochs=1, strategy=None, callbacks=(), **settings):
    return l2o_eqx.meta_train(
        optimizer,
        Quadratic(2),
        strategies.EveryWindow(3) if strategy is None else strategy,
        num_steps=num_steps,
        super_epochs=super_epochs,
        key=jr.key(0),
        callbacks=callbacks,
        **settings,
    )


def test_meta_parameters_without_a_gradient_are_named():
    one = jnp.asarray(0.01)
    optimizer = _Halves(one, one, {"a": one}, jnp.zeros(0))
    told = []
    with pytest.warns(
        l2o_eqx.ZeroGradientWarning, match=r"`\.unused`, `\.stopped\['a'\]` has been"
    ) as warned:
        solution = _train(optimizer, super_epochs=2, callbacks=[lambda p: told.append(p.without_gradient)])
    assert len(warned) == 1
    assert solution.without_gradient == (".unused", ".stopped['a']")
    assert told == [solution.without_gradient, ()]
    # Not warned of again where the training goes on.
    resumed = _train(optimizer, super_epochs=3, state=solution.state)
    assert resumed.without_gradient == solution.without_gradient
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), _Halves(one, one, {"a": one}, one))
    with pytest.warns(l2o_eqx.ZeroGradientWarning, match="unused"):
        assert _train(batch, restarts=2).without_gradient == (*solution.without_gradient, ".empty")


def test_what_the_first_update_cannot_reach_is_not_named(getkey):
    """Behind a read-out of zeros, and features of zeros, there is no gradient at first."""
    optimizer = l2o_eqx.optimizers.CoordinatewiseLSTM(
        (3,), output=helpers.OUTPUTS["momentum"](), key=getkey()
    )
    assert optimizer.readout is not None and not optimizer.readout.weight.any()
    solution = _train(optimizer, num_steps=3, super_epochs=4, strategy=strategies.OncePerSuperEpoch())
    shares = solution.metrics["zero_share"]
    assert shares[0] > 0.5 and shares[1] > 0 and shares[-1] == 0 and solution.without_gradient == ()


def test_groups_that_a_family_does_not_have_are_not_named(getkey):
    assert _train(helpers.LEARNED["per_layer"](getkey())).without_gradient == ()


def test_outer_loss_is_that_of_the_outer_data():
    """All of it, or minibatches whose mean over an epoch it is; inner losses are as without it."""
    key, plain = jr.key(3), FromModel(Linear, squared_error, (X, Y), 4)
    held = (X[:12] + 1.0, Y[:12])
    families = [
        FromModel(Linear, squared_error, (X, Y), 4, outer_data=held, outer_batch_size=n) for n in (None, 3)
    ]
    params = plain.sample(key).init(key)
    expected = squared_error(plain.sample(key).model(params), held)
    for family, count in zip(families, (1, 4), strict=True):
        objective = family.sample(key)
        outer = [float(objective.outer_loss(params, t, key)) for t in range(count)]
        np.testing.assert_allclose(np.mean(outer), expected, rtol=1e-5)
        assert objective.loss(params, 1, key) == plain.sample(key).loss(params, 1, key)
        assert objective.has_outer_loss() and not plain.sample(key).has_outer_loss()
        assert len({*outer}) == count


def test_outer_data_train_and_are_held_once():
    data = (np.asarray(X), np.asarray(Y))
    family = FromModel(Linear, squared_error, data, 4, outer_data=data)
    objectives = l2o_eqx.objectives.sample_objectives(family, jr.split(jr.key(0), 3))
    assert objectives.shared.outer_data[0] is objectives.shared.data[0] is family.data[0]
    solution = l2o_eqx.meta_train(
        helpers.LEARNED["lstm_identity"](jr.key(0)),
        family,
        strategies.EveryWindow(2),
        num_steps=2,
        super_epochs=1,
        num_objectives=1,
        weighting=Constant(),
        key=jr.key(0),
    )
    run = l2o_eqx.objectives.sample_objectives(family, jr.split(jr.split(jr.fold_in(jr.key(0), 0), 3)[0], 1))
    assert run.has_outer_loss and np.isfinite(solution.metrics["meta_loss"][0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"outer_batch_size": 3}, "but there is none"),
        ({"outer_data": (X, Y[:5])}, "outer_data=.*the sizes \\[5, 24\\]"),
        ({"outer_data": (X, Y), "outer_batch_size": 25}, "outer_batch_size=25"),
    ],
)
def test_errors_about_outer_data(settings, message):
    with pytest.raises(ValueError, match=message):
        FromModel(Linear, squared_error, (X, Y), 4, **settings)


def test_outer_losses_of_digits():
    digits = l2o_eqx.data.load_mnist("embedded")
    key = jr.key(0)
    settings: dict[str, Any] = {"num_examples": 4000, "digits": digits}
    for outer, images in (("training", slice(4000)), ("held-out", slice(4000, None))):
        family = l2o_eqx.objectives.MNIST((4,), **{"outer": outer, **settings})
        assert family.outer_data is not None
        np.testing.assert_array_equal(family.outer_data[0], digits.train_images[images])
    objective = l2o_eqx.objectives.MNIST((4,), outer="held-out", outer_batch_size=8, **settings).sample(key)
    assert objective.outer_loss(objective.init(key), 0, key) > 0
    with pytest.raises(ValueError, match="none are left"):
        l2o_eqx.objectives.MNIST((4,), outer="held-out", digits=digits)
