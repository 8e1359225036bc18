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
Blocks, and objectives, may lie on different devices; the sum over them is then the only exchange.

Few coordinates keep their activations instead: reverse-mode differentiation of the first phase, in which
f is linear in θ with slope ∇f(θ_t) and so adds up the same λ_τ. That saves the optimizer's second run.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._inner import Record, as_batch, losses_and_grads, run_steps
from ._layout import (
    add_axis,
    cut_like,
    default_block_size,
    drop_axis,
    from_batched_state,
    has_only_blocks,
    lay_out,
    own_coordinates,
    to_batched_state,
    uncut,
)
from ._replay import replay
from ._types import Activations, Keys, Order, Params, Scalar, State, StepNumber
from .objectives import AbstractObjective, ObjectiveBatch
from .optimizers import AbstractOptimizer
from .weightings import AbstractWeighting

# About 20 MB of activations are kept of an optimizer whose coordinates cannot be cut into blocks.
_KEPT_COORDINATE_STEPS = 2**14


class MetaGradient(eqx.Module):
    """The result of `meta_gradient`.

    `losses` are f(θ_t) at the window's steps (and after it, with `include_final_loss`), `meta_loss` what the
    weighting makes of them, `grads` has the structure of the optimizer (its other leaves are `None`),
    `params` and `state` stand at the end of the window.
    """

    losses: Float[Array, " losses"]
    meta_loss: Scalar
    grads: PyTree
    params: Params
    state: State


class BatchMetaGradient(eqx.Module):
    """The same for a batch of objectives: `grads` and `meta_loss` are means over them."""

    losses: Float[Array, "losses objectives"]
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
    detach_state: bool = False,
    include_final_loss: bool = False,
    activations: Activations = "auto",
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
    - `detach_state`: takes the optimizer's state for a constant at every step, as the thesis's released
        code does; otherwise it is backpropagated through from the window's start on.
    - `include_final_loss`: adds the loss f(θ_{T+1}) after the last update, which is then trained, too; as in the
        code of Andrychowicz et al.
    - `activations`: of the optimizer, for the reverse pass: `"keep"` those of the first pass, in memory for
        all coordinates and steps, or `"recompute"` them, for one block of coordinates after the other or,
        where coordinates are not independent, step by step. `"auto"` keeps few and recomputes many.

    **Returns:** a `MetaGradient`.

    **Raises:** `ValueError` for an empty window, for an unknown order or kind of activations, or if those
    of second order are to be recomputed.

    Reference: thesis eq. 3.5 to 3.8.
    """
    length = _super_epoch_length(window, start, num_steps) + include_final_loss
    check_order("meta_gradient", order, activations)
    # Numbers as arrays, so that another window of the same super epoch is the same program.
    start, length = jnp.asarray(start), jnp.asarray(length)
    return _meta_gradient(
        optimizer,
        objective,
        params,
        state,
        window=window,
        start=start,
        num_steps=length,
        weighting=weighting,
        key=key,
        order=order,
        detach_state=detach_state,
        include_final_loss=include_final_loss,
        activations=activations,
    )


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
    detach_state: bool = False,
    include_final_loss: bool = False,
    activations: Activations = "auto",
) -> BatchMetaGradient:
    """`meta_gradient` of the mean meta-loss over a batch of objectives; every leaf has that axis."""

    def meta_loss_of(losses):
        return mean_meta_loss(weighting, losses, start, num_steps)

    def run(optimizer, state):
        *end, record = run_steps(
            optimizer,
            objectives,
            params,
            state,
            window,
            start=start,
            keys=keys,
            order=order,
            detach_state=detach_state,
        )
        if include_final_loss:
            losses, grads = losses_and_grads(objectives, end[0], start + window, keys, order=order)
            last = Record(*add_axis((losses, lay_out(optimizer, state, grads))))
            record = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), record, last)
        return *end, record

    if activations == "auto":
        num_coordinates = own_coordinates(params, objectives.coordinate_axis)
        kept = kept_by_default(optimizer, window, num_coordinates)
        activations = "keep" if kept else "recompute"
    if order == "second" or activations == "keep":

        @eqx.filter_value_and_grad(has_aux=True)
        def in_one_pass(optimizer):
            params, end, record = run(optimizer, uncut(state))
            return meta_loss_of(record.losses), (params, cut_like(end, state), record)

        (meta_loss, (*end, record)), grads = in_one_pass(optimizer)
        if (axis := objectives.coordinate_axis) is not None:
            # Where the updates of all devices are gathered, every device has added all of their cotangents.
            grads = lax.pmean(grads, axis)
    else:
        *end, record = run(optimizer, state)
        meta_loss, weights = jax.value_and_grad(meta_loss_of)(record.losses)
        grads = replay(optimizer, params, state, record.grads, weights, detach_state=detach_state)
    meta_loss, grads = objectives.mean_over_devices((meta_loss, grads))
    return BatchMetaGradient(record.losses, meta_loss, grads, *end)


def kept_by_default(optimizer: AbstractOptimizer, window: int, num_coordinates: int) -> bool:
    """Whether activations of so many coordinates on one device are kept if nothing else is said.

    For a single block recomputing saves no memory; several are faster one after the other
    (docs/performance.md). Without blocks memory is what counts.
    """
    if has_only_blocks(optimizer):
        return num_coordinates <= default_block_size()
    return window * num_coordinates <= _KEPT_COORDINATE_STEPS


def check_order(where: str, order: Order, activations: Activations) -> None:
    """Refuses unknown or contradictory settings of a meta-gradient, in the name of `where`."""
    if order not in ("first", "second"):
        raise ValueError(f"`{where}(order={order!r})`: the orders are 'first' and 'second'.")
    if activations not in ("auto", "keep", "recompute"):
        raise ValueError(
            f"`{where}(activations={activations!r})`: activations can be 'auto', 'keep' and 'recompute'."
        )
    if order == "second" and activations == "recompute":
        raise ValueError(
            f"`{where}(order='second', activations='recompute')`: only a first-order meta-gradient can "
            "recompute activations. Take activations='auto' or order='first'."
        )


def mean_meta_loss(
    weighting: AbstractWeighting,
    losses: Float[Array, "losses objectives"],
    start: StepNumber,
    num_steps: StepNumber,
) -> Scalar:
    """The mean over the objectives of what the weighting makes of their losses."""
    return jnp.mean(jax.vmap(lambda x: weighting(x, start, num_steps), in_axes=1)(losses))


def _super_epoch_length(window: int, start: StepNumber, num_steps: int | None) -> StepNumber:
    if window < 1:
        raise ValueError(f"`meta_gradient(window=...)` needs at least one step. Got window={window}.")
    return start + window if num_steps is None else num_steps


@eqx.filter_jit
def _recorded_meta_gradient(optimizer, grads, losses, params, state, start, length, weighting):
    weights = jax.grad(lambda x: weighting(x, start, length))(losses)
    params = add_axis(params)
    state = to_batched_state(optimizer, state, params)
    record = jax.vmap(lambda g: lay_out(optimizer, state, add_axis(g)))(grads)
    return replay(optimizer, params, state, record, weights[:, None])


@eqx.filter_jit
def _meta_gradient(optimizer, objective, params, state, *, key, **settings):
    params = add_axis(params)
    result = batch_meta_gradient(
        optimizer,
        as_batch(objective),
        params,
        to_batched_state(optimizer, state, params),
        keys=key[None],
        **settings,
    )
    return MetaGradient(
        result.losses[:, 0],
        result.meta_loss,
        result.grads,
        drop_axis(result.params),
        from_batched_state(optimizer, result.state, params),
    )
