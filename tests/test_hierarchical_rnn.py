"""Wichrowska's optimizer against its equations, written out in NumPy, and what the paper claims of it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import as_if_trained, assert_trees_close, to_float64

import l2o_eqx
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import HierarchicalRNN
from l2o_eqx.weightings import Constant

SHAPES = {"a": (3, 2), "b": (4,), "c": ()}


def trained(key, **settings):
    return as_if_trained(HierarchicalRNN(3, 4, 2, (1e-3, 1e-1), key=key, **settings), key)


def draw(key, scale=1.0):
    keys = dict(zip(SHAPES, jr.split(key, len(SHAPES)), strict=True))
    return {name: scale * jr.normal(keys[name], shape) for name, shape in SHAPES.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(cell, inputs, state, *above):
    """One column."""
    size = len(state)
    seen = cell.inputs @ inputs + cell.bias
    if above:
        seen = seen + cell.above @ np.concatenate(above)
    keep = sigmoid(seen[:size] + cell.state[:size] @ state)
    reset = sigmoid(seen[size : 2 * size] + cell.state[size : 2 * size] @ state)
    new = np.tanh(seen[2 * size :] + reset * (cell.state[2 * size :] @ state))
    return keep * state + (1 - keep) * new


class Written:
    """The docstring's equations, coordinate by coordinate."""

    def __init__(self, optimizer, log_rates):
        self.o = jax.tree.map(lambda x: np.asarray(x) if x.dtype != optimizer.key.dtype else x, optimizer)
        self.sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
        self.tensor_of = np.repeat(np.arange(3), self.sizes)
        n = len(self.tensor_of)
        self.h = [self.o.starts[0]] * n
        self.tensors = [self.o.starts[1]] * 3
        self.all = self.o.starts[2]
        self.means, self.squares = np.zeros((n, 4)), np.zeros((n, 4))
        self.d, self.c = np.zeros(n), np.zeros(n)
        self.eta, self.offset = np.array(log_rates), np.zeros(n)

    def step(self, grads):
        o, n = self.o, len(grads)
        decays = self.d[:, None] ** (1 / 2 ** np.arange(4))
        self.means = decays * self.means + (1 - decays) * grads[:, None]
        self.squares = self.c[:, None] * self.squares + (1 - self.c[:, None]) * self.means**2
        m = np.arcsinh(self.means / np.sqrt(self.squares))
        logs = np.log(self.squares)
        inputs = np.concatenate(
            [
                m,
                m[:, :-1] * m[:, 1:],
                logs - logs.mean(1, keepdims=True),
                (self.eta - self.eta.mean())[:, None],
            ],
            axis=1,
        )
        tensor_of = self.tensor_of
        self.h = [
            gru(o.coordinate_cell, inputs[i], self.h[i], self.tensors[tensor_of[i]], self.all)
            for i in range(n)
        ]
        seen = np.concatenate([np.array(self.h), inputs], axis=1)
        self.tensors = [
            gru(o.tensor_cell, seen[tensor_of == t].mean(0), self.tensors[t], self.all) for t in range(3)
        ]
        self.all = gru(o.global_cell, np.mean(self.tensors, axis=0), self.all)
        h = np.array(self.h)
        points = []
        for w, v in zip(o.directions, o.shortcuts, strict=True):
            direction = h @ w + m @ v
            rms = np.array([np.sqrt(np.mean(direction[tensor_of == t] ** 2)) for t in range(3)])
            points.append(direction / rms[tensor_of])
        eta = np.clip(self.eta + h @ o.rate_weights + o.rate_bias, -33, 33)
        updates = -np.exp(eta + o.log_step) * points[0]
        if len(points) > 1:
            offset = -np.exp(eta) * points[1]
            updates, self.offset = updates + offset - self.offset, offset
        keep = sigmoid(o.rate_logit)
        self.eta = keep * self.eta + (1 - keep) * eta
        self.d, self.c = sigmoid(h @ o.decay_weights.T + o.decay_bias).T
        return updates


