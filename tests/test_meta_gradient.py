"""The two-phase meta-gradient against plain automatic differentiation of its definition."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    FAMILIES,
    FURTHER_FAMILIES,
    LEARNED,
    VARIANTS,
    WEIGHTINGS,
    assert_trees_close,
    estimator_of,
    sparing,
    to_float64,
)
from jax import lax

import l2o_eqx
from l2o_eqx._engine._inner import init_params, run_steps
from l2o_eqx._engine._layout import batched_init, layout_of
from l2o_eqx._engine._replay import replay
from l2o_eqx.estimators import Window
from l2o_eqx.estimators._backprop import kept_by_default
from l2o_eqx.estimators._window import first_health
from l2o_eqx.objectives import MNIST, Quadratic, sample_objectives
from l2o_eqx.optimizers import CoordinatewiseLSTM, FromOptax, Seen
from l2o_eqx.weightings import Constant, Exponential, Linear

BOTH: tuple[Any, ...] = ("keep", "recompute")


def plain(optimizer, objective, params, state, *, window, start, num_steps, weighting, key, order):
    """The definition: automatic differentiation of a loop, without any part of the engine."""
    constant = lax.stop_gradient if order == "first" else lambda x: x

    def meta_loss(optimizer):
        def one_step(carry, t):
            theta, h = carry
            weighed, grads = objective.outer_loss(theta, t, key), jax.grad(objective.loss)(theta, t, key)
            updates, h = optimizer.update(constant(grads), h, constant(theta))
            return (jax.tree.map(jnp.add, theta, updates), h), weighed

        _, losses = lax.scan(one_step, (params, state), start + jnp.arange(window))
        return weighting(losses, start, num_steps)

    return eqx.filter_jit(eqx.filter_value_and_grad(meta_loss))(optimizer)


def later_start(optimizer, objective, key, num_steps):
    """A params and state as they are in the middle of a super epoch."""
    params = objective.init(key)
    if num_steps == 0:
        return params, optimizer.init(params)
    run = l2o_eqx.unroll(optimizer, objective, params, optimizer.init(params), num_steps, key=key)
    return run.params, run.state


def check(
    optimizer, objective, params, state, *, order: Any = "first", activations=BOTH, rtol, atol, **kwargs
):
    expected_loss, expected = plain(optimizer, objective, params, state, order=order, **kwargs)
    for kind in activations:
        result = l2o_eqx.meta_gradient(
            optimizer, objective, params, state, estimator=estimator_of(order, kind), **kwargs
        )
        assert_trees_close(result.grads, expected, rtol=rtol, atol=atol)
        np.testing.assert_allclose(result.meta_loss, expected_loss, rtol=rtol)
        assert any(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(result.grads))


# Programs of the AdamMLP take long to compile; what it does to vectors is in that with matrices, too.
NAMES = [name for name in LEARNED if name != "adam_mlp"]
# One of each kind of layout, and of each kind of objective; more are checked in float64 below.
SINGLE = [
    *(
        "lstm_log_and_sign",
        "lstm_curvature_output",
        "per_layer",
        "clipped_per_layer",
        "adam_mlp_matrices",
        "unit_rms",
    ),
    *("learned_momentum", "subspace_rnn", "user_scaled_gradient", "user_root_mean_square"),
]
PAIRS = [(name, "quadratic") for name in SINGLE]
PAIRS += [("lstm_signed_log", family) for family in ("mnist_mixed", "mnist_conv", "scaled_from_model")]
FURTHER_PAIRS = {
    (name, "quadratic")
    for name in SINGLE
    if name not in ("lstm_log_and_sign", "adam_mlp_matrices", "unit_rms")
} | {("lstm_signed_log", "mnist_mixed"), ("lstm_signed_log", "scaled_from_model")}


@pytest.mark.parametrize("pair", sparing(PAIRS, but=FURTHER_PAIRS), ids="-".join)
def test_first_order_is_plain_autodiff(pair, getkey):
    name, family = pair
    optimizer, objective = LEARNED[name](getkey()), FAMILIES[family]().sample(getkey())
    params = objective.init(getkey())
    state = optimizer.init(params)
    common = {"window": 4, "start": 2, "num_steps": 10, "weighting": Linear(), "key": getkey()}
    check(optimizer, objective, params, state, activations=("recompute",), rtol=2e-4, atol=2e-5, **common)


@pytest.mark.parametrize(
    "name", sparing(["lstm_identity", "per_layer", "learned_momentum"], but=["lstm_identity"])
)
def test_window_ends_where_unroll_ends(name, getkey):
    optimizer, objective = LEARNED[name](getkey()), FAMILIES["from_model"]().sample(getkey())
    key = getkey()
    params, state = later_start(optimizer, objective, key, 2)
    result = l2o_eqx.meta_gradient(
        optimizer, objective, params, state, window=4, start=2, weighting=Constant(), key=key
    )
    run = l2o_eqx.unroll(optimizer, objective, params, state, 4, start=2, key=key)
    assert_trees_close((result.losses, result.params, result.state), (run.losses, run.params, run.state))


def test_second_order_differs_from_first(getkey):
    optimizer, objective = LEARNED["user_scaled_gradient"](getkey()), Quadratic(3).sample(getkey())
    params = objective.init(getkey())
    kwargs = {"window": 4, "weighting": Constant(), "key": getkey()}
    first, second = (
        l2o_eqx.meta_gradient(
            optimizer, objective, params, optimizer.init(params), estimator=estimator_of(o), **kwargs
        )
        for o in ("first", "second")
    )
    leaves = zip(jax.tree.leaves(first.grads), jax.tree.leaves(second.grads), strict=True)
    assert any(not np.allclose(a, b, rtol=1e-2, atol=0) for a, b in leaves)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("start", sparing([0, 3], but=[0]))
def test_weightings_and_window_positions(weighting, start, getkey):
    optimizer, objective = LEARNED["user_scaled_gradient"](getkey()), Quadratic(3).sample(getkey())
    key = getkey()
    params, state = later_start(optimizer, objective, key, start)
    kwargs = {"window": 5, "num_steps": start + 5, "weighting": WEIGHTINGS[weighting](), "key": key}
    check(optimizer, objective, params, state, start=start, rtol=1e-4, atol=1e-5, **kwargs)


# One of each layout, whose passes are checked both with and without kept activations: no optimizer knows
# which of the two it is.
KEPT_AND_NOT = ("lstm_adam_like", "per_layer", "learned_momentum", "user_looking_lstm")


# How the engine goes back through steps depends on the layout and the order. Those whose programs take
# longest to compile have layouts of which there are others.
ORDERS = [(name, order) for name in NAMES for order in ("first", "second")]
FURTHER_ORDERS = {
    (name, order)
    for name, order in ORDERS
    if name in VARIANTS | {"hierarchical_rnn", "adam_mlp_matrices", "celo2", "subspace_rnn"}
    or (order == "second" and name not in ("lstm_adam_like", "user_scaled_gradient"))
}


@pytest.mark.parametrize("name_and_order", sparing(ORDERS, but=FURTHER_ORDERS), ids="-".join)
def test_float64_agrees_to_ten_digits(name_and_order, getkey):
    """First order has two ways; second order is one, in which steps are computed again or not."""
    name, order = name_and_order
    activations = BOTH if name in KEPT_AND_NOT else ("recompute",)
    with jax.enable_x64(True):
        optimizer = to_float64(LEARNED[name](getkey()))
        objective, key = to_float64(FAMILIES["from_model"]().sample(getkey())), getkey()
        params = to_float64(objective.init(key))
        state = to_float64(optimizer.init(params))
        common: dict[str, Any] = {"window": 5, "start": 0, "num_steps": 5, "weighting": Linear(), "key": key}
        common |= {"order": order, "activations": activations}
        check(optimizer, objective, params, state, rtol=1e-10, atol=1e-10, **common)


def recorded_window(optimizer, family, key, window, *, num_objectives=1, block_size=None):
    """The arguments of `replay`."""
    okey, ikey, lkey = jr.split(key, 3)
    objectives = sample_objectives(family, jr.split(okey, num_objectives))
    params = init_params(objectives, jr.split(ikey, num_objectives))
    state = batched_init(optimizer, params, block_size=block_size)
    keys = jr.split(lkey, num_objectives)
    *end, record = run_steps(optimizer, objectives, params, state, window, start=0, keys=keys)
    return (params, state, Seen(record.grads), record.grads, 0.5 + record.losses), end


def _joined(state):
    return state.layout.to_one(state.arrays)


BLOCKS = [
    (name, *numbers)
    for name in ("lstm_adam_like", "per_layer", "clipped_lstm", "user_looking_lstm", "user_root_mean_square")
    for numbers in ((1, 1), (1, 7), (1, 42), (1, 43), (3, 20), (3, 64))
]
FURTHER_BLOCKS = {case for case in BLOCKS if case[1:] != (3, 20) and case != ("lstm_adam_like", 1, 7)}


@pytest.mark.parametrize(
    "case", sparing(BLOCKS, but=FURTHER_BLOCKS), ids=lambda case: "-".join(map(str, case))
)
def test_blocks_change_nothing(case, getkey):
    """43 coordinates each: blocks of one, that leave a rest, all but one, exactly one, across objectives."""
    name, num_objectives, block_size = case
    optimizer, family, key = LEARNED[name](getkey()), FAMILIES["from_model"](), getkey()

    @eqx.filter_jit
    def run(optimizer, block_size):
        record, (params, state) = recorded_window(
            optimizer, family, key, 3, num_objectives=num_objectives, block_size=block_size
        )
        return replay(optimizer, *record), params, _joined(state)

    whole, blocks = run(optimizer, 1000), run(optimizer, block_size)
    assert_trees_close(blocks, whole, rtol=1e-4, atol=1e-5)


@eqx.filter_jit
def meta_gradient_of_batch(optimizer, objectives, params, keys, activations, block_size=None, **settings):
    """Of three steps from step 1 on."""
    state = batched_init(optimizer, params, block_size=block_size)
    window = Window(objectives, params, state, 1, 4, keys, first_health(params), 3)
    estimator = estimator_of(activations=activations, **settings)
    return estimator.estimate(optimizer, window, Linear(), None, key=jr.key(0))[0]


@pytest.mark.parametrize(
    "name", sparing(["lstm_adam_like", "per_layer", "user_looking_lstm"], but=["lstm_adam_like"])
)
def test_kept_activations_of_several_blocks(name, getkey):
    """The last block is filled up; the state comes back cut as it was."""
    optimizer, family, keys = LEARNED[name](getkey()), FAMILIES["from_model"](), jr.split(getkey(), 2)
    objectives = sample_objectives(family, keys)
    params = init_params(objectives, keys)

    for order in ("first", "second"):
        kept, recomputed = (
            meta_gradient_of_batch(
                optimizer, objectives, params, keys, activations, block_size=20, order=order
            )
            for activations in BOTH
        )
        assert_trees_close(kept, recomputed, rtol=1e-4, atol=1e-5)


def test_what_is_kept_by_default(getkey):
    if jax.default_backend() == "cpu":
        params = jnp.ones((1, 3))
        kept = functools.partial(kept_by_default, layout_of(LEARNED["per_layer"](getkey()), params))
        assert kept(320, 256) and not kept(16, 257)
        # One that sees tensors has no blocks: even for few coordinates recomputing saves memory.
        kept = functools.partial(kept_by_default, layout_of(LEARNED["learned_momentum"](getkey()), params))
        assert kept(16, 1024) and not kept(320, 256)


def test_memory_follows_the_block(getkey):
    """Temporaries grow with the block, not with the number of coordinates."""
    optimizer, family = CoordinatewiseLSTM(key=getkey()), Quadratic(512)

    def temporaries(block_size):
        arguments, _ = recorded_window(optimizer, family, getkey(), 16, block_size=block_size)
        run = jax.jit(lambda *a: replay(optimizer, *a))
        analysis = run.lower(*arguments).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporaries(64) < temporaries(512) / 3


# One of each way to be laid out, and those that see a tensor, a layer or the whole.
LAID_OUT = ["lstm_adam_like", "per_layer", "learned_momentum", "adam_mlp_matrices"]
LAID_OUT += ["learned_momentum_per_layer", "user_looking_lstm", "user_scaled_gradient"]


@pytest.mark.parametrize(
    "name",
    sparing(
        LAID_OUT,
        but=["learned_momentum", "adam_mlp_matrices", "learned_momentum_per_layer", "lstm_adam_like"],
    ),
)
def test_batch_is_the_mean_over_objectives(name, getkey):
    """Objectives folded into the coordinates, split by layer, or vmapped: always the mean."""
    optimizer, family = LEARNED[name](getkey()), FAMILIES["from_model"]()
    keys = jr.split(getkey(), 3)
    objectives = sample_objectives(family, keys)
    params = jax.vmap(lambda k: family.sample(k).init(k))(keys)
    ones = []
    for i, key in enumerate(keys):
        one = jax.tree.map(lambda x, i=i: x[i], params)
        ones.append(
            l2o_eqx.meta_gradient(
                optimizer,
                family.sample(key),
                one,
                optimizer.init(one),
                window=3,
                start=1,
                num_steps=4,
                weighting=Linear(),
                key=key,
            )
        )
    mean = jax.tree.map(lambda *g: sum(g) / 3, *(r.grads for r in ones))
    for activations in BOTH:
        batch = meta_gradient_of_batch(optimizer, objectives, params, keys, activations)
        assert_trees_close(batch.grads, mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(batch.losses, jnp.stack([r.losses for r in ones], axis=1), rtol=1e-4)


@pytest.mark.parametrize("family", sparing(FAMILIES, but=FURTHER_FAMILIES))
def test_float64_on_every_objective_and_later_windows(family, getkey):
    with jax.enable_x64(True):
        optimizer = to_float64(LEARNED["lstm_signed_log"](getkey()))
        objective, key = to_float64(FAMILIES[family]().sample(getkey())), getkey()
        params = to_float64(objective.init(key))
        common = {"window": 3, "start": 2, "num_steps": 9, "weighting": Exponential(), "key": key}
        check(optimizer, objective, params, optimizer.init(params), rtol=1e-10, atol=1e-10, **common)


@pytest.mark.parametrize(
    "name",
    sparing(
        [name for name in NAMES if "user" not in name],
        but=VARIANTS - {"lstm_log_and_sign", "lstm_momentum_output", "lstm_adam_output"},
    ),
)
def test_zero_gradients_give_finite_meta_gradients(name, getkey):
    """As the weights of pixels that are always black have."""
    check_zero_gradients(name, "second", "keep", getkey)


@pytest.mark.parametrize("name", ["lstm_adam_like", "lstm_log_and_sign", "learned_momentum"])
def test_zero_gradients_give_finite_meta_gradients_of_first_order(name, getkey):
    check_zero_gradients(name, "first", "recompute", getkey)


def check_zero_gradients(name, order, activations, getkey):

    class HalfFlat(l2o_eqx.objectives.AbstractObjective):
        def init(self, key):
            return jnp.array([1.0, 0.0])

        def loss(self, params, step, key):
            return params[0] ** 2

    optimizer, params = LEARNED[name](getkey()), jnp.array([1.0, 0.0])
    result = l2o_eqx.meta_gradient(
        optimizer,
        HalfFlat(),
        params,
        optimizer.init(params),
        window=3,
        weighting=Constant(),
        key=getkey(),
        estimator=estimator_of(order, activations),
    )
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(result.grads))


@pytest.mark.parametrize("stacked", [False, True])
def test_record_from_outside_jax(stacked, getkey):
    """NumPy hands over gradients and losses; the result is that of the objective inside JAX."""
    optimizer, objective = CoordinatewiseLSTM((3,), key=getkey()), Quadratic(4).sample(getkey())
    key = getkey()
    params = objective.init(key)
    matrix, target = np.asarray(objective.matrix), np.asarray(objective.target)

    theta, h, grads, losses = np.asarray(params), optimizer.init(params), [], []
    for _ in range(6):
        residual = matrix @ theta - target
        losses.append(np.sum(residual**2))
        grads.append(2 * matrix.T @ residual)
        updates, h = optimizer.update(jnp.asarray(grads[-1]), h, jnp.asarray(theta))
        theta = theta + np.asarray(updates)
    record = (np.stack(grads), np.stack(losses)) if stacked else (grads, losses)
    outside = l2o_eqx.recorded_meta_gradient(optimizer, *record, np.asarray(params), weighting=Linear())
    inside = l2o_eqx.meta_gradient(
        optimizer, objective, params, optimizer.init(params), window=6, weighting=Linear(), key=key
    )
    assert_trees_close(outside, inside.grads, rtol=1e-4, atol=1e-5)


def test_record_of_something_else_is_refused(getkey):
    optimizer, params = CoordinatewiseLSTM((2,), key=getkey()), {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="a list of trees like the params"):
        l2o_eqx.recorded_meta_gradient(optimizer, [{"b": jnp.ones(2)}], [1.0], params, weighting=Constant())


def test_record_with_missing_steps_is_refused(getkey):
    optimizer, params = CoordinatewiseLSTM((2,), key=getkey()), jnp.ones(2)
    with pytest.raises(Exception, match=r"window=4|same number of steps"):
        l2o_eqx.recorded_meta_gradient(
            optimizer,
            jnp.ones((4, 2)),
            jnp.ones(3),
            params,
            optimizer.init(params),
            weighting=Constant(),
        )


def test_analytic_one_coordinate():
    """u_τ = −φ·∇_τ on f(θ) = ½θ², two steps: L = f(θ_1) + f(θ_2), θ_2 = θ_1 − φθ_1.

    First order: dL/dφ = ∇f(θ_2)·∂u_1/∂φ = −(θ_1 − φθ_1)·θ_1; here 3·0.9·(−3) = −8.1.
    """

    class Half(l2o_eqx.objectives.AbstractObjective):
        def init(self, key):
            return jnp.asarray(3.0)

        def loss(self, params, step, key):
            return params**2 / 2

    class Step(l2o_eqx.optimizers.AbstractOptimizer):
        rate: jax.Array

        def init(self, params):
            return None

        def update(self, grads, state, params, *, value=None, key=None):
            return -self.rate * grads, state

    result = l2o_eqx.meta_gradient(
        Step(jnp.asarray(0.1)),
        Half(),
        jnp.asarray(3.0),
        None,
        window=2,
        weighting=Constant(),
        key=jr.key(0),
    )
    np.testing.assert_allclose(result.grads.rate, -8.1, rtol=1e-6)
    np.testing.assert_allclose(result.losses, [4.5, 3.645], rtol=1e-6)


@pytest.mark.parametrize("shapes", sparing([[()], [(1,)], [(3, 2), (), (0, 4)]], but=[[()], [(1,)]]))
def test_odd_shapes(shapes, getkey):
    class Bowl(l2o_eqx.objectives.AbstractObjective):
        def init(self, key):
            return [jnp.full(shape, 0.5) for shape in shapes]

        def loss(self, params, step, key):
            return sum((jnp.sum((x - 2.0) ** 2) for x in params), jnp.zeros(()))

    objective, key = Bowl(), getkey()
    params = objective.init(key)
    for name in ("lstm_adam_like", "learned_momentum"):
        optimizer = LEARNED[name](getkey())
        common = {"window": 3, "start": 0, "num_steps": 3, "weighting": Constant(), "key": key}
        state = optimizer.init(params)
        check(optimizer, objective, params, state, rtol=1e-4, atol=1e-5, **common)


@pytest.mark.parametrize("activations", BOTH)
def test_objective_is_differentiated_once_per_step(activations, getkey):
    """The loss is traced for its value and gradient, and where these are differentiated as what was kept.

    What runs is counted below.
    """
    traces = []

    class Counting(l2o_eqx.objectives.AbstractObjective):
        def init(self, key):
            return jnp.ones(2)

        def loss(self, params, step, key):
            traces.append(step)
            return jnp.sum(params**2)

    optimizer, objective = CoordinatewiseLSTM((2,), key=getkey()), Counting()
    params = jnp.ones(2)
    for start in (0, 4):
        l2o_eqx.meta_gradient(
            optimizer,
            objective,
            params,
            optimizer.init(params),
            window=4,
            start=start,
            weighting=Constant(),
            key=getkey(),
            estimator=estimator_of(activations=activations),
        )
    assert len(traces) == {"keep": 2, "recompute": 1}[activations]


@pytest.mark.parametrize("activations", BOTH)
def test_objectives_need_no_second_derivative(activations, getkey):
    """A gradient that comes from NumPy can be called, but not differentiated; it is, once per step."""
    calls = []

    def doubled_outside(x):
        calls.append(x)
        return 2 * x

    class Outside(l2o_eqx.objectives.AbstractObjective):
        def init(self, key):
            return jnp.ones(3)

        def loss(self, params, step, key):
            return squares(params)

    @jax.custom_vjp
    def squares(params):
        return jnp.sum(params**2)

    def backward(params, cotangent):
        doubled = jax.ShapeDtypeStruct(params.shape, params.dtype)
        grads = jax.pure_callback(doubled_outside, doubled, params, vmap_method="expand_dims")
        return (cotangent * grads,)

    squares.defvjp(lambda params: (jnp.sum(params**2), params), backward)

    class Inside(Outside):
        def loss(self, params, step, key):
            return jnp.sum(params**2)

    optimizer, params = CoordinatewiseLSTM((2,), key=getkey()), jnp.ones(3)
    outside, inside = (
        l2o_eqx.meta_gradient(
            optimizer,
            objective,
            params,
            optimizer.init(params),
            window=4,
            weighting=Constant(),
            key=jr.key(0),
            estimator=estimator_of(activations=activations),
        )
        for objective in (Outside(), Inside())
    )
    assert_trees_close(outside.grads, inside.grads)
    assert len(calls) == 4


def test_mnist_batches_follow_step_and_key(getkey):
    objective = MNIST((2,), batch_size=4, num_examples=50, data="embedded").sample(getkey())
    params, key = objective.init(getkey()), getkey()
    losses = [float(objective.loss(params, t, key)) for t in (0, 0, 1, 12)]
    assert losses[0] == losses[1] and len(set(losses)) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"window": 0}, "window=0"),
    ],
)
def test_errors_name_the_argument(change, message, getkey):
    optimizer, objective = CoordinatewiseLSTM((2,), key=getkey()), Quadratic(2).sample(getkey())
    params = objective.init(getkey())
    kwargs = {"window": 2, "weighting": Constant(), "key": getkey(), **change}
    with pytest.raises(Exception, match=message):
        l2o_eqx.meta_gradient(optimizer, objective, params, optimizer.init(params), **kwargs)


def test_from_optax_has_nothing_to_train():
    import optax

    assert jax.tree.leaves(eqx.filter(FromOptax(optax.sgd(0.1)), eqx.is_inexact_array)) == []
