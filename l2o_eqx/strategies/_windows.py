import equinox as eqx
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import PyTree

from .._inner import batched_init, init_params, run_steps
from .._meta_gradient import Order, batch_meta_gradient
from .._types import Keys
from ..objectives import ObjectiveBatch
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractUpdateStrategy, MetaUpdate, SuperEpoch


class EveryWindow(AbstractUpdateStrategy):
    """One meta-update every T steps, on the losses of these T steps: truncated backpropagation.

    Params and the optimizer's state are constants where a window begins. Steps after the last full
    window are taken but train nothing (7 of the thesis's 375).

    **Arguments:**

    - `window`: T ≥ 2; the last update of a window moves no loss of it, so that T = 1 trains nothing.
    - `order`: of the meta-gradient, see `l2o_eqx.meta_gradient`.

    **Raises:** `ValueError` for T < 2, or, when training, for a T longer than the super epoch.

    Reference: thesis sec. 5.5.2.
    """

    window: int = eqx.field(static=True, default=16)
    order: Order = eqx.field(static=True, default="first")

    def __check_init__(self):
        if self.window < 2:
            raise ValueError(
                "`EveryWindow(window=...)` needs at least 2 steps: in a window of one the loss comes "
                f"before the update it should judge. Got window={self.window}."
            )

    def num_updates(self, num_steps: int) -> int:
        if self.window > num_steps:
            raise ValueError(
                f"`EveryWindow(window={self.window})`: the window is longer than the super epoch of "
                f"{num_steps} steps. It can have 2 to {num_steps} steps."
            )
        return num_steps // self.window

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
        num_updates = self.num_updates(num_steps)
        # To a weighting the super epoch ends with the last window: its last step must be a trained one.
        trained = num_updates * self.window
        params = init_params(objectives, init_keys)
        arrays, static = eqx.partition(optimizer, eqx.is_array)

        def one_window(carry, start):
            arrays, meta_state, params, state = carry
            optimizer = eqx.combine(arrays, static)
            result = batch_meta_gradient(
                optimizer,
                objectives,
                params,
                state,
                window=self.window,
                start=start,
                num_steps=trained,
                weighting=weighting,
                keys=loss_keys,
                order=self.order,
            )
            optimizer, meta_state = meta_update(optimizer, meta_state, result.grads)
            out = (result.losses, result.meta_loss, optax.tree.norm(result.grads))
            arrays = eqx.filter(optimizer, eqx.is_array)
            return (arrays, meta_state, result.params, result.state), out

        starts = self.window * jnp.arange(num_updates)
        carry = (arrays, meta_state, params, batched_init(optimizer, params))
        carry, (losses, meta_losses, grad_norms) = lax.scan(one_window, carry, starts)
        arrays, meta_state, params, state = carry
        optimizer = eqx.combine(arrays, static)
        losses = losses.reshape(-1, losses.shape[-1])

        if trained < num_steps:
            *_, rest = run_steps(
                optimizer,
                objectives,
                params,
                state,
                num_steps - trained,
                start=trained,
                keys=loss_keys,
            )
            losses = jnp.concatenate([losses, rest.losses])
        return SuperEpoch(optimizer, meta_state, losses, meta_losses, grad_norms)


class OncePerSuperEpoch(AbstractUpdateStrategy):
    """One meta-update per super epoch, on all of its losses.

    Memory for the recorded gradients grows with the length of the super epoch.

    **Arguments:**

    - `order`: of the meta-gradient, see `l2o_eqx.meta_gradient`.

    Reference: thesis sec. 5.5.1.
    """

    order: Order = eqx.field(static=True, default="first")

    def num_updates(self, num_steps: int) -> int:
        if num_steps < 2:
            raise ValueError(
                "`OncePerSuperEpoch`: a super epoch needs at least 2 steps, so that a loss comes after an "
                f"update. Got {num_steps}."
            )
        return 1

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
        return EveryWindow(num_steps, self.order).super_epoch(
            optimizer,
            meta_state,
            objectives,
            meta_update=meta_update,
            weighting=weighting,
            num_steps=num_steps,
            init_keys=init_keys,
            loss_keys=loss_keys,
        )
