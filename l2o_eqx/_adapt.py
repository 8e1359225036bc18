from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from ._errors import ArgumentError
from ._unroll import unroll
from .objectives import AbstractModelObjective, FewShot, FewShotObjective, FromModel
from .objectives._few_shot import task_of
from .optimizers import AbstractOptimizer


def adapt(
    optimizer: AbstractOptimizer,
    objective: FewShot | FromModel | AbstractModelObjective,
    support: PyTree | None = None,
    *,
    steps: int = 1,
    key: PRNGKeyArray | None = None,
) -> Any:
    """Lets a learner adapt a model to a few examples.

    It begins at the learner's start (`optimizers.LearnedStart`, `MAML`), or, of an optimizer that has none,
    at weights that are drawn, and takes `steps` on the loss of all of `support`. Compiled on its first call
    for given shapes and steps. The model is in training mode meanwhile; put it in another with
    `eqx.nn.inference_mode`.

    **Arguments:**

    - `optimizer`: the learner.
    - `objective`: knows the model and its loss: the family that the learner was trained on, `FromModel` of
        the same model, or a task that was drawn from one.
    - `support`: a batch as the loss takes it; may be left out of a task that has its own.
    - `steps`: how many; 0 for the model at its start.
    - `key`: what dropout and whatever else is drawn; by default always the same.

    **Returns:** the adapted model, of the kind that `make_model` makes; if the loss takes a state, the pair
    of model and state where the steps ended.

    **Raises:** `ValueError` for a negative number of steps, a missing `support`, and a start of other shapes
    than the model's.
    """
    if steps < 0:
        raise ArgumentError(
            f"`adapt(steps={steps})`: there cannot be fewer than none.", argument="steps", given=steps
        )
    if support is None:
        if not isinstance(objective, FewShotObjective):
            raise ArgumentError(
                f"`adapt({type(optimizer).__name__}, {type(objective).__name__})`: give the examples, too: "
                "`adapt(optimizer, objective, support)`.",
                argument="support",
            )
        support = objective.support
    support = jax.tree.map(jnp.asarray, support)
    return _adapt(optimizer, objective, support, steps, jr.key(0) if key is None else key)


@eqx.filter_jit
def _adapt(optimizer, objective, support, steps, key):
    task = _on(objective, support, key)
    params = optimizer.initial_params(task.init(key))
    model_state = task.init_state(key)
    if steps:
        state = optimizer.init_for(params, steps)
        run = unroll(optimizer, task, params, state, steps, key=key, objective_state=model_state)
        params, model_state = run.params, run.objective_state
    model = task.model(params)
    return (model, model_state) if task.loss_fn.takes_state else model


def _on(objective, support, key):
    if isinstance(objective, AbstractModelObjective):
        return FewShotObjective(
            make_model=objective.make_model,
            static=objective.static,
            loss_fn=objective.loss_fn,
            support=support,
            query=support,
            trainable=objective.trainable,
        )
    return task_of(objective.loss, objective.make_model, objective.trainable, support, support, key=key)
