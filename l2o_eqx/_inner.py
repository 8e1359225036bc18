"""Inner optimization steps for a batch of objectives: the only place where gradients are taken."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, PyTree

from ._layout import BatchState, batched_update
from ._types import Keys, Params, StepNumber
from .objectives import AbstractObjective, ObjectiveBatch
from .optimizers import AbstractLayout, AbstractOptimizer, Seen

# Losses and gradients beyond this count as not finite where an optimizer is trained: their squares overflow.
_LARGEST = {4: 2.0**63, 8: 2.0**511}
_GRADS = "grads"
# What an optimizer draws with is folded out of an objective's key with a number that no step has.
_DRAWS = 2**31 - 6

FIRST_ORDER = frozenset({"grads", "params", "value"})
"""What a first-order meta-gradient takes for constants: all that the optimizer is shown."""


class Record(eqx.Module):
    """What a number of inner steps leave behind, the steps on the leading axis.

    The gradients are laid out as the optimizer was shown them. `sound` tells which objectives had finite
    losses and gradients all along; only training asks, for all others it is true. `outer` are the outer
    losses and their gradients, if they are others.
    """

    losses: Float[Array, "steps objectives"]
    grads: PyTree[Float[Array, "..."]]
    sound: Bool[Array, " objectives"]
    outer: tuple[Float[Array, "steps objectives"], PyTree[Float[Array, "..."]]] | None = None

    @property
    def weighed(self) -> Float[Array, "steps objectives"]:
        """The losses that a weighting weighs."""
        return self.losses if self.outer is None else self.outer[0]

    def with_weighed(self, losses: Float[Array, "steps objectives"]) -> "Record":
        """The same with other losses to be weighed, to differentiate by."""
        if self.outer is None:
            return dataclasses.replace(self, losses=losses)
        return dataclasses.replace(self, outer=(losses, self.outer[1]))

    @property
    def slopes(self) -> PyTree[Float[Array, "..."]]:
        """The gradients of these losses."""
        return self.grads if self.outer is None else self.outer[1]


def as_batch(objective: AbstractObjective) -> ObjectiveBatch:
    """A batch of one; nothing is copied."""
    own, shared = eqx.partition(objective, False)
    return ObjectiveBatch(own, shared)


def init_params(objectives: ObjectiveBatch, keys: Keys) -> Params:
    """A starting point for every objective."""
    return jax.vmap(lambda own, key: objectives.select(own).init(key))(objectives.own, keys)


def losses_and_grads(
    objectives: ObjectiveBatch, params: Params, step: StepNumber, keys: Keys, *, outer: bool = False
) -> tuple[Float[Array, " objectives"], Params]:
    """f and ∇f of every objective at its params, or the outer loss and its gradient."""

    def one(own, params, key):
        return jax.value_and_grad(_loss_of(objectives.select(own), outer))(params, step, key)

    return jax.vmap(one)(objectives.own, params, keys)


def _loss_of(objective, outer):
    return objective.outer_loss if outer else objective.loss


def differentiable_losses_and_grads(
    objectives: ObjectiveBatch,
    params: Params,
    step: StepNumber,
    keys: Keys,
    constants: frozenset[str],
    *,
    outer: bool = False,
    forward: bool = False,
) -> tuple[Float[Array, " objectives"], Params, Bool[Array, " objectives"]]:
    """The same for training: with derivatives, and whether they are finite.

    If `"grads"` are among the `constants`, f is linear in the params to derivatives and ∇f a constant, so
    that no objective is differentiated a second time. If not, the cotangents w of f and v of ∇f make
    w·∇f + Hv: the gradients of the first pass, and one Hessian-vector product. Nothing of the objective's
    own activations is kept. An objective that is not finite has the derivative zero.

    With `forward`, derivatives are those of forward mode, which needs no rule of its own.
    """
    if forward:
        losses, grads = losses_and_grads(objectives, params, step, keys, outer=outer)
        fixed = lax.stop_gradient((losses, grads))
        sound = is_sound(*lax.optimization_barrier(fixed))
        return losses, fixed[1] if "grads" in constants else grads, sound
    evaluate = _evaluate_first if "grads" in constants else _evaluate_second
    return evaluate(params, objectives, step, keys, outer)


def _evaluate(params, objectives, step, keys, outer):
    losses, grads = losses_and_grads(objectives, params, step, keys, outer=outer)
    # What the reverse pass needs is kept under this name, should all else be computed again.
    grads = jax.tree.map(lambda g: checkpoint_name(g, _GRADS), grads)
    return losses, grads, is_sound(*lax.optimization_barrier((losses, grads)))


def _make_evaluate(second: bool):
    @eqx.filter_custom_vjp
    def evaluate(params, objectives, step, keys, outer):
        return _evaluate(params, objectives, step, keys, outer)

    @evaluate.def_fwd
    def forward(perturbed, params, objectives, step, keys, outer):
        del perturbed
        losses, grads, sound = _evaluate(params, objectives, step, keys, outer)
        return (losses, grads, sound), (grads, sound)

    @evaluate.def_bwd
    def backward(kept, cotangents, perturbed, params, objectives, step, keys, outer):
        del perturbed
        grads, sound = kept
        weights, directions, _ = cotangents
        result = jax.tree.map(jnp.zeros_like, params)
        if weights is not None:
            grads = select(sound, grads, 0.0)
            result = jax.tree.map(lambda g: _along(weights.astype(g.dtype), g) * g, grads)
        if second and any(d is not None for d in jax.tree.leaves(directions)):
            products = _hessian_products(objectives, params, directions, step, keys, outer)
            result = jax.tree.map(jnp.add, result, select(sound, products, 0.0))
        return result

    return evaluate


_evaluate_first = _make_evaluate(second=False)
_evaluate_second = _make_evaluate(second=True)


def _hessian_products(objectives, params, directions, step, keys, outer):
    """Hv of every objective: the derivative of ∇f along v, of the cost of two gradients."""

    def filled(param, direction):
        return jnp.zeros_like(param) if direction is None and param is not None else direction

    directions = jax.tree.map(filled, params, directions, is_leaf=lambda x: x is None)

    def one(own, params, direction, key):
        grad = jax.grad(_loss_of(objectives.select(own), outer))
        return jax.jvp(lambda p: grad(p, step, key), (params,), (direction,))[1]

    return jax.vmap(one)(objectives.own, params, directions, keys)


def is_sound(losses: Float[Array, " objectives"], grads: PyTree[Array]) -> Bool[Array, " objectives"]:
    """Whether an objective's loss and gradient are finite, and so are their squares."""

    def small(x):
        limit = _LARGEST.get(x.dtype.itemsize, jnp.inf)
        largest = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), initial=0)
        return (largest <= limit) & jnp.isfinite(largest)

    return functools.reduce(jnp.logical_and, map(small, jax.tree.leaves(grads)), small(losses))


