"""Inner optimization steps for a batch of objectives: the only place where gradients are taken."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from ._layout import batched_update, lay_out
from ._types import Keys, Params, State, StepNumber
from .objectives import AbstractObjective, ObjectiveBatch
from .optimizers import AbstractOptimizer


class Record(eqx.Module):
    """What a number of inner steps leave behind, the steps on the leading axis.

    The gradients are laid out as the optimizer was shown them, see `lay_out`.
    """

    losses: Float[Array, "steps objectives"]
    grads: PyTree[Float[Array, "..."]]


def as_batch(objective: AbstractObjective) -> ObjectiveBatch:
    """A batch of one; nothing is copied."""
    own, shared = eqx.partition(objective, False)
    return ObjectiveBatch(own, shared)


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
        grads = lay_out(optimizer, state, grads)
        updates, state = batched_update(optimizer, grads, state, params)
        return (eqx.apply_updates(params, updates), state), (losses, grads)

    steps = start + jnp.arange(num_steps)
    (params, state), (losses, grads) = lax.scan(one_step, (params, state), steps)
    return params, state, Record(losses, grads)
