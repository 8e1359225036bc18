import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import Params, Scalar, State
from ._base import AbstractOptimizer
from ._layouts import AbstractLayout, Seen, take_step
from ._wrapper import AbstractWrapper


class Clipped(AbstractWrapper):
    """Another optimizer whose updates are cut to ±`max_delta`, entry by entry.

    A wrapper that sees every entry alone, so that it is laid out as its inner optimizer: around a
    coordinatewise one the meta-gradient still runs block by block. Entries that are cut have no derivative.

    **Arguments:**

    - `inner`: whose updates are taken.
    - `max_delta`: how far an entry of the params may move in one step; not a meta-parameter.

    **Raises:** `ValueError` unless `max_delta` is positive.
    """

    inner: AbstractOptimizer
    max_delta: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        if not self.max_delta > 0:
            raise ArgumentError(
                f"`Clipped(max_delta=...)` must be positive. Got max_delta={self.max_delta}.",
                argument="max_delta",
                given=self.max_delta,
            )

    def layout(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> AbstractLayout:
        return self.inner.layout(shapes)

    def for_group(self, name: str) -> "Clipped":
        return dataclasses.replace(self, inner=self.inner.for_group(name))

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        updates, state = take_step(self.inner, Seen(grads, value, key), state, params)
        return jax.tree.map(lambda u: jnp.clip(u, -self.max_delta, self.max_delta), updates), state
