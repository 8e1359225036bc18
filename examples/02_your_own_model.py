"""Meta-train on your own Equinox model and data: with BatchNorm, dropout and a frozen layer.

python examples/02_your_own_model.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import l2o_eqx

x_key, noise_key, train_key, test_key, init_key = jr.split(jr.key(0), 5)

# Data: noisy samples of a curve. The leading axis of every array counts the examples.
x = jr.uniform(x_key, (512, 1), minval=-2, maxval=2)
y = jnp.sin(3 * x) + 0.05 * jr.normal(noise_key, x.shape)
held_out = jnp.linspace(-2, 2, 128)[:, None]


class Model(eqx.Module):
    features: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    hidden: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jr.split(key, 3)
        self.features = eqx.nn.Linear(1, 16, key=keys[0])
        self.norm = eqx.nn.BatchNorm(16, axis_name="batch", mode="batch")
        self.hidden = eqx.nn.Linear(16, 16, key=keys[1])
        self.dropout = eqx.nn.Dropout(0.1)
        self.out = eqx.nn.Linear(16, 1, key=keys[2])

    def __call__(self, x, state, key):
        # The first layer keeps its random weights: what is behind `stop_gradient` is no coordinate.
        x = jnp.sin(3 * jax.lax.stop_gradient(self.features)(x))
        x, state = self.norm(x, state)
        x = self.dropout(jnp.tanh(self.hidden(x)), key=key)
        return self.out(x), state


def predict(model, state, inputs, key):
    call = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    return call(inputs, state, jr.split(key, len(inputs)))


# A loss is called by the names of its parameters. `state` and `key` may be left out, and then it returns the
# loss alone.
def mean_squared_error(model, state, batch, key):
    inputs, targets = batch
    outputs, state = predict(model, state, inputs, key)
    return jnp.mean((outputs - targets) ** 2), state


def held_out_error(objective, params):
    """In inference mode, with the running statistics of the end of the run."""
    model = eqx.nn.inference_mode(objective.model(params))
    outputs, _ = predict(model, objective.state, held_out, jr.key(0))
    return jnp.mean((outputs - jnp.sin(3 * held_out)) ** 2)


family = l2o_eqx.objectives.FromModel(
    eqx.nn.make_with_state(Model), mean_squared_error, (x, y), batch_size=32
)
optimizer = l2o_eqx.optimizers.CoordinatewiseLSTM(
    preprocessor=l2o_eqx.preprocessors.SignedLog(), learning_rate=0.01, key=init_key
)
solution = l2o_eqx.meta_train(
    optimizer, family, num_steps=96, super_epochs=25, num_objectives=4, key=train_key
)

before, after = (
    l2o_eqx.evaluate(
        o, family, num_steps=96, num_objectives=16, measure=held_out_error, key=test_key
    ).measured
    for o in (optimizer, solution.optimizer)
)
print(f"coordinates of the model: {l2o_eqx.count_coordinates(family)}")
print(f"median error on held-out data after 96 steps, untrained optimizer: {np.median(before):.3f}")
print(f"median error on held-out data after 96 steps, trained optimizer:   {np.median(after):.3f}")
