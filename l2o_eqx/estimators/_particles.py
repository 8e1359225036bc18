"""Runs by optimizers whose meta-parameters are moved there and back: what evolution strategies are made of.

With noise ε_p for pair p, its two runs are by φ+σε_p and φ−σε_p, and a slope between their losses is an
estimate along a direction ξ_p, which is ε_p or a sum of what it has been.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .._devices import side_by_side
from .._engine._layout import BatchState
from .._errors import check
from .._misc import tree_dtype, unravel_like
from .._types import Params
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._window import Health, Window, WindowResult, count_sound

# A tree like the meta-parameters, for every pair.
Noise = PyTree[Float[Array, "pairs ..."]]


class Particles(eqx.Module):
    """Where the runs are; pairs, and the two signs, on leading axes, or the two of a pair alone."""

    params: Params
    state: BatchState
    sound: Bool[Array, "*runs objectives"]


def check_pairs(where: str, std: float, num_pairs: int) -> None:
    """Raises a `ValueError` for a σ that is not positive, or for no pairs."""
    check(f"`{where}(std=...)` must be positive. Got std={std}.", std=(std, std > 0))
    check(
        f"`{where}(num_pairs=...)` must be at least 1. Got num_pairs={num_pairs}.",
        num_pairs=(num_pairs, num_pairs >= 1),
    )


def draw_noise(key: PRNGKeyArray, optimizer: AbstractOptimizer, num_pairs: int) -> Noise:
    """Standard normal ε for every pair."""
    trained = eqx.filter(optimizer, eqx.is_inexact_array)
    dtype = tree_dtype(trained)
    rows = jr.normal(key, (num_pairs, sum(x.size for x in jax.tree.leaves(trained))), dtype)
    return jax.vmap(lambda row: unravel_like(row, trained))(rows)


def begin_particles(window: Window, num_pairs: int) -> Particles:
    """All of them where the window begins."""
    begun = Particles(window.params, window.state, window.health.sound)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_pairs, 2, *x.shape)), begun)


def estimate_by_pairs(
    optimizer: AbstractOptimizer,
    window: Window,
    weighting: AbstractWeighting,
    *,
    std: float,
    noise: Noise,
    directions: Noise,
    particles: Particles | None = None,
    ranked: bool = False,
) -> tuple[WindowResult, Particles | None]:
    """The run itself goes on with φ; the gradient is that of pairs of others.

    **Arguments:**

    - `noise`: ε, by which the meta-parameters are moved.
    - `directions`: ξ, along which the slopes are.
    - `particles`: where the pairs' runs have got to; all are in the window's beginning if there are none.
    - `ranked`: as in `ES`.

    **Returns:** the result, and where the particles have got to, if there were any.
    """
    params, end, record = window.run(optimizer)
    meta_loss, health = window.meta_loss(weighting, record)
    meta_loss = window.objectives.mean_over_devices(meta_loss)
    # Losses are relative to the first one of the run itself, which is no part of what is estimated.
    seen = dataclasses.replace(window, health=Health(window.health.sound, health.first_losses))
    losses, sound, particles = _run_pairs(optimizer, seen, weighting, std, noise, particles)
    both = sound[:, 0] & sound[:, 1]
    if ranked:
        losses, both = _ranks(losses, sound), jnp.ones_like(both)
    both = both & health.sound[None]
    slopes = jnp.sum(jnp.where(both, losses[:, 0] - losses[:, 1], 0), axis=1) / (2 * std)
    count = count_sound(both.reshape(-1), window.objectives)
    # If none is sound the estimate is NaN, as any gradient is then.
    weights = window.objectives.mean_over_devices(slopes) / jnp.where(count == 0, jnp.nan, count)
    grads = jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1), directions)
    return WindowResult(record.losses, meta_loss, grads, params, end, health), particles


def _run_pairs(optimizer, window, weighting, std, noise, particles):
    trained, rest = eqx.partition(optimizer, eqx.is_inexact_array)

    def run(signed_std, noise, begun):
        moved = jax.tree.map(lambda x, e: (x + signed_std * e).astype(x.dtype), trained, noise)
        at = window
        if begun is not None:
            health = Health(begun.sound, window.health.first_losses)
            at = dataclasses.replace(window, params=begun.params, state=begun.state, health=health)
        params, state, record = at.run(eqx.combine(moved, rest))
        ended = None if begun is None else Particles(params, state, record.sound)
        return at.meta_losses(weighting, record), record.sound, ended

    def run_pair(pair):
        noise, begun = pair
        axis = None if begun is None else 0
        return jax.vmap(run, in_axes=(0, None, axis))(jnp.asarray([std, -std]), noise, begun)

    num_pairs = len(jax.tree.leaves(noise)[0])
    num_coordinates = sum(x.size for x in jax.tree.leaves(window.params))
    together = side_by_side(num_pairs, 2 * num_coordinates)
    return lax.map(run_pair, (noise, particles), batch_size=together if together > 1 else None)


def _ranks(losses, sound):
    # From −½ to ½ among all runs of an objective; a run that is not finite is worse than all that are.
    count = 2 * len(losses)
    values = jnp.where(sound, losses, jnp.inf).reshape(count, -1)
    ranks = jax.scipy.stats.rankdata(values, axis=0)
    return ((ranks - 1) / (count - 1) - 0.5).astype(losses.dtype).reshape(losses.shape)
