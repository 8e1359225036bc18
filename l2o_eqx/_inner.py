"""One inner optimization step for a batch of objectives: the only place where gradients are taken.

Everything in this module carries an axis for the objectives in front of every leaf of params and
gradients. One objective is a batch of one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from ._types import Keys, Params, State, StepNumber
from .objectives import AbstractObjective, ObjectiveBatch
from .optimizers import AbstractOptimizer, PerLayer


class Record(eqx.Module):
    """What a number of inner steps leave behind, the steps on the leading axis."""

    losses: Float[Array, "steps objectives"]
    grads: PyTree[Float[Array, "..."]]


def as_batch(objective: AbstractObjective) -> ObjectiveBatch:
    """A batch of one; nothing is copied."""
    own, shared = eqx.partition(objective, False)
    return ObjectiveBatch(own, shared)


def add_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], tree)


def drop_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)


def batched_init(optimizer: AbstractOptimizer, params: Params) -> State:
    """`optimizer.init` for params with an objectives axis."""
    # To a coordinatewise optimizer a batch of objectives is just more coordinates, which makes one wide
    # matrix product out of many narrow ones.
    if optimizer.coordinatewise:
        return optimizer.init(params)
    if isinstance(optimizer, PerLayer):
        return optimizer.init_with(batched_init, params, like=of_one(params))
    return jax.vmap(optimizer.init)(params)


def batched_update(
    optimizer: AbstractOptimizer, grads: Params, state: State, params: Params
) -> tuple[Params, State]:
    """`optimizer.update` for params with an objectives axis and a state from `batched_init`."""
    if optimizer.coordinatewise:
        return optimizer.update(grads, state, params)
    if isinstance(optimizer, PerLayer):
        return optimizer.update_with(batched_update, grads, state, params, like=of_one(params))
    return jax.vmap(optimizer.update)(grads, state, params)


def to_batched_state(optimizer: AbstractOptimizer, state: State) -> State:
    """The state of one objective as that of a batch of one."""
    return _map_state(optimizer, state, add_axis)


def from_batched_state(optimizer: AbstractOptimizer, state: State) -> State:
    """The inverse of `to_batched_state`."""
    return _map_state(optimizer, state, drop_axis)


def _map_state(optimizer, state, function):
    if optimizer.coordinatewise:
        return state
    if isinstance(optimizer, PerLayer):
        return {name: _map_state(optimizer.optimizers[name], s, function) for name, s in state.items()}
    return function(state)


def of_one(tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes of one objective's part of a tree with an objectives axis."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)


def init_params(objectives: ObjectiveBatch, keys: Keys) -> Params:
    """A starting point for every objective."""
    return jax.vmap(lambda own, key: objectives.select(own).init(key))(objectives.own, keys)


def losses_and_grads(
    objectives: ObjectiveBatch, params: Params, step: StepNumber, keys: Keys
) -> tuple[Float[Array, " objectives"], Params]:
    """f and ∇f of every objective at its params."""

    def one(own, params, key):
        return jax.value_and_grad(objectives.select(own).loss)(params, step, key)

    return jax.vmap(one)(objectives.own, params, keys)


def run_steps(
    optimizer: AbstractOptimizer,
    objectives: ObjectiveBatch,
    params: Params,
    state: State,
    num_steps: int,
    *,
    start: StepNumber,
    keys: Keys,
    detach_state: bool = False,
) -> tuple[Params, State, Record]:
    """`num_steps` inner steps from step number `start` on.

    **Arguments:**

    - `keys`: one per objective for the whole super epoch.
    - `detach_state`: whether derivatives stop at the optimizer's state at every step.

    **Returns:** params and state after the last step, and the record.
    """

    def one_step(carry, step):
        params, state = carry
        if detach_state:
            state = lax.stop_gradient(state)
        losses, grads = losses_and_grads(objectives, params, step, keys)
        updates, state = batched_update(optimizer, grads, state, params)
        return (eqx.apply_updates(params, updates), state), (losses, grads)

    steps = start + jnp.arange(num_steps)
    (params, state), (losses, grads) = lax.scan(one_step, (params, state), steps)
    return params, state, Record(losses, grads)
