import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._checks import check_sizes
from ._devices import Restarts
from ._engine._inner import init_params, init_states
from ._engine._losses import losses_and_grads
from ._errors import ArgumentError
from ._meta_step import init_meta_state
from ._misc import add_updates, at_least_float32, cast_like
from ._types import Params, Scalar
from .meta_optimizers import default_meta_optimizer
from .objectives import AbstractObjectiveFamily, sample_objectives
from .optimizers import AbstractOptimizer, Seen, as_optimizer, take_step


class ImitationSolution(eqx.Module):
    """The result of `imitate`.

    **Fields:**

    - `optimizer`: the trained optimizer; with `restarts`, a batch of them.
    - `losses`: before every update: the mean relative squared error of a window's updates. 1 is the error of
        an optimizer that never moves.
    """

    optimizer: AbstractOptimizer
    losses: Float[np.ndarray, "*restarts updates"]


def imitate(
    optimizer: AbstractOptimizer,
    baseline: AbstractOptimizer | optax.GradientTransformation,
    family: AbstractObjectiveFamily,
    *,
    num_steps: int = 100,
    window: int = 20,
    super_epochs: int = 20,
    num_objectives: int = 8,
    meta_optimizer: optax.GradientTransformation | None = None,
    restarts: int | None = None,
    key: PRNGKeyArray,
) -> ImitationSolution:
    """Trains an optimizer to do what another one does, along the other one's own trajectories.

    The baseline runs on objectives of the family; the optimizer is shown the same gradients at the same
    params, and its updates u are regressed to the baseline's u*: mean over steps and objectives of
    ‖u − u*‖² / ‖u*‖², with one update per window. A step where the baseline does not move does not count.

    Unlike `pretrain`, whose gradients are random, this teaches how a tuned baseline answers gradients as they
    come. It is a start for `meta_train`, which then improves on the baseline by itself: there is no
    imitation term with a weight that decays inside `meta_train`.

    **Arguments:**

    - `optimizer`: what to train; every floating-point array in it is a meta-parameter.
    - `baseline`: e.g. `optax.adam(0.01)`, tuned on the same family; it is not changed.
    - `family`: what it runs on.
    - `num_steps`: inner steps of a super epoch; those after its last full window are left out.
    - `window`: steps that one update sees; states are constants where it begins.
    - `super_epochs`: how many, each on new draws.
    - `num_objectives`: inner optimizations in parallel.
    - `meta_optimizer`: any optax transformation; by default Adam at 3e-3 after clipping at norm 1.
    - `restarts`: if given, `optimizer` is a batch of that many, each trained on its own draws.
    - `key`: the same key gives the same result.

    **Returns:** an `ImitationSolution`.

    **Raises:** `ValueError` for sizes below 1, a window longer than `num_steps`, or an optimizer without
    meta-parameters.

    Reference: T. Chen et al. 2020, "Training stronger baselines for learning to optimize"
    (arXiv:2010.09089), sec. 3.2.
    """
    meta_optimizer = _default_meta_optimizer() if meta_optimizer is None else meta_optimizer
    check_sizes(
        "imitate",
        num_steps=num_steps,
        window=window,
        super_epochs=super_epochs,
        num_objectives=num_objectives,
    )
    if window > num_steps:
        raise ArgumentError(
            f"`imitate(window={window})`: the window is longer than the super epoch of {num_steps} steps.",
            argument="window",
            given=window,
        )
    runs = Restarts.of("imitate", optimizer, restarts)
    start = init_meta_state(optimizer, meta_optimizer, restarts=restarts)
    settings = _Settings(num_steps, window, super_epochs, num_objectives, meta_optimizer, runs)
    trained, losses = _imitate(
        start.optimizer, start.meta_optimizer_state, as_optimizer(baseline), family, runs.keys(key), settings
    )
    return ImitationSolution(trained, np.asarray(losses))


class _Settings(NamedTuple):
    num_steps: int
    window: int
    super_epochs: int
    num_objectives: int
    meta_optimizer: optax.GradientTransformation
    runs: Restarts


def _default_meta_optimizer():
    return default_meta_optimizer(3e-3, normalization="clip", eps=1e-10)


