"""Train an optimizer as a policy: controllers that know where they are teach one that does not.

python examples/06_policy_search.py
"""

import jax.random as jr
import optax

import l2o_eqx

init_key, train_key, test_key = jr.split(jr.key(0), 3)

family = l2o_eqx.objectives.LogisticRegression(num_features=1, num_examples=40)
policy = l2o_eqx.optimizers.PolicyOptimizer(dim=2, history=10, hidden_size=20, key=init_key)


def report(progress):
    m = progress.metrics
    if m:
        print(f"{progress.super_epoch}: controllers {m['teacher_loss']:.3f}, policy {m['mean_loss']:.3f}")


# Nothing is differentiated through a run: controllers are improved by linear-quadratic regulators.
solution = l2o_eqx.policy_search(
    policy,
    family,
    num_steps=20,
    super_epochs=6,
    num_objectives=20,
    num_samples=10,
    key=train_key,
    callbacks=[report],
)

comparison = l2o_eqx.compare(
    {"policy": solution.optimizer, "untrained": policy, "gradient descent": optax.sgd},
    family,
    num_steps=21,
    key=test_key,
)
for row in comparison.summary():
    print(f"{row['name']:>16}: median final loss {row['median']:.3f}")
