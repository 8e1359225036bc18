"""What a meta-optimizer does where meta-gradients are no longer finite."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._errors import ArgumentError


class RetreatState(NamedTuple):
    """The state of `retreat`.

    **Fields:**

    - `inner`: of the transformation without its errors, see `optax.ApplyIfFiniteState`.
    - `last_update`: that was made; zeros after a retreat.
    - `before`: the arrays of the inner state before it, without their names, for `optax.tree.get` to find
        those of today.
    - `scale`: that updates are multiplied by: 1, and half as large after every retreat.
    """

    inner: optax.ApplyIfFiniteState
    last_update: PyTree
    before: tuple[Array, ...]
    scale: Float[Array, ""]


def retreat(
    inner: optax.GradientTransformation, after: int, *, factor: float = 0.5
) -> optax.GradientTransformation:
    """Leaves out gradients that are not finite, and goes back where they do not become finite again.

    After `after` such gradients in a row, the last update that was made is taken back, the inner state is the
    one before it, and updates are `factor` times as large from there on. Each restart retreats by itself.

    **Arguments:**

    - `inner`: the transformation of finite gradients.
    - `after`: how many in a row.
    - `factor`: above 0 and below 1.

    **Raises:** `ArgumentError` for an `after` below 1, or another `factor`.
    """
    if after < 1:
        raise ArgumentError(
            f"`retreat(after=...)` must be at least 1. Got after={after}.", argument="after", given=after
        )
    if not 0 < factor < 1:
        raise ArgumentError(
            f"`retreat(factor=...)` must lie between 0 and 1. Got factor={factor}.",
            argument="factor",
            given=factor,
        )
    finite_only: Any = optax.apply_if_finite(inner, max_consecutive_errors=2**30)

    def init(params: PyTree) -> RetreatState:
        state = finite_only.init(params)
        zeros = optax.tree.zeros_like(params)
        return RetreatState(state, zeros, tuple(jax.tree.leaves(state.inner_state)), jnp.ones(()))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, found = finite_only.update(updates, state.inner, params)
        forward = jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates)
        back = found.notfinite_count >= after
        undone = jax.tree.map(jnp.negative, state.last_update)
        made = _where(back, undone, forward)
        known = _where(back, optax.tree.zeros_like(updates), state.last_update)
        last_update = _where(found.last_finite, forward, known)
        was, treedef = jax.tree.flatten(state.inner.inner_state)
        before = _where(found.last_finite, tuple(was), state.before)
        found = found._replace(
            inner_state=_where(back, treedef.unflatten(state.before), found.inner_state),
            notfinite_count=jnp.where(back, _zero(found.notfinite_count), found.notfinite_count),
        )
        scale = jnp.where(back, state.scale * factor, state.scale)
        return made, RetreatState(found, last_update, before, scale)

    return optax.GradientTransformation(init, update)


def _where(condition: Bool[Array, ""], one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)


def _zero(count: Int[Array, ""]) -> Any:
    return jnp.zeros_like(count)