@pytest.mark.parametrize("attention", [False, True])
def test_the_equations(attention, getkey):
    with jax.enable_x64(True):
        optimizer = to_float64(trained(getkey(), attention=attention))
        params = to_float64(draw(getkey()))
        state: Any = optimizer.init(params)
        written = Written(optimizer, np.concatenate([np.ravel(x.log_rates) for x in state.coordinates]))
        update = jax.jit(lambda grads, state: optimizer.update(grads, state, params))
        for _ in range(4):
            grads = to_float64(draw(getkey(), 0.1))
            updates, state = update(grads, state)
            expected = written.step(np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)]))
            found = np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])
            np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e30])
def test_a_factor_of_the_loss_changes_nothing(factor, getkey):
    optimizer, params = trained(getkey()), draw(getkey())
    state, scaled_state = optimizer.init(params), optimizer.init(params)
    update = jax.jit(lambda grads, state: optimizer.update(grads, state, params))
    for _ in range(3):
        grads = draw(getkey())
        updates, state = update(grads, state)
        scaled, scaled_state = update(jax.tree.map(lambda g: factor * g, grads), scaled_state)
        assert_trees_close(scaled, updates, rtol=1e-3, atol=1e-4)


def test_first_rates_differ_and_are_repeated(getkey):
    """Between the limits, as spread as a sum of two uniform ones, other for other starting points."""
    optimizer = HierarchicalRNN(first_rates=(1e-6, 1e-2), key=getkey())
    params = [jr.normal(getkey(), (5000,)) for _ in range(2)]
    first, again, other = (
        np.asarray(optimizer.init(p).coordinates[0].log_rates) for p in (params[0], *params)
    )
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.01
    assert np.log(1e-6) <= first.min() and first.max() <= np.log(1e-2)
    # Half of the range is the coordinates' own.
    np.testing.assert_allclose(first.max() - first.min(), np.log(1e4) / 2, rtol=0.01)


def test_gradients_of_zero_and_a_tensor_without_entries(getkey):
    optimizer = trained(getkey())
    params = {"a": jnp.zeros((0, 3)), "b": jnp.ones(3)}
    state = optimizer.init(params)
    for grads in (jnp.zeros(3), jnp.array([0.0, 1.0, 1e-30]), jnp.zeros(3)):
        updates, state = optimizer.update({"a": jnp.zeros((0, 3)), "b": grads}, state, None)
        assert updates["a"].shape == (0, 3) and np.all(np.isfinite(updates["b"]))


def test_untrained_it_descends(getkey):
    """Its shortcut is a mean of normalized gradients: rates of 0.03 lower a quadratic."""
    optimizer = HierarchicalRNN(first_rates=(0.03, 0.03), key=getkey())
    run = l2o_eqx.evaluate(optimizer, Quadratic(4), num_steps=60, num_objectives=8, key=getkey())
    losses = np.asarray(run.losses)
    assert np.median(losses[:, -1] / losses[:, 0]) < 0.5


def test_all_is_trained(getkey):
    """Where the networks start, too."""
    optimizer, objective, key = trained(getkey()), Quadratic(3).sample(getkey()), getkey()
    params = objective.init(key)
    result = l2o_eqx.meta_gradient(
        optimizer, objective, params, optimizer.init(params), window=3, weighting=Constant(), key=key
    )
    grads = eqx.filter(result.grads, eqx.is_inexact_array)
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("rates", [(0.0, 1.0), (1.0, 0.1)])
def test_errors(rates, getkey):
    with pytest.raises(ValueError, match="first_rates"):
        HierarchicalRNN(first_rates=rates, key=getkey())
    with pytest.raises(ValueError, match="tensor_size|at least one unit"):
        HierarchicalRNN(tensor_size=0, key=getkey())