def relative_error(updates: Params, targets: Params) -> Scalar:
    """‖u − u*‖² / ‖u*‖² over all coordinates; 0 where u* is zero."""
    square = _square(targets)
    moves = square > 0
    error = _square(jax.tree.map(lambda u, t: u - t, updates, targets))
    return jnp.where(moves, error / jnp.where(moves, square, 1.0), 0.0)


def _square(tree):
    return sum((jnp.sum(at_least_float32(x) ** 2) for x in jax.tree.leaves(tree)), jnp.zeros(()))


@eqx.filter_jit
def _imitate(optimizer, meta_state, baseline, family, keys, settings: _Settings):
    arrays, static = eqx.partition(optimizer, eqx.is_array)

    def train(arrays, meta_state, key):
        def super_epoch(carry, epoch):
            arrays, meta_state = carry
            optimizer = eqx.combine(arrays, static)
            optimizer, meta_state, losses = _super_epoch(
                optimizer, meta_state, baseline, family, jr.fold_in(key, epoch), settings
            )
            return (eqx.filter(optimizer, eqx.is_array), meta_state), losses

        epochs = jnp.arange(settings.super_epochs)
        (arrays, _), losses = lax.scan(super_epoch, (arrays, meta_state), epochs)
        return arrays, losses.reshape(-1)

    arrays, losses = settings.runs.over(train)(arrays, meta_state, keys)
    return eqx.combine(arrays, static), losses


def _super_epoch(optimizer, meta_state, baseline, family, key, settings):
    okeys, ikeys, lkeys = (jr.split(k, settings.num_objectives) for k in jr.split(key, 3))
    objectives = sample_objectives(family, okeys)
    params, states = init_params(objectives, ikeys), init_states(objectives, ikeys)
    arrays, static = eqx.partition(optimizer, eqx.is_array)

    def init(who):
        return jax.vmap(lambda p: who.init_for(p, settings.num_steps))(params)

    def train_window(carry, start):
        arrays, meta_state, params, state, theirs = carry
        optimizer = eqx.combine(arrays, static)
        steps = start + jnp.arange(settings.window)
        params, theirs, shown = _run_baseline(baseline, objectives, params, theirs, steps, lkeys)
        error = functools.partial(_error, state=state, shown=shown)
        (loss, state), grads = eqx.filter_value_and_grad(error, has_aux=True)(optimizer)
        meta_params = eqx.filter(optimizer, eqx.is_inexact_array)
        changes, meta_state = settings.meta_optimizer.update(grads, meta_state, meta_params)
        arrays = eqx.filter(eqx.apply_updates(optimizer, changes), eqx.is_array)
        return (arrays, meta_state, params, state, theirs), loss

    starts = settings.window * jnp.arange(settings.num_steps // settings.window)
    carry = (arrays, meta_state, params, init(optimizer), (init(baseline), states))
    (arrays, meta_state, *_), losses = lax.scan(train_window, carry, starts)
    return eqx.combine(arrays, static), meta_state, losses


def _run_baseline(baseline, objectives, params, state, steps, keys):
    # Its steps, and of each what the optimizer is shown (∇f and θ) and what it should answer.
    def one_step(carry, step):
        params, (state, states) = carry
        losses, grads, states = losses_and_grads(objectives, params, step, keys, states)
        seen = Seen(grads, losses, jax.vmap(lambda key: jr.fold_in(key, step))(keys))
        updates, state = _update_each(baseline, seen, state, params)
        return (add_updates(params, updates), (state, states)), (seen, params, updates)

    (params, state), shown = lax.scan(one_step, (params, state), steps)
    return params, state, shown


def _update_each(optimizer, seen, state, params):
    updates, new = jax.vmap(lambda *args: take_step(optimizer, *args))(seen, state, params)
    return updates, cast_like(new, state)


def _error(optimizer: AbstractOptimizer, state: PyTree, shown: PyTree) -> tuple[Float[Array, ""], PyTree]:
    def one_step(state, shown):
        seen, params, targets = shown
        updates, state = _update_each(optimizer, seen, state, params)
        return state, jnp.mean(jax.vmap(relative_error)(updates, targets))

    state, errors = lax.scan(one_step, state, shown)
    return jnp.mean(errors), state
