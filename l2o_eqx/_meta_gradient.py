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

The true, second-order gradient is got in that way, too, with one term more: a cotangent v of ∇f(θ_t) adds
H(θ_t)v to that of θ_t, one Hessian-vector product per step. Kept along the window are params, gradients and
the optimizer's states, O(T·N); the activations of the optimizer if they are few, else those of a single
step, computed again. Nothing is kept of the objective.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ._axis import mean_over
from ._inner import Record, as_batch, losses_and_grads_of_order, run_training_steps, select
from ._layout import add_axis, drop_axis, from_batched_state, to_batched_state
from ._misc import tree_norm
from ._replay import replay
from ._types import Activations, Keys, Order, Params, Scalar, State, StepNumber
from .objectives import AbstractObjective, ObjectiveBatch
from .optimizers import AbstractLayout, AbstractOptimizer, default_block_size, own_coordinates
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


class Health(eqx.Module):
    """What is remembered of every objective during a super epoch: whether it has been finite, and f(θ_1).

    NaN stands for a first loss that is not known: the window's own is taken.
    """

    sound: Bool[Array, " objectives"]
    first_losses: Float[Array, " objectives"]


class BatchMetaGradient(eqx.Module):
    """The same for a batch of objectives: `grads` and `meta_loss` are means over those that are finite."""

    losses: Float[Array, "losses objectives"]
    meta_loss: Scalar
    grads: PyTree
    params: Params
    state: State
    health: Health


def first_health(params: Params) -> Health:
    """Before the first window; `params` have the objectives axis."""
    count = jax.tree.leaves(params)[0].shape[0]
    return Health(jnp.ones(count, bool), jnp.full(count, jnp.nan))


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
        `"second"` keeps them: the true gradient, at one Hessian-vector product per step.
    - `detach_state`: takes the optimizer's state for a constant at every step, as the thesis's released
        code does; otherwise it is backpropagated through from the window's start on.
    - `include_final_loss`: adds the loss f(θ_{T+1}) after the last update, which is then trained, too; as in
        the code of Andrychowicz et al.
    - `activations`: of the optimizer, for the reverse pass: `"keep"` those of the first pass, in memory for
        all coordinates and steps, or `"recompute"` them, for one block of coordinates after the other or,
        where coordinates are not independent, step by step. `"auto"` keeps few and recomputes many.

    **Returns:** a `MetaGradient`.

    **Raises:** `ValueError` for an empty window, or for an unknown order or kind of activations.

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
    objective_clip: float | None = None,
    health: Health | None = None,
) -> BatchMetaGradient:
    """`meta_gradient` of the mean meta-loss over a batch of objectives; every leaf has that axis.

    Objectives that are not finite are left out of the mean. If none is left, it is NaN.

    **Arguments:**

    - `objective_clip`: largest norm of a single objective's meta-gradient; larger ones are scaled down to it
        before the mean is taken.
    - `health`: of the objectives so far; by default that of the first window.
    """
    health = first_health(params) if health is None else health
    settings = dict(
        window=window,
        start=start,
        num_steps=num_steps,
        weighting=weighting,
        order=order,
        detach_state=detach_state,
        include_final_loss=include_final_loss,
        activations=activations,
    )
    if objective_clip is None:
        result = _of_batch(optimizer, objectives, params, state, keys, health, **settings)
    else:
        result = _of_each(optimizer, objectives, params, state, keys, health, objective_clip, **settings)
    meta_loss, grads = objectives.mean_over_devices((result.meta_loss, result.grads))
    return eqx.tree_at(lambda r: (r.meta_loss, r.grads), result, (meta_loss, grads))


def _of_batch(
    optimizer,
    objectives,
    params,
    state,
    keys,
    health,
    *,
    window,
    start,
    num_steps,
    weighting,
    order,
    detach_state,
    include_final_loss,
    activations,
):
    def meta_loss_of(record):
        first = jnp.where(jnp.isnan(health.first_losses), record.losses[0], health.first_losses)
        later = Health(record.sound, first)
        return mean_meta_loss(weighting, record.losses, start, num_steps, later, objectives), later

    def run(optimizer, state, recompute):
        *end, record = run_training_steps(
            optimizer,
            objectives,
            params,
            state,
            window,
            start=start,
            keys=keys,
            sound=health.sound,
            order=order,
            detach_state=detach_state,
            recompute=recompute,
        )
        if include_final_loss:
            losses, grads, fine = losses_and_grads_of_order(objectives, end[0], start + window, keys, order)
            sound = record.sound & fine
            grads = state.layout.lay_out(select(sound, grads, 1.0))
            more = (losses, grads)
            losses, grads = jax.tree.map(
                lambda x, y: jnp.concatenate([x, y[None]]), (record.losses, record.grads), more
            )
            record = Record(losses, grads, sound)
        return *end, record

    if activations == "auto":
        num_coordinates = own_coordinates(params, objectives.coordinate_axis)
        kept = kept_by_default(state.layout, window, num_coordinates)
        activations = "keep" if kept else "recompute"
    recompute = activations == "recompute"
    if order == "second" or not recompute:

        @eqx.filter_value_and_grad(has_aux=True)
        def in_one_pass(optimizer):
            params, end, record = run(optimizer, state if recompute else state.uncut(), recompute)
            meta_loss, later = meta_loss_of(record)
            end = end if recompute else state.cut(end)
            return meta_loss, (params, end, record.losses, later)

        (meta_loss, (*end, losses, later)), grads = in_one_pass(optimizer)
        # Where the updates of all devices are gathered, every device has added all of their cotangents.
        grads = mean_over(grads, objectives.coordinate_axis)
    else:
        *end, record = run(optimizer, state, False)
        losses = record.losses

        @functools.partial(jax.value_and_grad, has_aux=True)
        def of_losses(losses):
            return meta_loss_of(Record(losses, record.grads, record.sound))

        (meta_loss, later), weights = of_losses(losses)
        shown = select(record.sound, params, 1.0)
        grads = replay(optimizer, shown, state, record.grads, weights, detach_state=detach_state)
    params, state = end
    return BatchMetaGradient(losses, meta_loss, grads, params, state, later)


