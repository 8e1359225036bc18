"""Minimize any Python function in a few evaluations, with a search that was learned.

python examples/04_black_box.py
"""

import jax.random as jr

import l2o_eqx
from l2o_eqx import Box, Space
from l2o_eqx.estimators import Auto
from l2o_eqx.strategies import OncePerSuperEpoch

# A network learns to search two numbers in 20 evaluations, on functions from a Gaussian process. Some minutes
# of this make a good one: `l2o train --objective gp --optimizer black-box-rnn`.
family = l2o_eqx.objectives.GaussianProcess(2, outer_loss="log_expected_improvement", horizon=20)
network = l2o_eqx.optimizers.BlackBoxRNN(2, hidden_size=32, num_steps=20, key=jr.key(0))
search = l2o_eqx.meta_train(
    network,
    family,
    OncePerSuperEpoch(Auto(())),
    meta_optimizer=l2o_eqx.default_meta_optimizer(5e-3, normalization="clip"),
    num_steps=20,
    super_epochs=150,
    num_objectives=32,
    key=jr.key(1),
).optimizer


def program(learning_rate, width):
    """Stands for anything: a training, a simulation, a measurement."""
    return (learning_rate / 0.003 + 0.003 / learning_rate - 2) / 50 + (width - 40) ** 2 / 500


space = Space({"learning_rate": Box(1e-5, 1.0, log=True), "width": Box(8, 128, log=True, integer=True)})
assert isinstance(search, l2o_eqx.optimizers.BlackBoxRNN)
state = search.init(space)
for _ in range(20):
    point, state = search.ask(state)
    state = search.tell(state, point, program(**point))
print(f"the best point of 20 evaluations, and its value: {state.best}")