def select(sound: Bool[Array, " objectives"], tree: PyTree[Array], otherwise: float) -> PyTree[Array]:
    """`tree`, but a constant for objectives that are not sound."""
    return jax.tree.map(lambda x: jnp.where(_along(sound, x), x, otherwise), tree)


def _along(row, like):
    return row.reshape(row.shape + (1,) * (like.ndim - 1))


def run_steps(
    optimizer: AbstractOptimizer,
    objectives: ObjectiveBatch,
    params: Params,
    state: BatchState,
    num_steps: int,
    *,
    start: StepNumber,
    keys: Keys,
) -> tuple[Params, BatchState, Record]:
    """`num_steps` inner steps from step number `start` on; differentiable through everything.

    **Arguments:**

    - `keys`: one per objective for the whole super epoch.

    **Returns:** params and state after the last step, and the record.
    """

    def one_step(carry, step):
        params, state = carry
        losses, grads = losses_and_grads(objectives, params, step, keys)
        seen = show(optimizer, state.layout, state.layout.lay_out(grads), losses, step, keys)
        updates, state = batched_update(optimizer, seen, state, params)
        return (eqx.apply_updates(params, updates), state), (losses, seen.grads)

    steps = start + jnp.arange(num_steps)
    (params, state), (losses, grads) = lax.scan(one_step, (params, state), steps)
    return params, state, Record(losses, grads, jnp.ones(losses.shape[1:], bool))


