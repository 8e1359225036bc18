"""Use a trained optimizer inside an ordinary optax training loop.

    python examples/03_in_an_optax_loop.py [optimizer.safetensors]

Without a file it trains one first, on a small network, and saves and loads it.
"""

import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import optax

import l2o_eqx

family = l2o_eqx.objectives.MNIST(hidden_sizes=(8,), batch_size=64, data="embedded")


def train_one(path):
    optimizer = l2o_eqx.optimizers.CoordinatewiseLSTM(
        (10,), l2o_eqx.preprocessors.SignedLog(), learning_rate=0.02, key=jr.key(0)
    )
    solution = l2o_eqx.meta_train(optimizer, family, num_steps=64, super_epochs=5, key=jr.key(1))
    l2o_eqx.save(path, solution.optimizer)


def main(path):
    # From here on nothing is special: a learned optimizer is an optax.GradientTransformation.
    optimizer = l2o_eqx.load(path)
    print("Its own steps:")
    run(optax.chain(optax.clip(1.0), l2o_eqx.as_optax(optimizer)), optimizer)
    # Or take only its direction, with a rate, a schedule and a weight decay of your own.
    print("Its direction, with a rate that decays:")
    schedule = optax.cosine_decay_schedule(0.01, 100)
    decay = optax.add_decayed_weights(1e-4)
    direction = l2o_eqx.scale_by_learned(optimizer)
    run(optax.chain(direction, decay, optax.scale_by_learning_rate(schedule)), optimizer)


def run(transformation, optimizer):
    objective = family.sample(jr.key(2))
    # The same params, unless the optimizer has learned where to begin.
    params = optimizer.initial_params(objective.init(jr.key(3)))
    state = transformation.init(params)

    @jax.jit
    def step(params, state, t):
        loss, grads = jax.value_and_grad(objective.loss)(params, t, jr.key(4))
        updates, state = transformation.update(grads, state, params, value=loss)
        return eqx.apply_updates(params, updates), state, loss

    for t in range(101):
        params, state, loss = step(params, state, t)
        if t % 20 == 0:
            print(f"step {t}: loss {loss:.3f}")


if len(sys.argv) > 1:
    main(sys.argv[1])
else:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimizer.safetensors"
        train_one(path)
        main(path)
