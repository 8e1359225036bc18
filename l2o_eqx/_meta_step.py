"""One super epoch of meta-training as one compiled program, on all the devices there are."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ._devices import Placement, Restarts, place
from ._errors import ArgumentError
from ._layout import default_block_size, has_blocks
from ._snapshots import Average, Snapshot
from ._types import Keys
from .objectives import AbstractObjectiveFamily, count_coordinates, sample_objectives
from .optimizers import AbstractOptimizer
from .strategies import AbstractUpdateStrategy
from .weightings import AbstractWeighting


class MetaState(eqx.Module):
    """Where a meta-training stands: all that is needed to go on.

    With `restarts` every array but `super_epoch` and the number of optimizers averaged has their axis in
    front. `best` and `average` are what `meta_train` keeps of the way here, if it was asked to.
    """

    optimizer: AbstractOptimizer
    meta_optimizer_state: PyTree
    super_epoch: Int[Array, ""]
    best: Snapshot | None = None
    average: Average | None = None

    def with_kept(self, other: "MetaState") -> "MetaState":
        """This state with the best snapshot and the average of another one."""
        return dataclasses.replace(self, best=other.best, average=other.average)


def init_meta_state(
    optimizer: AbstractOptimizer,
    meta_optimizer: optax.GradientTransformation,
    *,
    restarts: int | None = None,
) -> MetaState:
    """The state of a meta-training before its first super epoch; arguments as in `meta_train`.

    **Raises:** `ValueError` if the optimizer has no meta-parameters, or not `restarts` of each.
    """
    leaves = jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array))
    if not leaves:
        raise ArgumentError(
            f"`meta_train({type(optimizer).__name__})`: there is nothing to train, the optimizer has no "
            "floating-point arrays. Compare it with `compare`, or give a learned optimizer.",
            argument="optimizer",
            given=optimizer,
        )
    # A weakly typed number (`jnp.asarray(0.1)`) would harden in the first step and compile it again.
    optimizer = jax.tree.map(
        lambda x: lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x, optimizer
    )
    meta_params = eqx.filter(optimizer, eqx.is_inexact_array)
    super_epoch = jnp.zeros((), jnp.int32)
    if restarts is None:
        return MetaState(optimizer, meta_optimizer.init(meta_params), super_epoch)
    Restarts.of("meta_train", optimizer, restarts)
    meta_state = jax.vmap(meta_optimizer.init)(meta_params)
    return MetaState(optimizer, meta_state, super_epoch)


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
    next_state, metrics, _ = compiled_step(
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
        if not (has_blocks(state.optimizer) and strategy.coordinates_apart()):
            return False
        return num_objectives * count_coordinates(family) >= num_devices * default_block_size()

    placement = place(runs, num_objectives, worth_sharing_coordinates)
    state = MetaState(
        placement.put(state.optimizer),
        placement.put(state.meta_optimizer_state),
        placement.put_everywhere(state.super_epoch),
    )
    return state, placement.put_everywhere(family), placement


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
    """`meta_step` on arrays that are in their place, and which objectives failed."""

    def meta_update(optimizer, meta_state, grads):
        # What strategies of the package return is the same on all devices already; a user's may not be.
        grads = placement.mean(grads)
        meta_params = eqx.filter(optimizer, eqx.is_inexact_array)
        updates, meta_state = meta_optimizer.update(grads, meta_state, meta_params)
        return eqx.apply_updates(optimizer, updates), meta_state

    def draw(key):
        return tuple(jr.split(k, num_objectives) for k in jr.split(key, 3)), ()

    def train(own, draws):
        arrays, meta_state = own
        (okeys, ikeys, lkeys), _ = draws
        num_own = okeys.shape[0]
        objectives = sample_objectives(family, okeys, placement=placement)
        result = strategy.super_epoch(
            eqx.combine(arrays, static),
            meta_state,
            objectives,
            meta_update=meta_update,
            weighting=weighting,
            num_steps=num_steps,
            init_keys=ikeys,
            loss_keys=lkeys,
        )
        skipped = optax.tree.get_all_with_path(result.meta_state, "total_notfinite")
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
            "skipped_updates": sum((n for _, n in skipped), jnp.asarray(0)),
            "failed_objectives": jnp.sum(failed),
        }
        return eqx.filter(result.optimizer, eqx.is_array), result.meta_state, metrics, failed

    arrays, static = eqx.partition(state.optimizer, eqx.is_array)
    key = jr.fold_in(key, state.super_epoch)
    own = (arrays, state.meta_optimizer_state)
    arrays, meta_state, metrics, failed = placement.run(
        train, own, key, draw, lambda: num_objectives * count_coordinates(family)
    )
    optimizer = eqx.combine(arrays, static)
    return MetaState(optimizer, meta_state, state.super_epoch + 1), metrics, failed


def objective_keys(key: PRNGKeyArray, num_objectives: int) -> Keys:
    """The keys that a family is asked for objectives with, out of the key of a super epoch and restart."""
    return jr.split(jr.split(key, 3)[0], num_objectives)


def _mean_of(losses, sound):
    # A user's strategy may hand back losses of its own shape.
    return jnp.mean(losses, where=jnp.broadcast_to(sound, losses.shape))
