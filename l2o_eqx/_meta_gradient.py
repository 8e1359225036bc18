import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from ._engine._inner import Record, as_batch
from ._engine._layout import add_axis, drop_axis, from_batched_state, to_batched_state
from ._errors import ArgumentError
from ._types import Params, Scalar, State, StepNumber
from .estimators import AbstractEstimator, Auto, Health, Recorded, Taken, Window
from .objectives import AbstractObjective, ObjectiveBatch
from .optimizers import AbstractOptimizer
from .weightings import AbstractWeighting

# What an estimator draws with is folded out of the super epoch's key with a number that no step has.
_ESTIMATOR = 2**31 - 4


class MetaGradient(eqx.Module):
    """The result of `meta_gradient`.

    `losses` are f(θ_t) at the window's steps (and after it, with `include_final_loss`), `meta_loss` what the
    weighting makes of them, `grads` has the structure of the optimizer (its other leaves are `None`),
    `params`, `state` and `objective_state` (that of the objective, if it has any) stand at the end of the
    window.
    """

    losses: Float[Array, " losses"]
    meta_loss: Scalar
    grads: PyTree
    params: Params
    state: State
    objective_state: State = None


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
    estimator: AbstractEstimator | None = None,
    include_final_loss: bool = False,
    objective_state: State = None,
) -> MetaGradient:
    """Runs a window of inner steps, and differentiates its meta-loss with respect to the meta-parameters.

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
    - `estimator`: how the gradient is got; by default `estimators.Auto()`, of first order as in the paper and
        the thesis. `estimators.Auto(())` gives the true gradient.
    - `include_final_loss`: adds the loss f(θ_{T+1}) after the last update, which is then trained, too; as in
        the code of Andrychowicz et al.
    - `objective_state`: where an objective with a state of its own stands; by default at
        `objective.init_state(key)`. It is a constant at every step.

    **Returns:** a `MetaGradient`.

    **Raises:** `ValueError` for an empty window.

    Reference: thesis eq. 3.5 to 3.8.
    """
    length = _super_epoch_length(window, start, num_steps) + include_final_loss
    # Numbers as arrays, so that another window of the same super epoch is the same program.
    return _meta_gradient(
        optimizer,
        objective,
        params,
        state,
        jnp.asarray(start),
        jnp.asarray(length),
        weighting,
        key,
        Auto() if estimator is None else estimator,
        window,
        include_final_loss,
        objective_state,
    )


def recorded_meta_gradient(
    optimizer: AbstractOptimizer,
    grads: PyTree,
    losses: Float[ArrayLike, " window"] | Sequence[Float[ArrayLike, ""]],
    params: PyTree,
    state: State = None,
    *,
    start: StepNumber = 0,
    num_steps: int | None = None,
    weighting: AbstractWeighting,
) -> PyTree:
    """The first-order meta-gradient from a record of gradients and losses, wherever they come from.

    The objective may live outside JAX: whoever can hand over ∇f(θ_t) and f(θ_t) along a window can train
    an optimizer. Gradients, losses and params may be arrays of NumPy, or what NumPy takes for them, such as
    PyTorch's tensors in main memory.

    **Arguments:**

    - `optimizer`: with the meta-parameters to differentiate by.
    - `grads`: ∇f at each step of the window: a tree like `params` with the steps on a leading axis, or a
        list of trees like `params`.
    - `losses`: f at each step.
    - `params`, `state`: the point and the optimizer's state at the start of the window; by default the state
        before the first step.
    - `start`, `num_steps`, `weighting`: as in `meta_gradient`.

    **Returns:** the meta-gradient, with the structure of the optimizer.

    **Raises:** `ValueError` if gradients and losses disagree about the number of steps, or gradients are
    neither a tree like the params nor a list of these.
    """
    params = jax.tree.map(_as_array, params)
    losses = _as_array([np.asarray(x) for x in losses] if isinstance(losses, list | tuple) else losses)
    grads = _stacked(grads, params)
    if state is None:
        state = optimizer.init(params) if num_steps is None else optimizer.init_for(params, num_steps)
    window = losses.shape[0]
    steps = sorted({g.shape[0] for g in jax.tree.leaves(grads)} | {window})
    if len(steps) > 1:
        raise ArgumentError(
            "`recorded_meta_gradient`: gradients and losses must have the same number of steps on their "
            f"leading axis. Got {steps}.",
            argument="losses",
            given=window,
        )
    length = _super_epoch_length(window, start, num_steps)
    start, length = jnp.asarray(start), jnp.asarray(length)
    return _recorded_meta_gradient(optimizer, grads, losses, params, state, start, length, weighting)


