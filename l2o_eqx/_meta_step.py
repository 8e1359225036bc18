"""One super epoch of meta-training as one compiled program, on all the devices there are."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ._devices import Placement, Restarts, place
from ._errors import ArgumentError, UntrainedNumberWarning
from ._past import Past
from ._snapshots import Average, Snapshot
from ._types import Keys, State
from ._zero_gradients import nonzero
from .objectives import AbstractObjectiveFamily, count_coordinates, params_shapes, sample_objectives
from .optimizers import AbstractOptimizer, default_block_size
from .strategies import AbstractUpdateStrategy, EveryWindow
from .weightings import AbstractWeighting

# Far from the numbers of draws made with the key of a super epoch.
_STRATEGY = 2**31 - 5


class MetaState(eqx.Module):
    """Where a meta-training stands: all that is needed to go on.

    With `restarts` every array but `super_epoch` and the number of optimizers averaged has their axis in
    front. `best` and `average` are what `meta_train` keeps of the way here, if it was asked to;
    `strategy_state` is what the update strategy remembers, `past` what `meta_train` does.
    """

    optimizer: AbstractOptimizer
    meta_optimizer_state: PyTree
    super_epoch: Int[Array, ""]
    best: Snapshot | None = None
    average: Average | None = None
    strategy_state: State = None
    past: Past | None = None

    def alone(self) -> "MetaState":
        """This state without what `meta_train` keeps beside it."""
        return dataclasses.replace(self, best=None, average=None, past=None)

    def with_kept(self, other: "MetaState") -> "MetaState":
        """This state with the best snapshot and the average of another one."""
        return dataclasses.replace(self, best=other.best, average=other.average)


def init_meta_state(
    optimizer: AbstractOptimizer,
    meta_optimizer: optax.GradientTransformation,
    strategy: AbstractUpdateStrategy | None = None,
    *,
    restarts: int | None = None,
    key: PRNGKeyArray | None = None,
) -> MetaState:
    """The state of a meta-training before its first super epoch; arguments as in `meta_train`.

    Without a `strategy`, for one that remembers nothing. `key` is for one that draws what it remembers.

    **Raises:** `ValueError` if the optimizer has no meta-parameters, or not `restarts` of each.

    **Warns:** with an `UntrainedNumberWarning` of Python numbers in it.
    """
    leaves = jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array))
    if not leaves:
        raise ArgumentError(
            f"`meta_train({type(optimizer).__name__})`: there is nothing to train, the optimizer has no "
            "floating-point arrays. Compare it with `compare`, or give a learned optimizer.",
            argument="optimizer",
            given=optimizer,
        )
    _tell_numbers(optimizer)
    # A weakly typed number (`jnp.asarray(0.1)`) would harden in the first step and compile it again.
    optimizer = jax.tree.map(
        lambda x: lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x, optimizer
    )
    meta_params = eqx.filter(optimizer, eqx.is_inexact_array)
    super_epoch = jnp.zeros((), jnp.int32)
    key = jr.fold_in(jr.key(0) if key is None else key, _STRATEGY)
    strategy = EveryWindow() if strategy is None else strategy
    if restarts is None:
        remembered = strategy.init(optimizer, key=key)
        return MetaState(optimizer, meta_optimizer.init(meta_params), super_epoch, strategy_state=remembered)
    Restarts.of("meta_train", optimizer, restarts)
    meta_state = jax.vmap(meta_optimizer.init)(meta_params)
    remembered = eqx.filter_vmap(lambda o, k: strategy.init(o, key=k))(optimizer, jr.split(key, restarts))
    return MetaState(optimizer, meta_state, super_epoch, strategy_state=remembered)


def _tell_numbers(optimizer):
    leaves = jax.tree_util.tree_leaves_with_path(optimizer)
    paths = [jax.tree_util.keystr(path) for path, leaf in leaves if isinstance(leaf, float | complex)]
    if paths:
        warnings.warn(
            f"`meta_train({type(optimizer).__name__})` does not train {', '.join(paths)}: Python numbers "
            "stay as they are. Make an array of one that is to be trained (`jnp.asarray(0.1)`); of another "
            "say so with `eqx.field(static=True)`.",
            UntrainedNumberWarning,
            stacklevel=3,
        )


def meta_step(
    state: MetaState,
    family: AbstractObjectiveFamily,
    strategy: AbstractUpdateStrategy,
    *,
    weighting: AbstractWeighting,
    meta_optimizer: optax.GradientTransformation,
    num_steps: int,
    num_objectives: int,
    restarts: int | None,
    key: PRNGKeyArray,
) -> tuple[MetaState, dict[str, Array]]:
    """One super epoch as one compiled program: the body of `meta_train`, to drive the loop by hand.

    **Arguments:** as in `meta_train`; `key` is that of the whole training.

    **Returns:** the next state, and the metrics of `Progress` as device arrays. What `meta_train` keeps is
    handed on as it is.
    """
    next_state, metrics, *_ = compiled_step(
        *placed(state, family, strategy, num_objectives, Restarts(restarts)),
        strategy=strategy,
        weighting=weighting,
        meta_optimizer=meta_optimizer,
        num_steps=num_steps,
        num_objectives=num_objectives,
        key=key,
    )
    return next_state.with_kept(state), metrics


def placed(
    state: MetaState,
    family: AbstractObjectiveFamily,
    strategy: AbstractUpdateStrategy,
    num_objectives: int,
    runs: Restarts,
) -> tuple[MetaState, AbstractObjectiveFamily, Placement]:
    """The first arguments of `compiled_step`, on the devices that take part; what is there is not moved.

    Without what `meta_train` keeps, which the program has no use for.
    """

    def worth_sharing_coordinates(num_devices):
        layout = state.optimizer.layout(params_shapes(family))
        if not (strategy.coordinates_apart() and any(leaf.coordinates_apart for leaf in layout.leaves())):
            return False
        return num_objectives * count_coordinates(family) >= num_devices * default_block_size()

    placement = place(runs, num_objectives, worth_sharing_coordinates)
    state = MetaState(
        placement.put(state.optimizer),
        placement.put(state.meta_optimizer_state),
        placement.put_everywhere(state.super_epoch),
        strategy_state=placement.put(state.strategy_state),
    )
    return state, placement.put_everywhere(family), placement


@eqx.filter_jit
def compiled_steps(state, family, placement, count, *, most, **settings):
    """`compiled_step` for `count` super epochs, a number on the device, as one program for all up to `most`.

    What comes beside the state has `most` rows, of which the first `count` are filled.
    """
    arrays, static = eqx.partition(state, eqx.is_array)

    def one(arrays):
        next_state, *found = compiled_step(eqx.combine(arrays, static), family, placement, **settings)
        return eqx.filter(next_state, eqx.is_array), tuple(found)

    def step(i, carry):
        arrays, rows = carry
        arrays, found = one(arrays)
        return arrays, jax.tree.map(lambda x, row: x.at[i].set(row), rows, found)

    rows = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), eqx.filter_eval_shape(one, arrays)[1])
    arrays, rows = placement.known_everywhere(lax.fori_loop(0, count, step, (arrays, rows)))
    return eqx.combine(arrays, static), *rows


@eqx.filter_jit
def compiled_step(
    state,
    family,
    placement,
    *,
    strategy,
    weighting,
    meta_optimizer,
    num_steps,
    num_objectives,
    key,
):
    """`meta_step` on arrays that are in their place; which objectives failed, and which meta-parameters were
    reached by a gradient that is not zero."""

    def meta_update(optimizer, meta_state, grads):
        # What strategies of the package return is the same on all devices already; a user's may not be.
        grads = placement.mean(grads)
        meta_state, reached = meta_state
        meta_params = eqx.filter(optimizer, eqx.is_inexact_array)
        updates, meta_state = meta_optimizer.update(grads, meta_state, meta_params)
        return eqx.apply_updates(optimizer, updates), (meta_state, reached | nonzero(grads))

    def draw(key):
        # What is drawn for strategies comes from elsewhere than the objectives.
        each = tuple(jr.split(k, num_objectives) for k in jr.split(key, 3))
        return each, jr.fold_in(key, _STRATEGY)

    def train(own, draws):
        arrays, meta_state, strategy_state = own
        (okeys, ikeys, lkeys), other_key = draws
        num_own = okeys.shape[0]
        objectives = sample_objectives(family, okeys, placement=placement)
        optimizer = eqx.combine(arrays, static)
        none_yet = jnp.zeros_like(nonzero(eqx.filter(optimizer, eqx.is_inexact_array)))
        result = strategy.super_epoch(
            optimizer,
            (meta_state, none_yet),
            objectives,
            meta_update=meta_update,
            weighting=weighting,
            num_steps=num_steps,
            init_keys=ikeys,
            loss_keys=lkeys,
            key=other_key,
            strategy_state=strategy_state,
        )
        meta_state, reached = result.meta_state
        failed = jnp.zeros(num_own, bool) if result.sound is None else ~result.sound
        metrics = {
            "meta_loss": jnp.mean(result.meta_losses),
            "mean_loss": _mean_of(result.losses, ~failed),
            "final_loss": _mean_of(result.losses[-1], ~failed),
            **{name: jnp.mean(values) for name, values in result.metrics.items()},
        }
        failed = placement.collect(failed)
        metrics = {
            **placement.mean(metrics),
            "skipped_updates": count_skipped(meta_state),
            "failed_objectives": jnp.sum(failed),
        }
        states = meta_state, result.strategy_state
        return eqx.filter(result.optimizer, eqx.is_array), states, metrics, (failed, reached)

    arrays, static = eqx.partition(state.optimizer, eqx.is_array)
    key = jr.fold_in(key, state.super_epoch)
    own = (arrays, state.meta_optimizer_state, state.strategy_state)
    arrays, states, metrics, (failed, reached) = placement.run(
        train, own, key, draw, lambda: num_objectives * count_coordinates(family)
    )
    optimizer = eqx.combine(arrays, static)
    meta_state, remembered = states
    next_state = MetaState(optimizer, meta_state, state.super_epoch + 1, strategy_state=remembered)
    return next_state, metrics, failed, reached


def count_skipped(meta_state: PyTree) -> Int[Array, "*restarts"]:
    """How many meta-updates were left out because their gradient was not finite."""
    found = optax.tree.get_all_with_path(meta_state, "total_notfinite")
    return sum((n for _, n in found), jnp.asarray(0))


def objective_keys(key: PRNGKeyArray, num_objectives: int) -> Keys:
    """The keys that a family is asked for objectives with, out of the key of a super epoch and restart."""
    return jr.split(jr.split(key, 3)[0], num_objectives)


def _mean_of(losses, sound):
    # A user's strategy may hand back losses of its own shape.
    where = jnp.broadcast_to(sound, losses.shape)
    mean = jnp.mean(losses, where=where)
    # A sum of losses near 1e36 overflows where their mean does not.
    scale = jnp.maximum(jnp.max(jnp.abs(losses), where=where, initial=0), 1)
    overflows = ~jnp.isfinite(mean) & jnp.isfinite(scale)
    return jnp.where(overflows, jnp.mean(losses / scale, where=where) * scale, mean)
