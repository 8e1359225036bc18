from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import l2o_eqx
from l2o_eqx.meta_optimizers import default_meta_optimizer, drop_spikes, retreat, unit_norm


def rates(num_updates, **settings):
    """The learning rates of a number of updates: Adam's update on a gradient that stays is its rate."""
    optimizer = default_meta_optimizer(0.5, normalization="none", eps=1e-30, **settings)
    phi: Any = jnp.ones(())
    state, found = optimizer.init(phi), []
    for _ in range(num_updates):
        update, state = optimizer.update(phi, state)
        found.append(-np.asarray(update).item())
    return found


def test_names_of_before():
    from l2o_eqx import transforms

    assert transforms.unit_norm is unit_norm and l2o_eqx.default_meta_optimizer is default_meta_optimizer


def test_defaults_are_the_thesis_bit_for_bit(getkey):
    """Without the new settings: unit norm per tensor and Adam with Keras's ε."""
    phi: Any = {"a": jr.normal(getkey(), (3, 4)), "b": jr.normal(getkey(), (2,))}
    ours: Any = default_meta_optimizer(1e-2)
    plain = optax.apply_if_finite(optax.chain(unit_norm(), optax.adam(1e-2, eps=1e-7)), 2**30)
    states = ours.init(phi), plain.init(phi)
    assert jax.tree.structure(states[0].inner) == jax.tree.structure(states[1])
    for _ in range(3):
        grads: Any = jax.tree.map(lambda x: jr.normal(getkey(), x.shape), phi)
        (one, two), states = zip(
            *(o.update(grads, s) for o, s in zip((ours, plain), states, strict=True)), strict=True
        )
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_same_arguments_same_object():
    settings: Any = {"total_updates": 10, "warmup_updates": 2, "drop_norm": 3.0}
    assert default_meta_optimizer(0.1, **settings) is default_meta_optimizer(0.1, **settings)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.5, 0.5, 0.5]),
        ({"warmup_updates": 3}, [0.125, 0.25, 0.375, 0.5, 0.5]),
        ({"total_updates": 4}, 0.25 * (1 + np.cos(np.pi * np.array([0, 1, 2, 3, 4, 4]) / 4))),
        (
            {"warmup_updates": 1, "total_updates": 5, "final_share": 0.01},
            [0.25, *(0.5 * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * np.array([0, 1, 2, 3, 4, 4]) / 4))))],
        ),
    ],
)
def test_schedules(settings, expected):
    np.testing.assert_allclose(rates(len(expected), **settings), expected, rtol=1e-5, atol=1e-7)


def test_spikes_count_as_zero_and_others_are_clipped():
    """One spike of 1e15, and one whose square overflows, leave no trace in Adam's moments but its decay."""
    optimizer = default_meta_optimizer(1e-2, normalization="clip", clip_norm=0.5, drop_norm=3.0)
    phi: Any = jnp.zeros(2)

    def moments(*grads):
        state = optimizer.init(phi)
        for g in grads:
            _, state = optimizer.update(jnp.array(g), state)
        return optax.tree.get(state, "mu"), optax.tree.get(state, "nu")

    usual = [0.3, -0.4]
    for spike in ([6e14, 8e14], [1e30, 0.0], [3.0, 0.0]):
        for a, b in zip(moments(usual, spike, usual), moments(usual, [0.0, 0.0], usual), strict=True):
            np.testing.assert_array_equal(a, b)
    # Norms from 0.5 to 3 are clipped to 0.5.
    np.testing.assert_allclose(moments([1.2, -1.6])[0], 0.1 * np.array([0.3, -0.4]), rtol=1e-6)
    # Scaled to norm one, as by default, a spike would have counted as much as any other.
    scaled, _ = drop_spikes(3.0).update(jnp.array([3.0, 0.0]), optax.EmptyState())
    np.testing.assert_array_equal(scaled, 0.0)


def test_what_is_not_finite_is_left_out_and_not_dropped():
    optimizer = default_meta_optimizer(0.1, drop_norm=1.0)
    phi: Any = jnp.zeros(2)
    for bad in (jnp.inf, jnp.nan):
        update, state = optimizer.update(jnp.array([bad, 0.0]), optimizer.init(phi))
        np.testing.assert_array_equal(update, 0.0)
        assert int(optax.tree.get(state, "total_notfinite")) == 1


def test_unit_norm():
    scaled: Any
    grads: Any = {"a": jnp.array([[3.0, 4.0]]), "b": jnp.array([1e-20, 0.0]), "c": jnp.zeros(2)}
    transformation = unit_norm()
    scaled, _ = transformation.update(grads, transformation.init(grads))
    np.testing.assert_allclose(scaled["a"], [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(scaled["b"], [1.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(scaled["c"], 0)
    scaled, _ = unit_norm("global").update(grads, optax.EmptyState())
    np.testing.assert_allclose(optax.tree.norm(scaled), 1, rtol=1e-6)
    scaled, _ = unit_norm(eps=1e-6).update({"a": jnp.array([1e-8])}, optax.EmptyState())
    np.testing.assert_allclose(scaled["a"], 0.01, rtol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"warmup_updates": 5, "total_updates": 5}, "total_updates=5"),
        ({"warmup_updates": -1}, "warmup_updates=-1"),
        ({"final_share": 1.5}, "final_share=1.5"),
        ({"drop_norm": 0.0}, "largest_norm=0.0"),
    ],
)
def test_errors_name_the_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        default_meta_optimizer(**settings)


def test_a_retreat_takes_back_the_last_update_and_halves_those_to_come():
    optimizer: Any = retreat(optax.trace(0.5), 3)
    phi, bad = jnp.zeros(2), jnp.array([jnp.nan, 1.0])
    state, seen = optimizer.init(phi), []
    one = jnp.ones(2)
    for grads in (one, one, bad, bad, one, bad, bad, bad, bad, bad, bad, one, one):
        updates, state = optimizer.update(grads, state, phi)
        phi = phi + updates
        seen.append(float(phi[0]))
    # The trace is 1, 1.5, 1.75 at the finite ones. Three in a row take the last one back; three more find
    # nothing to take back. Then the trace goes on from 1.5, a quarter as large.
    after = [2.5 + 0.25 * 1.75, 2.5 + 0.25 * (1.75 + 1.875)]
    np.testing.assert_allclose(seen, [1, 2.5, 2.5, 2.5, 4.25, 4.25, 4.25, 2.5, 2.5, 2.5, 2.5, *after])
    assert int(optax.tree.get(state, "total_notfinite")) == 8 and float(state.scale) == 0.25
    for wrong in ({"after": 0}, {"after": 1, "factor": 1.0}):
        with pytest.raises(l2o_eqx.ArgumentError, match=[*wrong][-1]):
            retreat(optax.identity(), **wrong)


def test_a_retreat_of_one_restart_is_of_no_concern_to_the_others():
    optimizer: Any = retreat(optax.sgd(1.0), 2)
    phi = jnp.zeros((2, 3))
    state = jax.vmap(optimizer.init)(phi)
    for bad in (0.0, jnp.inf, jnp.inf, 0.0):
        grads = jnp.ones((2, 3)).at[0, 0].add(bad)
        updates, state = jax.vmap(optimizer.update)(grads, state)
        phi = phi + updates
    np.testing.assert_array_equal(phi, [[-0.5] * 3, [-4.0] * 3])
