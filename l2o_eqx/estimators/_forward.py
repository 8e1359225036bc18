"""Derivatives carried along with the steps, in memory for one step however many there are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import PRNGKeyArray, PyTree

from .._devices import evenly
from .._errors import check
from .._misc import tree_dtype, unravel_like
from .._types import State
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._backprop import check_constants
from ._base import AbstractEstimator, check_flow
from ._window import Window, WindowResult

# Numbers of params and state that tangents run in one batch may have together: 4 MB of float32.
_TOGETHER = 2**20


class Forward(AbstractEstimator):
    """The gradient of a window by forward-mode differentiation of its steps.

    Each meta-parameter has a tangent, how params and state move with it, which is carried along with the
    steps. That is as exact as reverse mode, and costs about as many runs of the window as there are
    meta-parameters; memory does not grow with the window. It suits optimizers with few of them.

    With `num_tangents`, k random directions v of ±1 take their place: the mean of (∇L·v)·v is an estimate
    without bias, and without the smoothing of `ES`, whose variance grows with the number of meta-parameters.

    As with `Backprop`, params and state are constants where the window begins; `RTRL` carries on.

    **Arguments:**

    - `num_tangents`: how many random directions; by default all coordinates, which is exact.
    - `constants`: what is not differentiated, as in `Backprop`; by default nothing, which is the true
        gradient. Forward mode gets second derivatives at a small part of its cost.

    **Raises:** `ValueError` for no tangents, or for other names of constants.

    Reference: Williams and Zipser 1989; Baydin et al. 2022, "Gradients without backpropagation"
    (arXiv:2202.08587).
    """

    num_tangents: int | None = eqx.field(static=True, default=None)
    constants: frozenset[str] = eqx.field(static=True, default=frozenset(), converter=frozenset)

    def __check_init__(self):
        check_constants("Forward", self.constants)
        check(
            f"`Forward(num_tangents=...)` must be at least 1. Got num_tangents={self.num_tangents}.",
            num_tangents=(self.num_tangents, self.num_tangents is None or self.num_tangents >= 1),
        )

    def check(self, optimizer: AbstractOptimizer) -> None:
        check_flow("`Forward(constants=...)`", self.constants, optimizer)

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        self.check(optimizer)
        trained, rest = eqx.partition(optimizer, eqx.is_inexact_array)

        def meta_loss(trained):
            *_, record = window.run(eqx.combine(trained, rest), self.constants, forward=True)
            return window.meta_loss(weighting, record)[0]

        def slope(tangent):
            return jax.jvp(meta_loss, (trained,), (tangent,))[1]

        if self.num_tangents is None:
            count = num_meta_params(trained)
            slopes = map_tangents(lambda i: slope(unit_tangent(i, trained)), jnp.arange(count), window)
            grads = unravel_like(slopes, trained)
        else:
            dtype = tree_dtype(trained)
            signs = jr.rademacher(key, (self.num_tangents, num_meta_params(trained)), dtype)
            slopes = map_tangents(lambda v: slope(unravel_like(v, trained)), signs, window)
            grads = unravel_like(slopes.astype(dtype) @ signs / self.num_tangents, trained)
        return run_itself(optimizer, window, weighting, grads), state


def run_itself(
    optimizer: AbstractOptimizer, window: Window, weighting: AbstractWeighting, grads: PyTree
) -> WindowResult:
    """The window as it is run, with a gradient of this device's objectives that was got elsewhere."""
    params, end, record = window.run(optimizer)
    meta_loss, health = window.meta_loss(weighting, record)
    meta_loss, grads = window.objectives.mean_over_devices((meta_loss, grads))
    return WindowResult(record.losses, meta_loss, grads, params, end, health)


def map_tangents(function, xs: PyTree, window: Window) -> PyTree:
    """`function` of every tangent on the leading axis of `xs`, in batches that do not need much memory."""
    count = len(jax.tree.leaves(xs)[0])
    together = evenly(count, _TOGETHER // num_moving(window))
    return lax.map(function, xs, batch_size=together if together > 1 else None)


def num_meta_params(trained: PyTree) -> int:
    return sum(x.size for x in jax.tree.leaves(trained))


def num_moving(window: Window) -> int:
    """How many numbers of params and state one tangent has."""
    leaves = jax.tree.leaves((window.params, window.state))
    return max(1, sum(x.size for x in leaves if eqx.is_inexact_array(x)))


def unit_tangent(number: jax.Array, trained: PyTree) -> PyTree:
    """The direction of one meta-parameter, counted through."""
    row = jnp.arange(num_meta_params(trained)) == number
    return unravel_like(row.astype(tree_dtype(trained)), trained)
