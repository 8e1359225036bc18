"""Learned optimizers in other people's training loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import assert_trees_close

import l2o_eqx
from l2o_eqx.objectives import FromModel
from l2o_eqx.optimizers import (
    AdamMLP,
    CoordinatewiseLSTM,
    FromOptax,
    LearnedMomentum,
    PerLayer,
    by_layer,
    by_leaf,
)
from l2o_eqx.strategies import EveryWindow
from l2o_eqx.weightings import LogMean

# Before the first transformation is made, which tells Flax of its type.
nnx = pytest.importorskip("flax.nnx")


def lstm(key):
    return CoordinatewiseLSTM((3,), learning_rate=0.1, key=key)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(3, 1, rngs=rngs)])

    def __call__(self, x):
        return self.rest[0](jnp.tanh(self.first(x)))


def train(optimizer, num_steps=4):
    """Compiled, with the loss handed over; the losses before each step, and the net."""
    x = jr.normal(jr.key(0), (8, 2))
    net = Net(nnx.Rngs(0))
    state = nnx.Optimizer(net, l2o_eqx.as_optax(optimizer), wrt=nnx.Param)

    @nnx.jit
    def step(net, state):
        value, grads = nnx.value_and_grad(lambda net: jnp.mean((net(x) - x[:, :1]) ** 2))(net)
        state.update(net, grads, value=value)
        return value

    return [float(step(net, state)) for _ in range(num_steps)], net


def test_flax_nnx():
    losses, _ = train(LearnedMomentum(4, key=jr.key(0)))
    assert losses[-1] < 0.9 * losses[0]


def test_flax_nnx_is_a_plain_loop():
    """The variables that Flax puts around its params are not seen, nor is what they are called."""
    optimizer = LearnedMomentum(4, per="layer", key=jr.key(0))
    losses, _ = train(optimizer)
    x, net = jr.normal(jr.key(0), (8, 2)), Net(nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(net, nnx.Param))
    transformation = l2o_eqx.as_optax(optimizer)

    @jax.jit
    def step(params, state):
        def loss(params):
            hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
            last = params["rest"][0]
            return jnp.mean((hidden @ last["kernel"] + last["bias"][None] - x[:, :1]) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = transformation.init(params), []
    for _ in losses:
        params, state, value = step(params, state)
        values.append(float(value))
    np.testing.assert_allclose(losses, values, rtol=1e-4)


@pytest.mark.parametrize(
    "label, groups",
    [
        (by_layer, ["first", "rest.0"]),
        (by_leaf, ["first.bias", "first.kernel", "rest.0.bias", "rest.0.kernel"]),
    ],
)
def test_groups_of_flax_nnx(label, groups):
    """The same in params, which are variables, as in gradients, which are not."""
    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    optimizer = PerLayer.make(lstm, params, label=label, key=jr.key(0))
    assert sorted(optimizer.optimizers) == groups
    same = PerLayer.make(lstm, nnx.as_pure(params), label=label, key=jr.key(0))
    assert sorted(same.optimizers) == groups
    before = jax.tree.leaves(params)
    _, net = train(optimizer, 1)
    moved = [jnp.all(x != y) for x, y in zip(before, jax.tree.leaves(nnx.state(net, nnx.Param)), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("make", [lstm, lambda key: FromOptax(optax.polyak_sgd())])
def test_optimistix(make):
    """Hands over `value`, `grad` and `value_fn`, of which Polyak's step needs the first."""
    optimistix = pytest.importorskip("optimistix")
    transformation = l2o_eqx.as_optax(make(jr.key(0)))
    solver = optimistix.OptaxMinimiser(transformation, rtol=1e-3, atol=1e-3)

    def loss(params, args):
        return jnp.sum((params["w"] - args) ** 2)

    def minimise():
        start = {"w": jnp.zeros(3)}
        return optimistix.minimise(loss, solver, start, jnp.float32(1), max_steps=40, throw=False).value

    assert loss(minimise(), 1.0) < 0.3


def test_scikit_learn():
    """Its digits, a model of Equinox, and an optimizer that is better for being trained on it."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(n_class=3, return_X_y=True)
    data = (np.float32(images[:200] / 16), np.int32(labels[:200]))

    def loss(model, batch):
        images, labels = batch
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels))

    def make(key):
        return eqx.nn.Sequential(
            [
                eqx.nn.Lambda(lambda x: x.reshape(1, 8, 8)),
                eqx.nn.Conv2d(1, 2, 3, 2, key=key),
                eqx.nn.Lambda(lambda x: jax.nn.relu(x).ravel()),
                eqx.nn.Linear(18, 3, key=key),
            ]
        )

    family = FromModel(make, loss, data, 32)
    optimizer = AdamMLP((4,), learning_rate=0.003, num_steps=12, key=jr.key(0))
    settings = {"weighting": LogMean(), "num_steps": 12, "num_objectives": 2, "super_epochs": 12}
    meta_optimizer = l2o_eqx.default_meta_optimizer(0.05, normalization="global")
    trained = l2o_eqx.meta_train(
        optimizer, family, EveryWindow(6), meta_optimizer=meta_optimizer, key=jr.key(1), **settings
    ).optimizer
    losses = [
        np.mean(l2o_eqx.evaluate(o, family, num_steps=12, num_objectives=4, key=jr.key(2)).losses[:, -1])
        for o in (optimizer, trained)
    ]
    assert losses[1] < 0.9 * losses[0]


def test_pytorch():
    """Tensors of PyTorch are a record as they are."""
    torch = pytest.importorskip("torch")
    optimizer, start, target = lstm(jr.key(0)), np.ones(3, np.float32), np.arange(3, dtype=np.float32)
    theta, state, grads, losses = start, None, [], []
    for _ in range(4):
        point = torch.tensor(theta, requires_grad=True)
        loss = torch.sum((point - torch.tensor(target)) ** 2)
        loss.backward()
        grads.append(point.grad)
        losses.append(loss.item())
        state = optimizer.init(jnp.asarray(start)) if state is None else state
        updates, state = optimizer.update(jnp.asarray(point.grad.numpy()), state, jnp.asarray(theta))
        theta = theta + np.asarray(updates)
    found = l2o_eqx.recorded_meta_gradient(optimizer, grads, losses, start, weighting=LogMean())
    stacked, values = np.stack([g.numpy() for g in grads]), np.asarray(losses, np.float32)
    expected = l2o_eqx.recorded_meta_gradient(
        optimizer, jnp.asarray(stacked), jnp.asarray(values), jnp.asarray(start), weighting=LogMean()
    )
    assert_trees_close(found, expected)
