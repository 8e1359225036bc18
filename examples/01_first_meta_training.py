"""Train a small learned optimizer on random quadratics, and see how it does against Adam.

python examples/01_first_meta_training.py
"""

import jax.random as jr
import optax

import l2o_eqx

train_key, test_key, init_key = jr.split(jr.key(0), 3)

family = l2o_eqx.objectives.Quadratic(dim=8)
untrained = l2o_eqx.optimizers.CoordinatewiseLSTM(learning_rate=0.01, key=init_key)


def report(progress):
    if progress.super_epoch % 10 == 0:
        print(f"super epoch {progress.super_epoch}: mean loss {progress.metrics['mean_loss']:.3f}")


solution = l2o_eqx.meta_train(
    untrained,
    family,
    l2o_eqx.strategies.EveryWindow(16),
    num_steps=96,
    super_epochs=40,
    num_objectives=16,
    key=train_key,
    callbacks=[report],
)

# The same 64 new objectives for all; Adam's learning rate is tuned on others.
comparison = l2o_eqx.compare(
    {"learned": solution.optimizer, "untrained": untrained, "Adam": optax.adam},
    family,
    num_steps=96,
    key=test_key,
)
for row in comparison.summary():
    print(f"{row['name']:>10}: median final loss {row['median']:.2e}, {row['q25']:.1e} to {row['q75']:.1e}")
