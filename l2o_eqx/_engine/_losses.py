"""What an objective answers at a point: its loss, gradient and next state, with derivatives for training."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .._misc import at_least_float32, cast_like
from .._types import Keys, Params, Scalar, State, StepNumber
from ..objectives import ObjectiveBatch
from ..objectives._base import check_loss

# Losses and gradients beyond this count as not finite where an optimizer is trained: their squares overflow.
_LARGEST = {4: 2.0**63, 8: 2.0**511}
GRADS = "grads"
"""The name under which the gradients are kept where all else is computed again in a reverse pass."""


def losses_and_grads(
    objectives: ObjectiveBatch,
    params: Params,
    step: StepNumber,
    keys: Keys,
    states: State = None,
    *,
    outer: bool = False,
) -> tuple[Float[Array, " objectives"], Params, State]:
    """f and ∇f of every objective at its params, or the outer loss and its gradient; and the next states.

    The losses are float32 at least, the gradients have the dtypes of the params. To derivatives states are
    constants.

    **Arguments:**

    - `states`: of the objectives, if they have any; the outer loss leaves them as they are.
    """
    states = lax.stop_gradient(states)

    def one(own, state, params, key):
        function = loss_function(objectives, own, state, step, key, outer=outer)
        (loss, state), grads = jax.value_and_grad(function, has_aux=True)(params)
        return at_least_float32(loss), grads, state

    losses, grads, states = jax.vmap(one)(objectives.own, states, params, keys)
    return losses, grads, lax.stop_gradient(states)


def outer_losses(
    objectives: ObjectiveBatch, params: Params, step: StepNumber, keys: Keys, states: State = None
) -> Float[Array, " objectives"]:
    """The outer loss of every objective at its params; arguments as in `losses_and_grads`."""

    def one(own, state, params, key):
        return at_least_float32(loss_function(objectives, own, state, step, key, outer=True)(params)[0])

    return jax.vmap(one)(objectives.own, states, params, keys)


def loss_function(
    objectives: ObjectiveBatch,
    own: PyTree,
    state: State,
    step: StepNumber,
    key: PRNGKeyArray,
    *,
    outer: bool = False,
) -> Callable[[Params], tuple[Scalar, State]]:
    """`params -> (f(params), next state)` of one objective at a step, or the outer loss."""
    objective = objectives.select(own, state)
    name = type(objective).__name__

    def function(params):
        if outer:
            return check_loss(f"`{name}.outer_loss`", objective.outer_loss(params, step, key)), state
        if state is None:
            return check_loss(f"`{name}.loss`", objective.loss(params, step, key)), None
        loss, new = objective.loss_and_state(params, step, key)
        if jax.tree.structure(new) != jax.tree.structure(state):
            raise ValueError(
                f"`{name}.loss_and_state` must return a state of the structure that it had, "
                f"{jax.tree.structure(state)}. Got {jax.tree.structure(new)}."
            )
        return check_loss(f"`{name}.loss_and_state`", loss), cast_like(new, state)

    return function


def differentiable_losses_and_grads(
    objectives: ObjectiveBatch,
    params: Params,
    step: StepNumber,
    keys: Keys,
    constants: frozenset[str],
    states: State = None,
    *,
    outer: bool = False,
    forward: bool = False,
) -> tuple[Float[Array, " objectives"], Params, State, Bool[Array, " objectives"]]:
    """The same for training: with derivatives, and whether they are finite.

    If `"grads"` are among the `constants`, f is linear in the params to derivatives and ∇f a constant, so
    that no objective is differentiated a second time. If not, the cotangents w of f and v of ∇f make
    w·∇f + Hv: the gradients of the first pass, and one Hessian-vector product. Nothing of the objective's
    own activations is kept. An objective that is not finite has the derivative zero.

    With `forward`, derivatives are those of forward mode, which needs no rule of its own.
    """
    if forward:
        losses, grads, states = losses_and_grads(objectives, params, step, keys, states, outer=outer)
        fixed = lax.stop_gradient((losses, grads))
        sound = is_sound(*lax.optimization_barrier(fixed))
        return losses, fixed[1] if "grads" in constants else grads, states, sound
    evaluate = _evaluate_first if "grads" in constants else _evaluate_second
    losses, grads, states, sound = evaluate(params, objectives, step, keys, lax.stop_gradient(states), outer)
    return losses, grads, lax.stop_gradient(states), sound


def _evaluate(params, objectives, step, keys, states, outer):
    losses, grads, states = losses_and_grads(objectives, params, step, keys, states, outer=outer)
    # What the reverse pass needs is kept under this name, should all else be computed again.
    grads = jax.tree.map(lambda g: checkpoint_name(g, GRADS), grads)
    return losses, grads, states, is_sound(*lax.optimization_barrier((losses, grads)))


def _make_evaluate(second: bool):
    @eqx.filter_custom_vjp
    def evaluate(params, objectives, step, keys, states, outer):
        return _evaluate(params, objectives, step, keys, states, outer)

    @evaluate.def_fwd
    def forward(perturbed, params, objectives, step, keys, states, outer):
        del perturbed
        losses, grads, after, sound = _evaluate(params, objectives, step, keys, states, outer)
        return (losses, grads, after, sound), (grads, sound)

    @evaluate.def_bwd
    def backward(kept, cotangents, perturbed, params, objectives, step, keys, states, outer):
        del perturbed
        grads, sound = kept
        weights, directions, *_ = cotangents
        result = jax.tree.map(jnp.zeros_like, params)
        if weights is not None:
            grads = select(sound, grads, 0.0)
            result = jax.tree.map(lambda g: scaled(weights, g).astype(g.dtype), grads)
        if second and any(d is not None for d in jax.tree.leaves(directions)):
            products = _hessian_products(objectives, params, directions, step, keys, states, outer)
            result = jax.tree.map(jnp.add, result, select(sound, products, 0.0))
        return result

    return evaluate


_evaluate_first = _make_evaluate(second=False)
_evaluate_second = _make_evaluate(second=True)


def _hessian_products(objectives, params, directions, step, keys, states, outer):
    """Hv of every objective: the derivative of ∇f along v, of the cost of two gradients."""

    def filled(param, direction):
        return jnp.zeros_like(param) if direction is None and param is not None else direction

    directions = jax.tree.map(filled, params, directions, is_leaf=lambda x: x is None)

    def one(own, state, params, direction, key):
        function = loss_function(objectives, own, state, step, key, outer=outer)
        grad = jax.grad(lambda p: function(p)[0])
        return jax.jvp(grad, (params,), (direction,))[1]

    return jax.vmap(one)(objectives.own, states, params, directions, keys)


def is_sound(losses: Float[Array, " objectives"], grads: PyTree[Array]) -> Bool[Array, " objectives"]:
    """Whether an objective's loss and gradient are finite, and so are their squares."""

    def small(x):
        limit = _LARGEST.get(x.dtype.itemsize, jnp.inf)
        largest = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), initial=0)
        return (largest <= limit) & jnp.isfinite(largest)

    return functools.reduce(jnp.logical_and, map(small, jax.tree.leaves(grads)), small(losses))


def select(
    sound: Bool[Array, " objectives"], tree: PyTree[Array], otherwise: float | PyTree[Array]
) -> PyTree[Array]:
    """`tree`, but a constant, or another tree, for objectives that are not sound."""
    if isinstance(otherwise, float):
        return jax.tree.map(lambda x: jnp.where(_along(sound, x), x, otherwise), tree)
    return jax.tree.map(lambda x, y: jnp.where(_along(sound, x), x, y), tree, otherwise)


def _along(row, like):
    return row.reshape(row.shape + (1,) * (like.ndim - 1))


def scaled(row: Float[Array, " axis"], rows: Float[Array, "axis ..."]) -> Float[Array, "axis ..."]:
    """Every one of `rows` times its number in `row`, in at least float32: narrow ones would overflow."""
    rows = at_least_float32(rows)
    return _along(row.astype(rows.dtype), rows) * rows
