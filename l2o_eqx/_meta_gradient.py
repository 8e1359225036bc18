r"""The meta-gradient: how a window's meta-loss changes with the optimizer's meta-parameters.

With the first-order convention ∂∇_t/∂φ = 0 (thesis eq. 3.8) whatever the optimizer is shown is a
constant, and θ_t = θ_1 + Σ_{τ<t} u_τ, where u_τ is the update of step τ. So for a meta-loss
L(f(θ_1), …, f(θ_T)) with w_t = ∂L/∂f(θ_t)

    dL/dφ = Σ_t w_t ∇f(θ_t)ᵀ Σ_{τ<t} ∂u_τ/∂φ = Σ_τ λ_τᵀ ∂u_τ/∂φ,    λ_τ = Σ_{t>τ} w_t ∇f(θ_t).

Hence two phases. *Record*: run the window, keep the gradients. *Replay*: λ is a suffix sum of the
recorded gradients, and what remains is backpropagation through the optimizer alone along a known
sequence of inputs. The objective is never differentiated twice, nor through the optimizer. Where the
coordinates are independent, the replay runs block by block over them, so that memory is O(T·N) for the
record plus O(T·block) for the activations of one block instead of O(T·N) times the size of a network.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._inner import (
    add_axis,
    as_batch,
    batched_update,
    drop_axis,
    from_batched_state,
    of_one,
    run_steps,
    to_batched_state,
)
from ._misc import ravel, tree_dtype
from ._types import Keys, Params, Scalar, State, StepNumber
from .objectives import AbstractObjective, ObjectiveBatch
from .optimizers import AbstractOptimizer, PerLayer
from .weightings import AbstractWeighting

Order = Literal["first", "second"]

# Coordinates per block of the replay. On a CPU (measured, docs/performance.md) smaller blocks pay for more
# loop iterations and larger ones fall out of the cache; an accelerator needs wide operations to be busy.
_BLOCK_SIZE_CPU = 512
_BLOCK_SIZE_ACCELERATOR = 2**16


class MetaGradient(eqx.Module):
    """The result of `meta_gradient`.

    `losses` are f(θ_t) at the window's steps, `meta_loss` what the weighting makes of them, `grads` has the
    structure of the optimizer (its other leaves are `None`), `params` and `state` stand at the end of the
    window.
    """

    losses: Float[Array, " window"]
    meta_loss: Scalar
    grads: PyTree
    params: Params
    state: State


class BatchMetaGradient(eqx.Module):
    """The same for a batch of objectives: `grads` and `meta_loss` are means over them."""

    losses: Float[Array, "window objectives"]
    meta_loss: Scalar
    grads: PyTree
    params: Params
    state: State


def meta_gradient(
    optimizer: AbstractOptimizer,
    objective: AbstractObjective,
    params: Params,
    state: State,
    *,
    window: int,
    start: StepNumber = 0,
    num_steps: int | None = None,
    weighting: AbstractWeighting,
    key: PRNGKeyArray,
    order: Order = "first",
) -> MetaGradient:
    """Runs a window of inner steps and differentiates its meta-loss by the meta-parameters.

    Params and state at the start of the window are constants. The updates u_1 … u_{T−1} are trained; the
    last one, u_T, moves no loss of the window (eq. 3.5 as written).

    **Arguments:**

    - `optimizer`, `objective`: what runs on what.
    - `params`, `state`: where the window begins.
    - `window`: T, the number of inner steps.
    - `start`: number of the window's first step in its super epoch.
    - `num_steps`: length of the super epoch, for weightings that ask; by default it ends with the window.
    - `weighting`: turns the window's losses into the meta-loss.
    - `key`: with a step's number it picks each minibatch; the same for the whole super epoch.
    - `order`: `"first"` drops the second derivatives of the objective, as the paper and the thesis do;
        `"second"` differentiates through everything, in memory that grows with all activations.

    **Returns:** a `MetaGradient`.

    **Raises:** `ValueError` for an empty window or an unknown order.

    Reference: thesis eq. 3.5 to 3.8.
    """
    length = _super_epoch_length(window, start, num_steps)
    if order not in ("first", "second"):
        raise ValueError(f"`meta_gradient(order={order!r})`: the orders are 'first' and 'second'.")
    # Numbers as arrays, so that another window of the same super epoch is the same program.
    start, length = jnp.asarray(start), jnp.asarray(length)
    return _meta_gradient(optimizer, objective, params, state, window, start, length, weighting, key, order)


def recorded_meta_gradient(
    optimizer: AbstractOptimizer,
    grads: PyTree[Float[Array, "window ..."]],
    losses: Float[Array, " window"],
    params: Params,
    state: State,
    *,
    start: StepNumber = 0,
    num_steps: int | None = None,
    weighting: AbstractWeighting,
) -> PyTree:
    """The first-order meta-gradient from a record of gradients and losses, wherever they come from.

    The objective may live outside JAX: whoever can hand over ∇f(θ_t) and f(θ_t) along a window can train
    an optimizer.

    **Arguments:**

    - `optimizer`: with the meta-parameters to differentiate by.
    - `grads`: ∇f at each step of the window: a tree like `params` with the steps on a leading axis.
    - `losses`: f at each step.
    - `params`, `state`: the point and the optimizer's state at the start of the window.
    - `start`, `num_steps`, `weighting`: as in `meta_gradient`.

    **Returns:** the meta-gradient, with the structure of the optimizer.

    **Raises:** `ValueError` if gradients and losses disagree about the number of steps.
    """
    window = losses.shape[0]
    steps = sorted({g.shape[0] for g in jax.tree.leaves(grads)} | {window})
    if len(steps) > 1:
        raise ValueError(
            "`recorded_meta_gradient`: gradients and losses must have the same number of steps on their "
            f"leading axis. Got {steps}."
        )
    length = _super_epoch_length(window, start, num_steps)
    start, length = jnp.asarray(start), jnp.asarray(length)
    return _recorded_meta_gradient(optimizer, grads, losses, params, state, start, length, weighting)


def batch_meta_gradient(
    optimizer: AbstractOptimizer,
    objectives: ObjectiveBatch,
    params: Params,
    state: State,
    *,
    window: int,
    start: StepNumber,
    num_steps: StepNumber,
    weighting: AbstractWeighting,
    keys: Keys,
    order: Order = "first",
) -> BatchMetaGradient:
    """`meta_gradient` of the mean meta-loss over a batch of objectives; every leaf has that axis."""

    def mean_meta_loss(losses):
        return jnp.mean(jax.vmap(lambda x: weighting(x, start, num_steps), in_axes=1)(losses))

    def run(optimizer):
        return run_steps(optimizer, objectives, params, state, window, start=start, keys=keys)

    if order == "second":

        @eqx.filter_value_and_grad(has_aux=True)
        def through_everything(optimizer):
            *end, record = run(optimizer)
            return mean_meta_loss(record.losses), (*end, record)

        (meta_loss, (*end, record)), grads = through_everything(optimizer)
    else:
        *end, record = run(optimizer)
        meta_loss, weights = jax.value_and_grad(mean_meta_loss)(record.losses)
        grads = replay(optimizer, params, state, record.grads, suffix_sums(record.grads, weights))
    return BatchMetaGradient(record.losses, meta_loss, grads, *end)


def suffix_sums(
    grads: PyTree[Float[Array, "window objectives ..."]],
    weights: Float[Array, "window objectives"],
) -> PyTree[Float[Array, "window objectives ..."]]:
    """λ_τ = Σ_{t>τ} w_t ∇f(θ_t): what the meta-loss gains per unit of the update of step τ."""

    def suffix_sum(g):
        weighted = g * weights.reshape(weights.shape + (1,) * (g.ndim - 2)).astype(g.dtype)
        later = jnp.concatenate([weighted[1:], jnp.zeros_like(weighted[:1])])
        return lax.cumsum(later, axis=0, reverse=True)

    return jax.tree.map(suffix_sum, grads)


def replay(
    optimizer: AbstractOptimizer,
    params: Params,
    state: State,
    grads: PyTree[Float[Array, "window objectives ..."]],
    cotangents: PyTree[Float[Array, "window objectives ..."]],
    *,
    block_size: int | None = None,
) -> PyTree:
    """Σ_τ λ_τᵀ ∂u_τ/∂φ along recorded gradients: the second phase.

    **Arguments:**

    - `params`, `state`: at the start of the window, with an objectives axis.
    - `grads`: what the optimizer was shown.
    - `cotangents`: λ.
    - `block_size`: coordinates per block, for optimizers whose coordinates are independent; by default
        what suits the device.

    **Returns:** the sum over steps and objectives, with the structure of the optimizer.
    """
    if isinstance(optimizer, PerLayer):
        return _replay_groups(optimizer, params, state, grads, cotangents, block_size)
    if not optimizer.coordinatewise:
        return _replay_block(optimizer, params, state, grads, cotangents)

    if block_size is None:
        block_size = _BLOCK_SIZE_CPU if jax.default_backend() == "cpu" else _BLOCK_SIZE_ACCELERATOR
    dtype = tree_dtype(params)
    seen = (ravel(params, dtype), state, ravel(grads, dtype, num_leading=1))
    cotangents = ravel(cotangents, dtype, num_leading=1)
    if cotangents.shape[-1] <= block_size:
        return _replay_block(optimizer, *seen, cotangents)

    # What fills the last block has λ = 0 and adds nothing; it repeats a real coordinate, because an
    # optimizer need not be finite on a gradient of zero.
    blocks = (
        *jax.tree.map(lambda x: _split_blocks(x, block_size, "edge"), seen),
        _split_blocks(cotangents, block_size, "constant"),
    )

    def add_block(total, block):
        return eqx.apply_updates(total, _replay_block(optimizer, *block)), None

    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))
    return lax.scan(add_block, zeros, blocks)[0]


def _replay_groups(optimizer, params, state, grads, cotangents, block_size):
    like = of_one(params)
    groups = [optimizer.split(tree, like) for tree in (params, grads, cotangents)]
    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))
    result = dict(zeros.optimizers)
    for name in groups[0]:
        params, grads, cotangents = (group[name] for group in groups)
        result[name] = replay(
            optimizer.optimizers[name],
            params,
            state[name],
            grads,
            cotangents,
            block_size=block_size,
        )
    return eqx.tree_at(lambda o: o.optimizers, zeros, result)


def _replay_block(optimizer, params, state, grads, cotangents):
    @eqx.filter_grad
    def total(optimizer):
        def one_step(carry, inputs):
            params, state = carry
            grads, cotangents = inputs
            updates, state = batched_update(optimizer, grads, state, params)
            gain = sum(map(_dot, jax.tree.leaves(updates), jax.tree.leaves(cotangents)))
            # Params are shown as constants, and need not be recorded: they follow from the updates.
            params = eqx.apply_updates(params, lax.stop_gradient(updates))
            return (params, state), gain

        if not optimizer.coordinatewise:
            one_step = jax.checkpoint(one_step)
        _, gains = lax.scan(one_step, (params, state), (grads, cotangents))
        return jnp.sum(gains)

    return total(optimizer)


def _dot(updates, cotangents):
    dtype = jnp.result_type(float)
    return jnp.sum(updates.astype(dtype) * cotangents.astype(dtype))


def _split_blocks(x, block_size, mode):
    num_blocks = -(-x.shape[-1] // block_size)
    padding = num_blocks * block_size - x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)], mode)
    return jnp.moveaxis(x.reshape(*x.shape[:-1], num_blocks, block_size), -2, 0)


def _super_epoch_length(window: int, start: StepNumber, num_steps: int | None) -> StepNumber:
    if window < 1:
        raise ValueError(f"`meta_gradient(window=...)` needs at least one step. Got window={window}.")
    return start + window if num_steps is None else num_steps


@eqx.filter_jit
def _recorded_meta_gradient(optimizer, grads, losses, params, state, start, length, weighting):
    weights = jax.grad(lambda x: weighting(x, start, length))(losses)
    record = jax.tree.map(lambda g: g[:, None], grads)
    return replay(
        optimizer,
        add_axis(params),
        to_batched_state(optimizer, state),
        record,
        suffix_sums(record, weights[:, None]),
    )


@eqx.filter_jit
def _meta_gradient(optimizer, objective, params, state, window, start, num_steps, weighting, key, order):
    result = batch_meta_gradient(
        optimizer,
        as_batch(objective),
        add_axis(params),
        to_batched_state(optimizer, state),
        window=window,
        start=start,
        num_steps=num_steps,
        weighting=weighting,
        keys=key[None],
        order=order,
    )
    return MetaGradient(
        result.losses[:, 0],
        result.meta_loss,
        result.grads,
        drop_axis(result.params),
        from_batched_state(optimizer, result.state),
    )
