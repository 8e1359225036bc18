from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from .._grad_metrics import grad_metrics
from .._inner import init_params, run_steps
from .._layout import batched_init
from .._meta_gradient import batch_meta_gradient, check_objective_clip, check_order, first_health
from .._types import Activations, Keys, Order
from ..objectives import ObjectiveBatch
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractUpdateStrategy, MetaUpdate, SuperEpoch

Remainder = Literal["skip", "train"]


class EveryWindow(AbstractUpdateStrategy):
    """One meta-update every T steps, on the losses of these T steps: truncated backpropagation.

    Params and the optimizer's state are constants where a window begins.

    **Arguments:**

    - `window`: T ≥ 2; the last update of a window moves no loss of it, so that T = 1 trains nothing
        without `include_final_loss`.
    - `order`, `detach_state`, `include_final_loss`, `activations`: of the meta-gradient, see
        `l2o_eqx.meta_gradient`.
    - `remainder`: what becomes of the steps after the last full window (7 of the thesis's 375): `"skip"`
        takes them but trains nothing on them; `"train"` makes a shorter window of them.
    - `objective_clip`: largest norm of one objective's meta-gradient, so that none outweighs all others; by
        default they are not looked at one by one.

    **Raises:** `ValueError` for a window that is too short, an unknown `remainder`, settings that
    `meta_gradient` refuses, or, when training, for a T longer than the super epoch.

    Reference: thesis sec. 5.5.2.
    """

    window: int = eqx.field(static=True, default=16)
    order: Order = eqx.field(static=True, default="first")
    detach_state: bool = eqx.field(static=True, default=False)
    include_final_loss: bool = eqx.field(static=True, default=False)
    remainder: Remainder = eqx.field(static=True, default="skip")
    activations: Activations = eqx.field(static=True, default="auto")
    objective_clip: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_order("EveryWindow", self.order, self.activations)
        check_objective_clip("EveryWindow", self.objective_clip)
        if self.window < self._shortest:
            raise ValueError(
                f"`EveryWindow(window=...)` needs at least {self._shortest} steps: in a window of one the "
                "loss comes before the update it should judge, unless with `include_final_loss`. "
                f"Got window={self.window}."
            )
        if self.remainder not in ("skip", "train"):
            raise ValueError(
                f"`EveryWindow(remainder={self.remainder!r})`: the steps after the last full window can be "
                "'skip' or 'train'."
            )

    @property
    def _shortest(self):
        return 1 if self.include_final_loss else 2

    def num_updates(self, num_steps: int) -> int:
        if self.window > num_steps:
            raise ValueError(
                f"`EveryWindow(window={self.window})`: the window is longer than the super epoch of "
                f"{num_steps} steps. It can have {self._shortest} to {num_steps} steps."
            )
        return num_steps // self.window + self._trains_rest(num_steps)

    def num_trained_steps(self, num_steps: int) -> int:
        """How many steps of a super epoch of `num_steps` lie in a window."""
        rest = num_steps % self.window
        return num_steps - (0 if self._trains_rest(num_steps) else rest)

    def _trains_rest(self, num_steps):
        return self.remainder == "train" and num_steps % self.window >= self._shortest

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
        num_full = num_steps // self.window
        # To a weighting the super epoch ends with the last window: its last loss must be a trained one.
        trained = self.num_trained_steps(num_steps)
        params = init_params(objectives, init_keys)
        arrays, static = eqx.partition(optimizer, eqx.is_array)

        def train_window(carry, start, window):
            arrays, meta_state, params, state, health = carry
            optimizer = eqx.combine(arrays, static)
            result = batch_meta_gradient(
                optimizer,
                objectives,
                params,
                state,
                window=window,
                start=start,
                num_steps=trained + self.include_final_loss,
                weighting=weighting,
                keys=loss_keys,
                order=self.order,
                detach_state=self.detach_state,
                include_final_loss=self.include_final_loss,
                activations=self.activations,
                objective_clip=self.objective_clip,
                health=health,
            )
            optimizer, meta_state = meta_update(optimizer, meta_state, result.grads)
            out = (result.losses[:window], result.meta_loss, grad_metrics(result.grads))
            arrays = eqx.filter(optimizer, eqx.is_array)
            return (arrays, meta_state, result.params, result.state, result.health), out

        starts = self.window * jnp.arange(num_full)
        state = batched_init(optimizer, params, num_steps, axis=objectives.coordinate_axis)
        carry = (arrays, meta_state, params, state, first_health(params))
        carry, out = lax.scan(lambda c, start: train_window(c, start, self.window), carry, starts)
        losses, meta_losses, metrics = out
        losses = losses.reshape(-1, losses.shape[-1])

        rest = num_steps % self.window
        if self._trains_rest(num_steps):
            carry, (rest_losses, *last) = train_window(carry, num_steps - rest, rest)
            meta_losses, metrics = jax.tree.map(
                lambda x, y: jnp.concatenate([x, y[None]]), (meta_losses, metrics), tuple(last)
            )
            losses = jnp.concatenate([losses, rest_losses])
        arrays, meta_state, params, state, health = carry
        optimizer = eqx.combine(arrays, static)
        if trained < num_steps:
            *_, record = run_steps(
                optimizer, objectives, params, state, rest, start=num_steps - rest, keys=loss_keys
            )
            losses = jnp.concatenate([losses, record.losses])
        return SuperEpoch(optimizer, meta_state, losses, meta_losses, metrics, health.sound)


class OncePerSuperEpoch(AbstractUpdateStrategy):
    """One meta-update per super epoch, on all of its losses.

    Memory for the recorded gradients, and for activations that are kept, grows with the length of the super
    epoch.

    **Arguments:**

    - `order`, `detach_state`, `include_final_loss`, `activations`: of the meta-gradient, see
        `l2o_eqx.meta_gradient`.
    - `objective_clip`: as in `EveryWindow`.

    **Raises:** `ValueError` for settings that `meta_gradient` refuses.

    Reference: thesis sec. 5.5.1.
    """

    order: Order = eqx.field(static=True, default="first")
    detach_state: bool = eqx.field(static=True, default=False)
    include_final_loss: bool = eqx.field(static=True, default=False)
    activations: Activations = eqx.field(static=True, default="auto")
    objective_clip: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_order("OncePerSuperEpoch", self.order, self.activations)
        check_objective_clip("OncePerSuperEpoch", self.objective_clip)

    def num_updates(self, num_steps: int) -> int:
        if num_steps < 2 and not self.include_final_loss:
            raise ValueError(
                "`OncePerSuperEpoch`: a super epoch needs at least 2 steps, so that a loss comes after an "
                f"update. Got {num_steps}."
            )
        return 1

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
        whole = EveryWindow(
            num_steps,
            self.order,
            self.detach_state,
            self.include_final_loss,
            activations=self.activations,
            objective_clip=self.objective_clip,
        )
        return whole.super_epoch(
            optimizer,
            meta_state,
            objectives,
            meta_update=meta_update,
            weighting=weighting,
            num_steps=num_steps,
            init_keys=init_keys,
            loss_keys=loss_keys,
        )
