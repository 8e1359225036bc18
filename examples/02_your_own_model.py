"""Meta-train on your own Equinox model and data.

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


def make_model(key):
    return eqx.nn.MLP(1, 1, width_size=16, depth=2, activation=jnp.tanh, key=key)


def mean_squared_error(model, batch):
    inputs, targets = batch
    return jnp.mean((jax.vmap(model)(inputs) - targets) ** 2)


family = l2o_eqx.objectives.FromModel(make_model, mean_squared_error, (x, y), batch_size=32)
optimizer = l2o_eqx.optimizers.CoordinatewiseLSTM(
    preprocessor=l2o_eqx.preprocessors.SignedLog(), learning_rate=0.01, key=init_key
)
solution = l2o_eqx.meta_train(
    optimizer, family, num_steps=96, super_epochs=25, num_objectives=4, key=train_key
)

before, after = (
    l2o_eqx.evaluate(o, family, num_steps=96, num_objectives=16, key=test_key).final_losses
    for o in (optimizer, solution.optimizer)
)
print(f"coordinates of the model: {l2o_eqx.count_coordinates(family)}")
print(f"median loss after 96 steps, untrained optimizer: {np.median(before):.3f}")
print(f"median loss after 96 steps, trained optimizer:   {np.median(after):.3f}")
