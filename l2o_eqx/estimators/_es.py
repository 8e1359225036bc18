import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import PRNGKeyArray

from .._types import State
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractEstimator
from ._window import Window, WindowResult, count_sound


class ES(AbstractEstimator):
    """Evolution strategies: a gradient from nothing but the meta-losses of perturbed optimizers.

    The window is run by pairs of optimizers whose meta-parameters are moved by +σε and −σε, ε ~ N(0, 1), and
    the mean of (L(φ+σε) − L(φ−σε))/(2σ)·ε is the estimate: without bias for the gradient of E_ε[L(φ+σε)],
    which is that of L as σ goes to 0. Nothing is differentiated, so that the objective and the optimizer need
    no derivatives, and memory does not grow with the window. The run itself goes on with φ.

    Objectives that are not finite in all three runs do not count in a pair.

    **Arguments:**

    - `std`: σ, in units of the meta-parameters.
    - `num_pairs`: how many pairs; the variance falls as their inverse and grows with the number of
        meta-parameters.

    **Raises:** `ValueError` for a σ that is not positive, or for no pairs.

    Reference: Salimans et al. 2017 (arXiv:1703.03864); Metz et al. 2019, "Understanding and correcting
    pathologies in the training of learned optimizers" (arXiv:1810.10180).
    """

    std: float = eqx.field(static=True, default=0.01)
    num_pairs: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if not self.std > 0:
            raise ValueError(f"`ES(std=...)` must be positive. Got std={self.std}.")
        if self.num_pairs < 1:
            raise ValueError(f"`ES(num_pairs=...)` must be at least 1. Got num_pairs={self.num_pairs}.")

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        params, end, record = window.run(optimizer)
        meta_loss, health = window.meta_loss(weighting, record)
        trained, rest = eqx.partition(optimizer, eqx.is_inexact_array)
        leaves, treedef = jax.tree.flatten(trained)

        def meta_losses(signed_std, noise):
            moved = jax.tree.map(lambda x, e: (x + signed_std * e).astype(x.dtype), trained, noise)
            *_, record = window.run(eqx.combine(moved, rest))
            return window.meta_losses(weighting, record), record.sound

        def of_pair(key):
            keys = jr.split(key, len(leaves))
            noise = treedef.unflatten(
                [jr.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
            )
            signs = jnp.asarray([self.std, -self.std])
            (up, down), sound = jax.vmap(meta_losses, in_axes=(0, None))(signs, noise)
            sound = sound[0] & sound[1] & health.sound
            # If none is sound the estimate is NaN, as any gradient is then.
            count = count_sound(sound, window.objectives)
            slope = jnp.sum(jnp.where(sound, up - down, 0)) / (2 * self.std)
            slope = window.objectives.mean_over_devices(slope) / jnp.where(count == 0, jnp.nan, count)
            return jax.tree.map(lambda e: (slope * e).astype(e.dtype), noise)

        each = lax.map(of_pair, jr.split(key, self.num_pairs))
        grads = jax.tree.map(lambda x: jnp.mean(x, 0), each)
        meta_loss = window.objectives.mean_over_devices(meta_loss)
        return WindowResult(record.losses, meta_loss, grads, params, end, health), state
