"""The second phase of the meta-gradient: backpropagation through the optimizer along a record."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from ._inner import batched_update, of_one
from ._misc import ravel, tree_dtype
from ._types import Params, State
from .optimizers import AbstractOptimizer, PerLayer

# Coordinates per block. On a CPU (measured, docs/performance.md) smaller blocks pay for more loop
# iterations and larger ones fall out of the cache; an accelerator needs wide operations to be busy.
_BLOCK_SIZE_CPU = 512
_BLOCK_SIZE_ACCELERATOR = 2**16


def suffix_sums(
    grads: PyTree[Float[Array, "losses objectives ..."]],
    weights: Float[Array, "losses objectives"],
) -> PyTree[Float[Array, "updates objectives ..."]]:
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
    grads: PyTree[Float[Array, "steps objectives ..."]],
    cotangents: PyTree[Float[Array, "updates objectives ..."]],
    *,
    detach_state: bool = False,
    history: PyTree[Float[Array, "steps ..."]] | None = None,
    block_size: int | None = None,
) -> PyTree:
    """Σ_τ λ_τᵀ ∂u_τ/∂φ along recorded gradients.

    **Arguments:**

    - `params`, `state`: at the start of the window, with an objectives axis.
    - `grads`: what the optimizer was shown; only as many steps count as there are cotangents.
    - `cotangents`: λ.
    - `detach_state`: whether the optimizer's state counts as a constant at every step.
    - `history`: the floating-point arrays of the optimizers that took the steps, if they were others than
        `optimizer`; each update is then differentiated at its own.
    - `block_size`: coordinates per block, for optimizers whose coordinates are independent; by default
        what suits the device.

    **Returns:** the sum over steps and objectives, with the structure of the optimizer.
    """
    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))
    num_updates = max((x.shape[0] for x in jax.tree.leaves(cotangents)), default=0)
    if num_updates == 0:
        return zeros
    grads, history = jax.tree.map(lambda x: x[:num_updates], (grads, history))
    if isinstance(optimizer, PerLayer):
        like = of_one(params)
        groups = [optimizer.split(tree, like) for tree in (params, grads, cotangents)]
        result = dict(zeros.optimizers)
        for name in groups[0]:
            result[name] = replay(
                optimizer.optimizers[name],
                groups[0][name],
                state[name],
                *(group[name] for group in groups[1:]),
                detach_state=detach_state,
                history=None if history is None else history.optimizers[name],
                block_size=block_size,
            )
        return eqx.tree_at(lambda o: o.optimizers, zeros, result)

    def replay_block(*block):
        return _replay_block(optimizer, history, detach_state, *block)

    if not optimizer.coordinatewise:
        return replay_block(params, state, grads, cotangents)

    if block_size is None:
        block_size = _BLOCK_SIZE_CPU if jax.default_backend() == "cpu" else _BLOCK_SIZE_ACCELERATOR
    dtype = tree_dtype(params)
    seen = (ravel(params, dtype), state, ravel(grads, dtype, num_leading=1))
    cotangents = ravel(cotangents, dtype, num_leading=1)
    if cotangents.shape[-1] <= block_size:
        return replay_block(*seen, cotangents)

    # What fills the last block has λ = 0 and adds nothing; it repeats a real coordinate, because an
    # optimizer need not be finite on a gradient of zero.
    blocks = (
        *jax.tree.map(lambda x: _split_blocks(x, block_size, "edge"), seen),
        _split_blocks(cotangents, block_size, "constant"),
    )
    return lax.scan(lambda total, b: (eqx.apply_updates(total, replay_block(*b)), None), zeros, blocks)[0]


def _replay_block(optimizer, history, detach_state, params, state, grads, cotangents):
    @eqx.filter_grad
    def total(optimizer):
        def one_step(carry, inputs):
            params, state = carry
            grads, cotangents, past = inputs
            now = optimizer if past is None else _moved_to(optimizer, past)
            if detach_state:
                state = lax.stop_gradient(state)
            updates, state = batched_update(now, grads, state, params)
            gain = sum(map(_dot, jax.tree.leaves(updates), jax.tree.leaves(cotangents)))
            # Params are shown as constants, and need not be recorded: they follow from the updates.
            params = eqx.apply_updates(params, lax.stop_gradient(updates))
            return (params, state), gain

        if not optimizer.coordinatewise:
            one_step = jax.checkpoint(one_step)
        _, gains = lax.scan(one_step, (params, state), (grads, cotangents, history))
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


def _split_blocks(x, block_size, mode):
    num_blocks = -(-x.shape[-1] // block_size)
    padding = num_blocks * block_size - x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)], mode)
    return jnp.moveaxis(x.reshape(*x.shape[:-1], num_blocks, block_size), -2, 0)
