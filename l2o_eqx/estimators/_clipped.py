import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._engine._inner import Record
from .._engine._layout import add_axis
from .._errors import ArgumentError
from .._misc import tree_norm
from .._types import State
from ..objectives import ObjectiveBatch
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractEstimator
from ._window import Taken, Window, WindowResult, count_sound


class ClippedPerObjective(AbstractEstimator):
    """Another estimator, asked for each objective by itself, so that none outweighs all others.

    Meta-gradients of single objectives that are longer than `max_norm` are scaled down to it before the mean
    is taken. It is a wrapper, because any estimator can be asked about a batch of one.

    **Arguments:**

    - `inner`: whose estimates are taken.
    - `max_norm`: the largest Euclidean norm over all meta-parameters.

    **Raises:** `ValueError` for a norm that is not above 0.
    """

    inner: AbstractEstimator
    max_norm: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not self.max_norm > 0:
            raise ArgumentError(
                f"`ClippedPerObjective(max_norm={self.max_norm})`: the largest norm must be above 0.",
                argument="max_norm",
                given=self.max_norm,
            )

    def init(self, optimizer: AbstractOptimizer, window: Window, *, key: PRNGKeyArray) -> State:
        def one(window):
            return self.inner.init(optimizer, window, key=key)

        return _over_objectives(one, window)

    def check(self, optimizer: AbstractOptimizer) -> None:
        self.inner.check(optimizer)

    def consecutive(self) -> bool:
        return self.inner.consecutive()

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        def one(window, state):
            result, state = self.inner.estimate(optimizer, window, weighting, state, key=key)
            # NaN of an objective that failed.
            kept = result.health.sound[0]
            grads = jax.tree.map(lambda g: jnp.where(kept, g, 0), result.grads)
            scale = jnp.minimum(1.0, self.max_norm / jnp.maximum(tree_norm(grads), self.max_norm))
            grads = jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads)
            meta_loss = jnp.where(kept, result.meta_loss, 0)
            return eqx.tree_at(lambda r: (r.meta_loss, r.grads), result, (meta_loss, grads)), state

        result, state = _over_objectives(one, window, state)
        params, health = jax.tree.map(lambda x: x[:, 0], (result.params, result.health))
        count = count_sound(health.sound, window.objectives)
        mean = jax.tree.map(lambda x: jnp.sum(x, 0) / count, (result.meta_loss, result.grads))
        meta_loss, grads = window.objectives.mean_over_devices(mean)
        end = None if result.state is None else window.state.together(result.state)
        losses = jnp.moveaxis(result.losses[..., 0], 0, -1)
        return WindowResult(losses, meta_loss, grads, params, end, health), state


def _over_objectives(function, window, *mapped):
    """`function` of every objective's window, as that of a batch of one, and its part of what is `mapped`."""

    def one(own, params, state, key, health, taken, *mapped):
        if taken is not None:
            record, *end = taken
            taken = Taken(Record(*record), window.taken.optimizers, *end)
        single = dataclasses.replace(
            window,
            objectives=ObjectiveBatch(add_axis(own), window.objectives.shared),
            params=add_axis(params),
            state=state,
            keys=key[None],
            health=add_axis(health),
            taken=taken,
        )
        return function(single, *mapped)

    return jax.vmap(one)(
        window.objectives.own,
        window.params,
        window.state.each(),
        window.keys,
        window.health,
        None if window.taken is None else _each_taken(window.taken, window.state),
        *mapped,
    )


def _each_taken(taken, state):
    # The arrays of a record, and where it ends, with objectives in front.
    def each(laid_out):
        split = jax.vmap(lambda x: state.layout.each(x)[1])(laid_out)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), split)

    record = taken.record
    outer = None if record.outer is None else (record.outer[0].T[..., None], each(record.outer[1]))
    arrays = (record.losses.T[..., None], each(record.grads), record.sound[:, None], outer)
    params = jax.tree.map(lambda x: x[:, None], taken.params)
    return arrays, params, None if taken.state is None else taken.state.each()
