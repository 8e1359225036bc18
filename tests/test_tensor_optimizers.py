"""`LearnedMomentum` and `SubspaceRNN`: symmetries, and what must stay finite."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import assert_trees_close, sparing, to_float64

import l2o_eqx
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import LearnedMomentum, SubspaceRNN
from l2o_eqx.optimizers._geometry import direction, groups_of, inner_products

MAKERS = {"learned_momentum": LearnedMomentum, "subspace_rnn": SubspaceRNN}
parametrize = pytest.mark.parametrize("name", MAKERS)


def make(name, key, **settings):
    """Small, and with a read-out that lets the network be seen."""
    optimizer = MAKERS[name](5, key=key, **settings)
    return eqx.tree_at(lambda o: o.readout, optimizer, 0.1 * jr.normal(key, optimizer.readout.shape))


def quadratic(key, dim=6):
    """Gradient of ½θᵀAθ − bᵀθ."""
    akey, bkey = jr.split(key)
    root, b = jr.normal(akey, (dim, dim)), jr.normal(bkey, (dim,))
    matrix = root @ root.T / dim + 0.1 * jnp.eye(dim)
    return lambda theta: matrix.astype(theta.dtype) @ theta - b.astype(theta.dtype)


def path(optimizer, gradient, start, num_steps=8):
    """The points that an optimizer goes through."""

    @jax.jit
    def run(start):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(gradient(params), state, params)
            params = jax.tree.map(jnp.add, params, updates)
            return (params, state), params

        return jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)[1]

    return run(start)


def rotation(key, dim=6):
    return jnp.linalg.qr(jr.normal(key, (dim, dim)))[0]


@parametrize
@pytest.mark.parametrize("x64, rtol", [(True, 1e-10), (False, 1e-3)])
def test_updates_turn_with_the_coordinates(name, x64, rtol, getkey):
    """On f(Qθ) from Qᵀθ_1 it goes where it goes on f from θ_1, turned."""
    with jax.enable_x64(x64):
        optimizer, gradient = make(name, getkey()), quadratic(getkey())
        start, turn = jr.normal(getkey(), (6,), jnp.float32), rotation(getkey())
        if x64:
            optimizer, start = to_float64((optimizer, start))
            turn = jnp.linalg.qr(turn.astype(jnp.float64))[0]
        expected = path(optimizer, gradient, start)
        turned = path(optimizer, lambda x: turn.T @ gradient(turn @ x), turn.T @ start)
        np.testing.assert_allclose(turned @ turn.T, expected, rtol=rtol, atol=rtol)


@parametrize
def test_factor_of_the_objective_changes_nothing(name, getkey):
    optimizer, gradient, start = make(name, getkey()), quadratic(getkey()), jr.normal(getkey(), (6,))
    run = jax.jit(lambda factor: path(optimizer, lambda x: factor * gradient(x), start))
    expected = run(1.0)
    for factor, tolerance in ((1e-6, 1e-3), (1e6, 1e-3), (2.0**-20, 1e-4), (2.0**20, 1e-4)):
        np.testing.assert_allclose(run(factor), expected, rtol=tolerance, atol=tolerance)


@parametrize
@pytest.mark.parametrize("first_step", ["relative", "absolute"])
def test_updates_scale_with_the_params(name, first_step, getkey):
    """On f(cθ) from θ_1/c: exactly so with relative first moves; otherwise if these are given the factor."""
    gradient, start = quadratic(getkey()), jr.normal(getkey(), (6,))
    optimizer = make(name, getkey(), first_step=first_step)

    @jax.jit
    def run(factor):
        moved = optimizer
        if first_step == "absolute":
            moved = eqx.tree_at(lambda o: o.log_first_move, moved, replace_fn=lambda x: x - jnp.log(factor))
        return factor * path(moved, lambda x: factor * gradient(factor * x), start / factor)

    expected = run(1.0)
    for factor in (1e-3, 1e3, 2.0**10):
        np.testing.assert_allclose(run(factor), expected, rtol=1e-3, atol=1e-3)


@parametrize
def test_a_wrong_first_move_costs_little(name, getkey):
    """The curvature is known after it; only one that is far too long takes many steps to come back from."""
    gradient, start = quadratic(getkey()), jr.normal(getkey(), (6,))
    optimizer = MAKERS[name](key=getkey())

    @jax.jit
    def last(first_move):
        return path(eqx.tree_at(lambda o: o.log_first_move, optimizer, first_move), gradient, start, 150)[-1]

    for first_move in (1e-6, 1e-3, 1.0):
        end = last(jnp.log(first_move))
        assert jnp.linalg.norm(gradient(end)) < 1e-2 * jnp.linalg.norm(gradient(start))


@parametrize
def test_no_network_drives_an_objective_to_infinity(name, getkey):
    """Far too long steps are cut as soon as the gradient has grown."""
    gradient, start = quadratic(getkey()), jr.normal(getkey(), (6,))
    optimizer = MAKERS[name](momentum=0.5, key=getkey())
    factor = {"learned_momentum": 0, "subspace_rnn": 2}[name]
    optimizer = eqx.tree_at(lambda o: o.offsets, optimizer, optimizer.offsets.at[factor].set(3.0))
    points = path(optimizer, gradient, start, 300)
    assert np.all(np.linalg.norm(points, axis=-1) < 1e3)


ZERO, ONE = jnp.zeros((3, 2)), jnp.arange(1.0, 7.0).reshape(3, 2)
SEQUENCES = {
    "zero": [ZERO] * 6,
    "zero_first": [ZERO, ZERO, ONE, -ONE, 2 * ONE, ONE],
    "zero_later": [ONE, -ONE, 2 * ONE, ZERO, ZERO, ZERO],
    "zero_once": [ONE, ZERO, ONE, ONE, -ONE, ONE],
    "equal": [ONE] * 6,
    "equal_later": [ONE, 2 * ONE, -ONE, -ONE, -ONE, -ONE],
    "opposite": [ONE, -ONE, ONE, -ONE, ONE, -ONE],
    "tiny": [1e-30 * x for x in (ONE, 2 * ONE, -ONE, 3 * ONE, ONE, ONE)],
    "huge": [1e30 * x for x in (ONE, 2 * ONE, -ONE, 3 * ONE, ONE, ONE)],
    "from_tiny_to_huge": [1e-30 * ONE, 1e-30 * ONE, -1e30 * ONE, 1e30 * ONE, 1e-30 * ONE, ONE],
    "subnormal": [1e-41 * ONE, 2e-41 * ONE, ZERO, ONE, ONE, 1e-41 * ONE],
    "one_coordinate": [ZERO.at[0, 0].set(x) for x in (1.0, 2.0, -1.0, 1.0, 1.0, 3.0)],
}


@parametrize
@pytest.mark.parametrize("per", ["tensor", "tree"])
def test_updates_and_derivatives_are_finite(name, per, getkey):
    """Also those by the gradients, which a second-order meta-gradient goes through."""
    arrays, static = eqx.partition(make(name, getkey(), per=per), eqx.is_array)

    def total(arrays, grads):
        optimizer, trees = eqx.combine(arrays, static), {"a": grads, "b": 0 * grads}
        state = optimizer.init(jax.tree.map(lambda x: x[0], trees))

        def step(state, g):
            updates, state = optimizer.update(g, state, None)
            return state, updates

        _, updates = jax.lax.scan(step, state, trees)
        return jnp.mean(updates["a"]), updates

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    for sequence, grads in SEQUENCES.items():
        (_, updates), derivatives = run(arrays, jnp.stack(grads))
        finite = [np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, derivatives))]
        assert all(finite), (sequence, finite)
        assert np.all(updates["b"] == 0)
        if sequence == "zero":
            assert np.all(updates["a"] == 0)


@parametrize
def test_second_step_knows_the_curvature(name, getkey):
    """On ½λθ² the untrained network moves by −g/λ, plus momentum."""
    momentum = 0.8
    optimizer = MAKERS[name](momentum=momentum, key=getkey())
    optimizer = eqx.tree_at(lambda o: o.readout, optimizer, replace_fn=jnp.zeros_like)
    curvature, theta = 7.0, jnp.array([1.0, -2.0])
    first, state = optimizer.update(curvature * theta, optimizer.init(theta), theta)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(first**2)), 1e-3, rtol=1e-5)
    second, _ = optimizer.update(curvature * (theta + first), state, theta)
    np.testing.assert_allclose(second, -(theta + first) + momentum * first, rtol=5e-3)


@parametrize
def test_a_gradient_that_never_changes_lets_it_move_faster(name, getkey):
    """No curvature, no limit but its own: twice as far each time, and not to infinity."""
    optimizer, grads = make(name, getkey()), jnp.ones(4)
    moves = jnp.diff(path(optimizer, lambda x: jnp.ones_like(x), grads, 60)[:, 0])
    assert np.all(moves < 0) and abs(moves[5]) > 16 * abs(moves[0])
    assert np.all(np.abs(moves) < 1e8)


@parametrize
def test_bfloat16(name, getkey):
    """The state is float32, and so is what is computed; updates are what float32 gives, rounded."""
    optimizer = make(name, getkey())
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    state, wide_state = optimizer.init(params), optimizer.init(wide)
    for scale in (1.0, -0.5, 0.25):
        grads = jax.tree.map(lambda x, c=scale: (c * x).astype(x.dtype), params)
        updates, next_state = optimizer.update(grads, state, params)
        assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.bfloat16] * 2
        assert_trees_close(jax.tree.map(jnp.zeros_like, next_state), jax.tree.map(jnp.zeros_like, state))
        assert jnp.bfloat16 not in {x.dtype for x in jax.tree.leaves(next_state)}
        widened = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
        expected, wide_state = optimizer.update(widened, wide_state, wide)
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected)
        assert_trees_close(updates, rounded, rtol=0, atol=0)
        state = next_state


@parametrize
@pytest.mark.parametrize("per", ["tensor", "layer", "tree"])
def test_scalars_and_empty_leaves(name, per, getkey):
    optimizer = make(name, getkey(), per=per)
    for params in ({"s": jnp.array(2.0), "e": jnp.zeros((0, 3)), "m": jnp.ones((2, 2))}, jnp.zeros(0), {}):
        updates, state = optimizer.update(params, optimizer.init(params), params)
        for _ in range(2):
            updates, state = optimizer.update(params, state, params)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, state)))
        assert_trees_close(jax.tree.map(jnp.zeros_like, updates), jax.tree.map(jnp.zeros_like, params))


@parametrize
def test_what_a_network_runs_for(name, getkey):
    """For a group, geometry is that of its leaves joined; and groups do not see each other's.

    But for the mean hidden state that tensors share in `SubspaceRNN`.
    """
    key = getkey()
    split = [{"w": jr.normal(getkey(), (2, 2)), "b": jr.normal(getkey(), (2,))} for _ in range(4)]
    joined = [jnp.concatenate([x["b"], x["w"].ravel()]) for x in split]

    def run(grads, per) -> Any:
        optimizer = make(name, key, per=per)
        updates, state = None, optimizer.init(grads[0])
        for g in grads:
            updates, state = optimizer.update(g, state, None)
        return updates

    for per, grads in (("tree", split), ("layer", [{"layer": x} for x in split])):
        together = jax.tree.leaves(run(grads, per))
        np.testing.assert_allclose(
            jnp.concatenate([x.ravel() for x in together]), run(joined, "tensor"), rtol=1e-4, atol=1e-6
        )
    apart = run(split, "tensor")
    if name == "learned_momentum":
        np.testing.assert_allclose(apart["w"], run([x["w"] for x in split], "tensor"), rtol=1e-4)
    assert not np.allclose(apart["w"], run(split, "tree")["w"], rtol=1e-3)


def test_groups_of_a_tree():
    tree = {"l": [{"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, {"w": jnp.ones((1, 2))}]}
    assert groups_of(tree, "tensor").members == ((0,), (1,), (2,))
    assert groups_of(tree, "layer").members == ((0, 1), (2,))
    groups = groups_of(tree, "tree")
    assert groups.members == ((0, 1, 2),) and groups.sizes == (10,)
    d = direction(groups, jax.tree.map(lambda x: 1e30 * x, tree))
    np.testing.assert_allclose(inner_products(groups, [d, d], ((0, 1),))[0, 1], [10.0], rtol=1e-6)


@pytest.mark.parametrize("name", sparing(MAKERS, but=["subspace_rnn"]))
def test_training_helps(name, getkey):
    """A few seconds on tiny quadratics lower the final loss by far, with the true meta-gradient."""
    optimizer, family, key = MAKERS[name](8, key=getkey()), Quadratic(4), getkey()

    class LogMean(l2o_eqx.weightings.AbstractWeighting):
        def __call__(self, losses, start, num_steps):
            return jnp.mean(jnp.log(losses + 1e-10))

    solution = l2o_eqx.meta_train(
        optimizer,
        family,
        l2o_eqx.strategies.EveryWindow(10, l2o_eqx.estimators.Auto(()), include_final_loss=True),
        weighting=LogMean(),
        meta_optimizer=l2o_eqx.default_meta_optimizer(3e-3, normalization="clip"),
        num_steps=40,
        super_epochs=30,
        num_objectives=16,
        key=getkey(),
    )
    before, after = (
        np.median(l2o_eqx.evaluate(o, family, num_steps=40, num_objectives=256, key=key).final_losses)
        for o in (optimizer, solution.optimizer)
    )
    assert after < 0.5 * before


@parametrize
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"per": "leaf"}, "'leaf'"),
        ({"first_step": "tiny"}, "'tiny'"),
        ({"first_move": 0.0}, r"first_move=0.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
    ],
)
def test_errors_name_the_argument(name, settings, message, getkey):
    # Under the tests' type checker an unknown name is a `TypeError` before it gets to be ours.
    with pytest.raises((ValueError, TypeError), match=message):
        MAKERS[name](**settings, key=getkey())