def _of_each(optimizer, objectives, params, state, keys, health, objective_clip, **settings):
    """Every objective's meta-gradient by itself, clipped, and their mean."""

    def one(own, params, state, key, health):
        result = _of_batch(
            optimizer,
            ObjectiveBatch(add_axis(own), objectives.shared),
            add_axis(params),
            state,
            key[None],
            add_axis(health),
            **settings,
        )
        # NaN of an objective that failed.
        kept = result.health.sound[0]
        grads = jax.tree.map(lambda g: jnp.where(kept, g, 0), result.grads)
        scale = jnp.minimum(1.0, objective_clip / jnp.maximum(tree_norm(grads), objective_clip))
        grads = jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads)
        meta_loss = jnp.where(kept, result.meta_loss, 0)
        return eqx.tree_at(lambda r: (r.meta_loss, r.grads), result, (meta_loss, grads))

    states = state.each()
    result = jax.vmap(one)(objectives.own, params, states, keys, health)
    count = _count_sound(result.health.sound[:, 0], objectives)
    meta_loss, grads = jax.tree.map(lambda x: jnp.sum(x, 0) / count, (result.meta_loss, result.grads))
    end = state.together(result.state)
    losses = jnp.moveaxis(result.losses[..., 0], 0, -1)
    params, health = jax.tree.map(lambda x: x[:, 0], (result.params, result.health))
    return BatchMetaGradient(losses, meta_loss, grads, params, end, health)


def kept_by_default(layout: AbstractLayout, window: int, num_coordinates: int) -> bool:
    """Whether activations of so many coordinates on one device are kept if nothing else is said.

    For a single block recomputing saves no memory; several are faster one after the other
    (docs/performance.md). Without blocks memory is what counts.
    """
    if layout.coordinates_apart:
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


def check_objective_clip(where: str, objective_clip: float | None) -> None:
    """Refuses a norm that is not positive, in the name of `where`."""
    if objective_clip is not None and not objective_clip > 0:
        raise ValueError(
            f"`{where}(objective_clip={objective_clip})`: the largest norm must be above 0, or None."
        )


def mean_meta_loss(
    weighting: AbstractWeighting,
    losses: Float[Array, "losses objectives"],
    start: StepNumber,
    num_steps: StepNumber,
    health: Health,
    objectives: ObjectiveBatch,
) -> Scalar:
    """The mean over sound objectives of what the weighting makes of their losses; NaN if there are none."""
    count = _count_sound(health.sound, objectives)
    # If none is sound, the weights of all losses are NaN, and with them the whole meta-gradient: zeros would
    # be followed by a meta-optimizer that has momentum. (XLA makes 0/0 of a truth value zero.)
    shares = jnp.where(count == 0, jnp.nan, health.sound / count)
    usable = jnp.where(health.sound | (count == 0), losses, 1)
    first = jnp.where(health.sound, health.first_losses, 1)

    def weigh(losses, first):
        return weighting.of(losses, start, num_steps, lax.stop_gradient(first))

    meta_losses = jax.vmap(weigh, in_axes=(1, 0))(usable, first)
    return jnp.sum(meta_losses * shares)


def _count_sound(sound, objectives):
    # On the average of all devices, over whose results the mean is taken afterwards.
    return objectives.mean_over_devices(jnp.sum(sound).astype(jnp.result_type(float)))


def _super_epoch_length(window: int, start: StepNumber, num_steps: int | None) -> StepNumber:
    if window < 1:
        raise ValueError(f"`meta_gradient(window=...)` needs at least one step. Got window={window}.")
    return start + window if num_steps is None else num_steps


@eqx.filter_jit
def _recorded_meta_gradient(optimizer, grads, losses, params, state, start, length, weighting):
    weights = jax.grad(lambda x: weighting(x, start, length))(losses)
    params = add_axis(params)
    state = to_batched_state(optimizer, state, params)
    record = jax.vmap(lambda g: state.layout.lay_out(add_axis(g)))(grads)
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
        from_batched_state(result.state),
    )
