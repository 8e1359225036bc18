"""The second phase of the meta-gradient: backpropagation through the optimizer along a record."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from ._layout import BlockedState, drop_axis, lay_out, of_one
from ._types import Params, State
from .optimizers import AbstractOptimizer, PerLayer


def suffix_sums(
    grads: PyTree[Float[Array, "losses axis ..."]],
    weights: Float[Array, "losses axis"],
) -> PyTree[Float[Array, "updates axis ..."]]:
    """λ_τ = Σ_{t>τ} w_t ∇f(θ_t): what the meta-loss gains per unit of the update of step τ.

    There is one update less than losses: the update of the last step moves none of them.
    """

    def suffix_sum(g):
        weighted = g * weights.reshape(weights.shape + (1,) * (g.ndim - 2)).astype(g.dtype)
        return lax.cumsum(weighted[1:], axis=0, reverse=True)

    return jax.tree.map(suffix_sum, grads)


def replay(
    optimizer: AbstractOptimizer,
    params: Params,
    state: State,
    grads: PyTree[Float[Array, "losses ..."]],
    weights: Float[Array, "losses objectives"],
    *,
    detach_state: bool = False,
    history: PyTree[Float[Array, "steps ..."]] | None = None,
) -> PyTree:
    """Σ_τ λ_τᵀ ∂u_τ/∂φ along recorded gradients.

    **Arguments:**

    - `params`, `state`: at the start of the window, with an objectives axis; the state from `batched_init`.
    - `grads`: ∇f at every loss, as `run_steps` records them.
    - `weights`: w_t of every loss.
    - `detach_state`: whether the optimizer's state counts as a constant at every step.
    - `history`: the floating-point arrays of the optimizers that took the steps, if they were others than
        `optimizer`; each update is then differentiated at its own.

    **Returns:** the sum over steps, objectives and devices, with the structure of the optimizer.
    """
    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))
    num_updates = len(weights) - 1
    if num_updates == 0:
        return zeros
    if isinstance(optimizer, PerLayer):
        groups = optimizer.split(params, of_one(params))
        result = dict(zeros.optimizers)
        for name, group in groups.items():
            result[name] = replay(
                optimizer.optimizers[name],
                group,
                state[name],
                grads[name],
                weights,
                detach_state=detach_state,
                history=None if history is None else history.optimizers[name],
            )
        return eqx.tree_at(lambda o: o.optimizers, zeros, result)

    history = jax.tree.map(lambda x: x[:num_updates], history)

    def backpropagate(update, params, state, grads, weights):
        shown = jax.tree.map(lambda x: x[:num_updates], grads)
        record = (shown, suffix_sums(grads, weights), history)
        return _backpropagate(optimizer, update, detach_state, params, state, record)

    if not isinstance(state, BlockedState):
        return backpropagate(_update_each, params, state, grads, weights)

    blocks = state.blocks

    def one_block(total, block):
        number, params, arrays = block
        objectives, real = blocks.objectives_of(number)
        # What fills the last block has w = 0 and adds nothing.
        own_weights = jnp.where(real, weights[:, objectives], 0)
        own_grads = lax.dynamic_index_in_dim(grads, number, axis=1, keepdims=False)
        result = backpropagate(_update_flat, params, arrays, own_grads, own_weights)
        return eqx.apply_updates(total, result), None

    each = (jnp.arange(blocks.count), lay_out(optimizer, state, params), state.arrays)
    if blocks.count == 1:
        total, _ = one_block(zeros, drop_axis(each))
    else:
        total, _ = lax.scan(one_block, zeros, each)
    return total if blocks.axis is None else lax.psum(total, blocks.axis)


def _update_each(optimizer, grads, state, params):
    return jax.vmap(optimizer.update)(grads, state, params)


def _update_flat(optimizer, grads, state, params):
    return optimizer.update(grads, state, params)


def _backpropagate(optimizer, update, detach_state, params, state, record):
    @eqx.filter_grad
    def total(optimizer):
        def one_step(carry, inputs):
            params, state = carry
            grads, cotangents, past = inputs
            now = optimizer if past is None else _moved_to(optimizer, past)
            if detach_state:
                state = lax.stop_gradient(state)
            updates, state = update(now, grads, state, params)
            gain = sum(map(_dot, jax.tree.leaves(updates), jax.tree.leaves(cotangents)))
            # Params are shown as constants, and need not be recorded: they follow from the updates.
            params = eqx.apply_updates(params, lax.stop_gradient(updates))
            return (params, state), gain

        if not optimizer.coordinatewise:
            one_step = jax.checkpoint(one_step)
        _, gains = lax.scan(one_step, (params, state), record)
        return jnp.sum(gains)

    return total(optimizer)


def _moved_to(optimizer, past):
    # The past values, with the derivatives of the present ones.
    now, rest = eqx.partition(optimizer, eqx.is_inexact_array)
    moved = jax.tree.map(lambda p, x: p + (x - lax.stop_gradient(x)), past, now)
    return eqx.combine(moved, rest)


def _dot(updates, cotangents):
    dtype = jnp.result_type(float)
    return jnp.sum(updates.astype(dtype) * cotangents.astype(dtype))