def _as_array(x: Any) -> Array:
    return x if isinstance(x, jax.Array) else jnp.asarray(np.asarray(x))


def _stacked(grads: PyTree, params: Params) -> PyTree[Float[Array, "window ..."]]:
    like = jax.tree.structure(params)
    if jax.tree.structure(grads) == like:
        return jax.tree.map(_as_array, grads)
    if isinstance(grads, list | tuple) and all(jax.tree.structure(g) == like for g in grads):
        return jax.tree.map(lambda *steps: jnp.stack([_as_array(x) for x in steps]), *grads)
    raise ArgumentError(
        "`recorded_meta_gradient(grads=...)` must be a tree like the params with the steps on a leading "
        f"axis, or a list of trees like the params, {like}. Got {jax.tree.structure(grads)}.",
        argument="grads",
        given=grads,
    )


def _super_epoch_length(window: int, start: StepNumber, num_steps: int | None) -> StepNumber:
    if window < 1:
        raise ArgumentError(
            f"`meta_gradient(window=...)` needs at least one step. Got window={window}.",
            argument="window",
            given=window,
        )
    return start + window if num_steps is None else num_steps


@eqx.filter_jit
def _meta_gradient(
    optimizer,
    objective,
    params,
    state,
    start,
    num_steps,
    weighting,
    key,
    estimator,
    length,
    include_final_loss,
    objective_state,
):
    params = add_axis(params)
    states = add_axis(objective.init_state(key) if objective_state is None else objective_state)
    state = to_batched_state(optimizer, state, params).with_objectives(states)
    window = _window_of_one(as_batch(objective), params, state, start, num_steps, key, length)
    window = dataclasses.replace(window, include_final_loss=include_final_loss)
    drawn = jr.fold_in(key, _ESTIMATOR)
    before = estimator.init(optimizer, window, key=drawn)
    result, _ = estimator.estimate(optimizer, window, weighting, before, key=drawn)
    return MetaGradient(
        result.losses[:, 0],
        result.meta_loss,
        result.grads,
        drop_axis(result.params),
        from_batched_state(result.state),
        drop_axis(result.state.of_objectives),
    )


@eqx.filter_jit
def _recorded_meta_gradient(optimizer, grads, losses, params, state, start, num_steps, weighting):
    params = add_axis(params)
    state = to_batched_state(optimizer, state, params)
    laid_out = jax.vmap(lambda g: state.layout.lay_out(add_axis(g)))(grads)
    # There is no objective, and it is not asked; nor is a key.
    nothing = ObjectiveBatch(None, None)
    key = jr.key(0)
    window = _window_of_one(nothing, params, state, start, num_steps, key, len(losses))
    record = Record(losses[:, None], laid_out, jnp.ones(1, bool))
    window = dataclasses.replace(window, taken=Taken(record))
    return Recorded().estimate(optimizer, window, weighting, None, key=key)[0].grads


def _window_of_one(objectives, params, state, start, num_steps, key, length):
    # The first loss of the super epoch is not known.
    health = Health(jnp.ones(1, bool), jnp.full(1, jnp.nan))
    return Window(objectives, params, state, start, num_steps, key[None], health, length)
