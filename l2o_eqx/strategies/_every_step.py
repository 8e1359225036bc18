from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._grad_metrics import grad_metrics
from .._inner import init_params, run_training_steps, select
from .._layout import batched_init, batched_update
from .._meta_gradient import (
    Health,
    batch_meta_gradient,
    check_objective_clip,
    check_order,
    mean_meta_loss,
)
from .._replay import replay
from .._types import Activations, Keys, Order, Params, State
from ..objectives import ObjectiveBatch
from ..optimizers import AbstractOptimizer, Seen
from ..weightings import AbstractWeighting
from ._base import AbstractUpdateStrategy, MetaUpdate, SuperEpoch

Gradient = Literal["replayed", "recorded"]


class _Window(eqx.Module):
    # The last T steps, oldest first, and where the oldest began. `optimizers` are the floating-point
    # arrays that each step was taken with: small beside the state, they let the beginning move on
    # by one step exactly as it did in the run, so that no past state needs to be kept.
    losses: Float[Array, "window objectives"]
    grads: PyTree[Float[Array, "window ..."]]
    optimizers: PyTree[Float[Array, "window ..."]]
    params: Params
    state: State


class EveryStep(AbstractUpdateStrategy):
    """A meta-update after every step, on the losses of the last T steps: a window that runs along.

    The meta-parameters change inside the window, so that two gradients can be meant. `"replayed"`: the
    window is run again, from the params and the state where it began, by the optimizer as it is now; this
    is the gradient of the window's meta-loss. `"recorded"`: each step counts as it was taken, by the
    optimizer of its time, as an automatic-differentiation tape that runs along would have it; the objective
    is not evaluated again. Both need memory for T steps, however long the super epoch.

    The first update comes with the first full window, after step T.

    **Arguments:**

    - `window`: T ≥ 2.
    - `gradient`: `"replayed"` or `"recorded"`.
    - `order`, `detach_state`, `activations`: of the meta-gradient, see `l2o_eqx.meta_gradient`; a recorded
        one is of first order, and activations are recomputed for it.
    - `objective_clip`: as in `EveryWindow`; for replayed gradients.

    **Raises:** `ValueError` for T < 2, an unknown gradient, a recorded one of second order or of kept
    activations, settings that `meta_gradient` refuses, or, when training, for a T longer than the super
    epoch.

    Reference: thesis sec. 5.5.3, which gives it up as too expensive.
    """

    window: int = eqx.field(static=True, default=16)
    gradient: Gradient = eqx.field(static=True, default="replayed")
    order: Order = eqx.field(static=True, default="first")
    detach_state: bool = eqx.field(static=True, default=False)
    activations: Activations = eqx.field(static=True, default="auto")
    objective_clip: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_order("EveryStep", self.order, self.activations)
        check_objective_clip("EveryStep", self.objective_clip)
        if self.window < 2:
            raise ValueError(f"`EveryStep(window=...)` needs at least 2 steps. Got window={self.window}.")
        if self.gradient not in ("replayed", "recorded"):
            raise ValueError(
                f"`EveryStep(gradient={self.gradient!r})`: the gradients are 'replayed' and 'recorded'."
            )
        if self.gradient == "recorded" and self.order == "second":
            raise ValueError(
                "`EveryStep(gradient='recorded', order='second')`: a record has no second derivatives. "
                "Take gradient='replayed' or order='first'."
            )
        if self.gradient == "recorded" and self.objective_clip is not None:
            raise ValueError(
                "`EveryStep(gradient='recorded', objective_clip=...)`: a record is replayed for all "
                "objectives together. Take gradient='replayed' or objective_clip=None."
            )
        if self.gradient == "recorded" and self.activations == "keep":
            raise ValueError(
                "`EveryStep(gradient='recorded', activations='keep')`: a record is of gradients, not of "
                "activations. Take gradient='replayed' or activations='recompute'."
            )

    def num_updates(self, num_steps: int) -> int:
        if self.window > num_steps:
            raise ValueError(
                f"`EveryStep(window={self.window})`: the window is longer than the super epoch of "
                f"{num_steps} steps. It can have 2 to {num_steps} steps."
            )
        return num_steps - self.window + 1

    def coordinates_apart(self) -> bool:
        return self.order == "first" and self.objective_clip is None

    def super_epoch(
        self,
        optimizer: AbstractOptimizer,
        meta_state: PyTree,
        objectives: ObjectiveBatch,
        *,
        meta_update: MetaUpdate,
        weighting: AbstractWeighting,
        num_steps: int,
        init_keys: Keys,
        loss_keys: Keys,
    ) -> SuperEpoch:
        arrays, static = eqx.partition(optimizer, eqx.is_array)

        def run(optimizer, params, state, count, start, sound):
            return run_training_steps(
                optimizer,
                objectives,
                params,
                state,
                count,
                start=start,
                keys=loss_keys,
                sound=sound,
                order="first",
            )

        def meta_gradient(optimizer, window, start, health):
            if self.gradient == "recorded":

                def meta_loss_of(losses):
                    return mean_meta_loss(weighting, losses, start, num_steps, health, objectives)

                meta_loss, weights = jax.value_and_grad(meta_loss_of)(window.losses)
                grads = replay(
                    optimizer,
                    select(health.sound, window.params, 1.0),
                    window.state,
                    window.grads,
                    weights,
                    detach_state=self.detach_state,
                    history=window.optimizers,
                )
                meta_loss, grads = objectives.mean_over_devices((meta_loss, grads))
                return meta_loss, grads
            result = batch_meta_gradient(
                optimizer,
                objectives,
                window.params,
                window.state,
                window=self.window,
                start=start,
                num_steps=num_steps,
                weighting=weighting,
                keys=loss_keys,
                order=self.order,
                detach_state=self.detach_state,
                activations=self.activations,
                objective_clip=self.objective_clip,
                health=health,
            )
            return result.meta_loss, result.grads

        def begin_later(optimizer, window):
            first = jax.tree.map(lambda x: x[0], (window.grads, window.optimizers))
            taken_by = eqx.combine(first[1], optimizer)
            updates, state = batched_update(taken_by, Seen(first[0]), window.state, window.params)
            params = eqx.apply_updates(window.params, updates)
            return _Window(window.losses, window.grads, window.optimizers, params, state)

        def one_step(carry, step):
            arrays, meta_state, params, state, window, health = carry
            optimizer = eqx.combine(arrays, static)
            params, state, record = run(optimizer, params, state, 1, step, health.sound)
            health = Health(record.sound, health.first_losses)
            window = _Window(
                _push(window.losses, record.losses),
                jax.tree.map(_push, window.grads, record.grads),
                jax.tree.map(lambda past, x: _push(past, x[None]), window.optimizers, _meta_params(arrays)),
                window.params,
                window.state,
            )
            meta_loss, grads = meta_gradient(optimizer, window, step - self.window + 1, health)
            window = begin_later(optimizer, window)
            optimizer, meta_state = meta_update(optimizer, meta_state, grads)
            carry = (eqx.filter(optimizer, eqx.is_array), meta_state, params, state, window, health)
            return carry, (record.losses[0], meta_loss, grad_metrics(grads))

        params = init_params(objectives, init_keys)
        state = batched_init(optimizer, params, num_steps, axis=objectives.coordinate_axis)
        filling = self.window - 1
        all_sound = jnp.ones(len(jax.tree.leaves(params)[0]), bool)
        later_params, later_state, record = run(optimizer, params, state, filling, 0, all_sound)
        # The oldest place is empty; the first step pushes it out.
        losses, grads = jax.tree.map(lambda x: jnp.concatenate([x[:1], x]), (record.losses, record.grads))
        optimizers = jax.tree.map(lambda x: jnp.stack([x] * self.window), _meta_params(arrays))
        window = _Window(losses, grads, optimizers, params, state)
        health = Health(record.sound, record.losses[0])
        carry = (arrays, meta_state, later_params, later_state, window, health)
        carry, out = lax.scan(one_step, carry, jnp.arange(filling, num_steps))
        losses, meta_losses, metrics = out
        losses = jnp.concatenate([record.losses, losses])
        optimizer = eqx.combine(carry[0], static)
        return SuperEpoch(optimizer, carry[1], losses, meta_losses, metrics, carry[-1].sound)


def _push(past: Float[Array, "window ..."], new: Float[Array, "1 ..."]) -> Float[Array, "window ..."]:
    return jnp.concatenate([past[1:], new])


def _meta_params(tree: PyTree) -> PyTree[Float[Array, "..."]]:
    return eqx.filter(tree, eqx.is_inexact_array)
