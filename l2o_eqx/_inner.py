"""Inner optimization steps for a batch of objectives: the only place where gradients are taken."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from ._layout import batched_update, lay_out
from ._types import Keys, Order, Params, State, StepNumber
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
    objectives: ObjectiveBatch, params: Params, step: StepNumber, keys: Keys, *, order: Order = "second"
) -> tuple[Float[Array, " objectives"], Params]:
    """f and ∇f of every objective at its params.

    To derivatives of `order="first"` f is linear in the params and ∇f a constant, so that no objective is
    differentiated a second time.
    """

    def one(own, params, key):
        return jax.value_and_grad(objectives.select(own).loss)(params, step, key)

    if order == "second":
        return jax.vmap(one)(objectives.own, params, keys)
    losses, grads = jax.vmap(one)(objectives.own, lax.stop_gradient(params), keys)
    return _linear(losses, params, grads), grads


@jax.custom_vjp
def _linear(losses, params, grads):
    del params, grads
    return losses


def _linear_forward(losses, params, grads):
    del params
    return losses, grads


def _linear_backward(grads, weights):
    along = jax.vmap(lambda w, grads: jax.tree.map(lambda g: w.astype(g.dtype) * g, grads))
    return None, along(weights, grads), None


_linear.defvjp(_linear_forward, _linear_backward)


def run_steps(
    optimizer: AbstractOptimizer,
    objectives: ObjectiveBatch,
    params: Params,
    state: State,
    num_steps: int,
    *,
    start: StepNumber,
    keys: Keys,
    order: Order = "second",
    detach_state: bool = False,
) -> tuple[Params, State, Record]:
    """`num_steps` inner steps from step number `start` on.

    **Arguments:**

    - `keys`: one per objective for the whole super epoch.
    - `order`: of derivatives, should anyone take them; see `losses_and_grads`.
    - `detach_state`: whether they stop at the optimizer's state at every step.

    **Returns:** params and state after the last step, and the record.
    """

    def one_step(carry, step):
        params, state = carry
        if detach_state:
            state = lax.stop_gradient(state)
        losses, grads = losses_and_grads(objectives, params, step, keys, order=order)
        grads = lay_out(optimizer, state, grads)
        shown = lax.stop_gradient(params) if order == "first" else params
        updates, state = batched_update(optimizer, grads, state, shown)
        return (eqx.apply_updates(params, updates), state), (losses, grads)

    steps = start + jnp.arange(num_steps)
    (params, state), (losses, grads) = lax.scan(one_step, (params, state), steps)
    return params, state, Record(losses, grads)