def run_training_steps(
    optimizer: AbstractOptimizer,
    objectives: ObjectiveBatch,
    params: Params,
    state: BatchState,
    num_steps: int,
    *,
    start: StepNumber,
    keys: Keys,
    sound: Bool[Array, " objectives"],
    constants: frozenset[str],
    recompute: bool = False,
    forward: bool = False,
    include_final_loss: bool = False,
) -> tuple[Params, BatchState, Record]:
    """As `run_steps`, with derivatives of all but some `constants`, and with objectives that may fail.

    From where an objective is not finite on, the optimizer is shown ones, on which every optimizer is finite:
    nothing of it reaches what all objectives share if its losses have the weight zero.

    **Arguments:**

    - `sound`: which objectives have been finite so far.
    - `constants`: what of `"grads"`, `"params"`, `"value"` and the `"state"` derivatives stop at when the
        optimizer is shown it.
    - `recompute`: whether a reverse pass computes the optimizer's activations again, step by step, from
        the params, the states and the gradients.
    - `forward`: whether derivatives are taken in forward mode, instead of in reverse.
    - `include_final_loss`: whether the record has f and ∇f after the last update, too.
    """

    def shown(name, tree):
        return lax.stop_gradient(tree) if name in constants else tree

    def look(params, state, step, sound):
        losses, grads, fine = differentiable_losses_and_grads(
            objectives, params, step, keys, constants, forward=forward
        )
        sound, outer = sound & fine, None
        if objectives.has_outer_loss:
            outer, slopes, fine = differentiable_losses_and_grads(
                objectives, params, step, keys, FIRST_ORDER, outer=True, forward=forward
            )
            sound = sound & fine
            outer = (outer, state.layout.lay_out(select(sound, slopes, 1.0)))
        return losses, state.layout.lay_out(select(sound, grads, 1.0)), outer, sound

    def one_step(carry, step):
        params, state, sound = carry
        state = shown("state", state)
        losses, grads, outer, sound = look(params, state, step, sound)
        value = select(sound, shown("value", losses), 1.0)
        seen = show(optimizer, state.layout, grads, value, step, keys)
        point = select(sound, shown("params", params), 1.0)
        updates, state = batched_update(optimizer, seen, state, point, differentiable=recompute)
        params = eqx.apply_updates(params, updates)
        return (params, state, sound), (losses, grads, outer)

    if recompute:
        kept = jax.checkpoint_policies.save_only_these_names(_GRADS)
        one_step = jax.checkpoint(one_step, policy=kept, prevent_cse=False)
    steps = start + jnp.arange(num_steps)
    (params, state, sound), record = lax.scan(one_step, (params, state, sound), steps)
    if include_final_loss:
        *last, sound = look(params, state, start + num_steps, sound)
        record = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), record, tuple(last))
    losses, grads, outer = record
    return params, state, Record(losses, grads, sound, outer)


def show(
    optimizer: AbstractOptimizer,
    layout: AbstractLayout,
    grads: PyTree[Array],
    losses: Float[Array, " objectives"],
    step: StepNumber,
    keys: Keys,
) -> Seen:
    """What an optimizer is shown of a step: gradients that are laid out already, and what else it wants."""
    wanted = optimizer.wants()
    value = layout.lay_out_values(losses) if "value" in wanted else None
    if "key" not in wanted:
        return Seen(grads, value)
    drawn = jax.vmap(lambda key: jr.fold_in(jr.fold_in(key, _DRAWS), step))(keys)
    return Seen(grads, value, layout.lay_out_keys(drawn))


def show_again(
    optimizer: AbstractOptimizer, layout: AbstractLayout, record: Record, start: StepNumber, keys: Keys
) -> Seen:
    """The same for all steps of a record, from step `start` on, on a leading axis."""

    def one(grads, losses, step):
        return show(optimizer, layout, grads, select(record.sound, losses, 1.0), step, keys)

    return jax.vmap(one)(record.grads, record.losses, start + jnp.arange(len(record.losses)))
