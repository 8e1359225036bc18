"""Learn where to begin: MAML on sine curves, and a network that adapts to ten points of one.

python examples/05_few_shot.py
"""

import jax.random as jr
import optax

import l2o_eqx

start_key, train_key, test_key = jr.split(jr.key(0), 3)

family = l2o_eqx.objectives.Sinusoid(num_support=10)
untrained = l2o_eqx.optimizers.MAML(family.sample(start_key).init(start_key), learning_rate=0.01)

# The true gradient of the loss on the query set after one step on the support set.
solution = l2o_eqx.meta_train(
    untrained,
    family,
    l2o_eqx.strategies.OncePerSuperEpoch(l2o_eqx.estimators.Backprop(()), include_final_loss=True),
    weighting=l2o_eqx.weightings.FinalOnly(),
    meta_optimizer=optax.adam(1e-3),
    num_steps=1,
    super_epochs=3000,
    num_objectives=25,
    per_call=100,
    key=train_key,
)

for name, learner in {"untrained": untrained, "trained": solution.optimizer}.items():
    losses = l2o_eqx.evaluate(learner, family, num_steps=11, num_objectives=200, key=test_key).losses.mean(0)
    print(
        f"{name}: error on unseen curves {losses[0]:.2f}, after 1 step {losses[1]:.2f}, 10 {losses[10]:.2f}"
    )

support, (x, y) = family.sample_task(test_key)
network = l2o_eqx.adapt(solution.optimizer, family, support, steps=10)
print(f"an adapted {type(network).__name__} at {x[0, 0]:.2f}: {network(x[0])[0]:.2f}, curve {y[0, 0]:.2f}")
