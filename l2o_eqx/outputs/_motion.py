"""What an output with momentum remembers of each coordinate, and shows the network of it."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._misc import ravel_wide
from .._types import Params

NUM_FEATURES = 6
# Of the running mean squares: of gradients as in momentum; of what makes the curvature longer, because a
# coordinate that turns around has next to no update for some steps.
_GRAD_DECAY = 0.9
_CURVATURE_DECAY = 0.99
# Logarithms of ratios reach far; this is what a network sees them in.
_UNIT = 3.0

Coordinates = Float[Array, " coordinates"]


class Motion(eqx.Module):
    """The last gradient and update, roots of running mean squares, and the steps taken.

    `grad_root` is of the gradients, `change_root` of their changes from step to step, `update_root` of the
    updates: `change_root` over `update_root` is the curvature that a coordinate has met. All are kept per
    coordinate, so that a block of coordinates takes its part of the state along.
    """

    grad: Coordinates
    update: Coordinates
    grad_root: Coordinates
    change_root: Coordinates
    update_root: Coordinates
    steps: Coordinates

    @property
    def started(self) -> Bool[Array, " coordinates"]:
        """Whether there has been an update, so that ratios to it mean something."""
        return self.update_root > 0

    def moved(self, update: Coordinates) -> "Motion":
        """The same after an update."""
        return eqx.tree_at(lambda m: m.update, self, update)

    @property
    def log_curvature(self) -> Coordinates:
        """The logarithm of the curvature met; very small where gradients have not changed. A constant."""
        return lax.stop_gradient(_log(self.change_root) - _log(self.update_root))


def at_rest(params: Params) -> Motion:
    """The state before the first step."""
    return Motion(*[jnp.zeros_like(ravel_wide(params))] * 6)


def seen(motion: Motion, grads: Params) -> tuple[Motion, Coordinates, Coordinates]:
    """With a new gradient but its update; also the gradient, and its change (zero at the first step)."""
    grad = ravel_wide(grads).astype(motion.grad.dtype)
    change = jnp.where(motion.steps > 0, grad - motion.grad, 0.0)
    new = Motion(
        grad,
        motion.update,
        running_root(motion.grad_root, grad, _GRAD_DECAY),
        running_root(motion.change_root, change, _CURVATURE_DECAY),
        running_root(motion.update_root, motion.update, _CURVATURE_DECAY),
        motion.steps + 1,
    )
    return new, grad, change


def motion_features(
    motion: Motion, new: Motion, change: Coordinates, log_step: Coordinates
) -> Float[Array, "features coordinates"]:
    """How a gradient and its change compare with the update before, as six numbers within ±1.

    With u the update before, y the change and s = `log_step` the logarithm of the step size in use:
    tanh of ln(s|g|/|u|)/3 and of ln(s|y|/|u|)/3, the same of their running roots, and the signs of g·u and
    y·u. All are zero before the first update, and constants to derivatives: a meta-gradient through them
    was not better, takes longer, and is infinite where something is zero.
    """
    grad, update = new.grad, motion.update
    unit = _log(update) - log_step
    usual = _log(new.update_root) - log_step
    ratios = [
        _log(grad) - unit,
        _log(change) - unit,
        _log(new.grad_root) - usual,
        _log(new.change_root) - usual,
    ]
    signs = [jnp.sign(grad) * jnp.sign(update), jnp.sign(change) * jnp.sign(update)]
    stacked = jnp.stack([*(jnp.tanh(r / _UNIT) for r in ratios), *signs])
    return lax.stop_gradient(jnp.where(new.started[None], stacked, 0.0))


def running_root(root: Coordinates, value: Coordinates, decay: float) -> Coordinates:
    """√(b·root² + (1−b)·value²). The larger is taken out first: squares of 1e±30 are no float32."""
    largest = jnp.maximum(root, jnp.abs(value))
    # A common factor, of which the result does not depend.
    scale = lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    square = decay * (root / scale) ** 2 + (1 - decay) * (value / scale) ** 2
    positive = square > 0
    return scale * jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _log(x):
    # Zero is as small as numbers get, not smaller: differences of logarithms stay finite.
    smallest = jnp.finfo(x.dtype).tiny
    return jnp.log(jnp.maximum(jnp.abs(x), smallest))
