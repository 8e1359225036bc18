"""The second phase of the meta-gradient: backpropagation through the optimizer along a record."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._misc import add_updates, at_least_float32, cast_like
from .._types import Params
from ..optimizers import AbstractLayout, AbstractOptimizer, Seen
from ._layout import BatchState, begin_at


def suffix_sums(
    grads: PyTree[Float[Array, "losses axis ..."]],
    weights: Float[Array, "losses axis"],
) -> PyTree[Float[Array, "updates axis ..."]]:
    """λ_τ = Σ_{t>τ} w_t ∇f(θ_t): what the meta-loss gains per unit of the update of step τ.

    There is one update less than losses: the update of the last step moves none of them.
    """

    def suffix_sum(g):
        # In float32 at least: narrow ones would overflow.
        g = at_least_float32(g)
        weighted = g * weights.reshape(weights.shape + (1,) * (g.ndim - 2)).astype(g.dtype)
        return lax.cumsum(weighted[1:], axis=0, reverse=True)

    return jax.tree.map(suffix_sum, grads)


def replay(
    optimizer: AbstractOptimizer,
    params: Params,
    state: BatchState,
    seen: Seen,
    slopes: PyTree[Float[Array, "losses ..."]],
    weights: Float[Array, "losses objectives"],
    *,
    detach_state: bool = False,
    history: PyTree[Float[Array, "steps ..."]] | None = None,
) -> PyTree:
    """Σ_τ λ_τᵀ ∂u_τ/∂φ along recorded gradients.

    **Arguments:**

    - `params`, `state`: at the start of the window, with an objectives axis; the state from `batched_init`.
    - `seen`: what the optimizer was shown at every loss, laid out.
    - `slopes`: the gradients of the losses that are weighed, laid out.
    - `weights`: w_t of every loss.
    - `detach_state`: whether the optimizer's state counts as a constant at every step.
    - `history`: the floating-point arrays of the optimizers that took the steps, if they were others than
        `optimizer`; each update is then differentiated at its own.

    **Returns:** the sum over steps, objectives and devices, with the structure of the optimizer.
    """
    num_updates = len(weights) - 1
    if num_updates == 0:
        return jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))
    history = jax.tree.map(lambda x: x[:num_updates], history)
    backpropagate = functools.partial(_backpropagate, detach_state=detach_state)
    return state.layout.replay(backpropagate, optimizer, params, state.arrays, seen, slopes, weights, history)


def start_gradient(
    optimizer: AbstractOptimizer,
    params: Params,
    layout: AbstractLayout,
    slopes: PyTree[Float[Array, "losses ..."]],
    weights: Float[Array, "losses objectives"],
) -> PyTree:
    """λ_0ᵀ ∂θ_1/∂φ, with λ_0 = Σ_t w_t ∇f(θ_t) and θ_1 = `optimizer.initial_params` of the params drawn."""

    def add(total, step):
        slopes, weights = step

        def one(total, slope):
            slope = at_least_float32(slope)
            along = weights.reshape(weights.shape + (1,) * (slope.ndim - 1))
            return total + along.astype(slope.dtype) * slope

        return jax.tree.map(one, total, layout.restore(slopes, params)), None

    zeros = jax.tree.map(lambda p: at_least_float32(jnp.zeros_like(p)), params)
    cotangents, _ = lax.scan(add, zeros, (slopes, weights))
    return pull_back_start(optimizer, params, cotangents)


def pull_back_start(optimizer: AbstractOptimizer, params: Params, cotangents: PyTree) -> PyTree:
    """The cotangents of where runs begin as those of the optimizer; `params` as drawn."""
    trained, rest = eqx.partition(optimizer, eqx.is_inexact_array)
    _, pull_back = jax.vjp(lambda trained: begin_at(eqx.combine(trained, rest), params), trained)
    return pull_back(cast_like(cotangents, params))[0]


def _backpropagate(
    optimizer, update, params, state, seen, slopes, weights, history, *, recompute, detach_state
):
    cotangents = suffix_sums(slopes, weights)
    shown = jax.tree.map(lambda x: x[: len(weights) - 1], seen)

    @eqx.filter_grad
    def total(optimizer):
        def one_step(carry, inputs):
            params, state = carry
            seen, cotangents, past = inputs
            now = optimizer if past is None else _moved_to(optimizer, past)
            if detach_state:
                state = lax.stop_gradient(state)
            updates, state = update(now, seen, state, params)
            gain = sum(map(_dot, jax.tree.leaves(updates), jax.tree.leaves(cotangents)))
            # Params are shown as constants, and need not be recorded: they follow from the updates.
            params = add_updates(params, lax.stop_gradient(updates))
            return (params, state), gain

        if recompute:
            one_step = jax.checkpoint(one_step)
        _, gains = lax.scan(one_step, (params, state), (shown, cotangents, history))
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
