"""Improving a controller without going far from it."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._linear_algebra import solve
from .._types import Scalar
from ._linear_gaussian import LinearDynamics, LinearGaussian, Marginals, divergence, propagate
from ._lqr import QuadraticCost, lqr

# The multiplier is searched between these, in the logarithm; halvings enough for a factor of 1.001.
_LEAST, _MOST = 1e-6, 1e8
_HALVINGS = 15


def optimize_trajectory(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    old: LinearGaussian,
    *,
    mean: Float[Array, "blocks states"],
    covariance: Float[Array, "blocks states states"],
    step: Scalar | float,
    temperature: Scalar | float = 0.0,
) -> tuple[LinearGaussian, Marginals, Scalar]:
    """The controllers that minimize E[cost] − τ·entropy at a divergence from the old ones of at most `step`.

    Blocks are independent problems with one bound on the sum of their divergences: a trajectory whose
    covariances and costs are block-diagonal. With the multiplier η of the bound, the minimizer is the
    regulator of (cost − η·log old)/(η + τ); η is found by bisection of its logarithm. If even η = 1e-6
    keeps the bound, that is the answer.

    **Arguments:**

    - `dynamics`, `cost`, `old`: with the blocks on the leading axis of every array.
    - `mean`, `covariance`: of the first state of each block.
    - `step`: the largest divergence, in nats, summed over steps and blocks.
    - `temperature`: τ ≥ 0.

    **Returns:** the new controllers, the marginals of their states, and the divergence.

    Reference: Levine & Abbeel 2014, "Learning neural network policies with guided policy search under
    unknown dynamics", sec. 4.2.
    """

    def solve(log_eta):
        eta = jnp.exp(log_eta)
        new = jax.vmap(lqr)(dynamics, jax.vmap(lambda c, o: _penalized(c, o, eta, temperature))(cost, old))
        marginals = jax.vmap(propagate)(new, dynamics, mean, covariance)
        return new, marginals, jnp.sum(jax.vmap(divergence)(new, old, marginals))

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        # Not finite, where the cost alone has no minimum, is too far, too.
        kept = solve(middle)[2] <= step
        return jnp.where(kept, low, middle), jnp.where(kept, middle, high)

    dtype = jnp.result_type(mean)
    bounds = jnp.log(jnp.asarray(_LEAST, dtype)), jnp.log(jnp.asarray(_MOST, dtype))
    return solve(lax.fori_loop(0, _HALVINGS, halve, bounds)[1])


def _penalized(cost, old, eta, temperature):
    # (cost − η·log old)/(η + τ), whose regulator has the entropy that belongs to it.
    hessians, slopes = jax.vmap(minus_log_density)(old)
    scale = 1 / (eta + temperature)
    return dataclasses.replace(
        cost,
        hessians=scale * (cost.hessians + eta * hessians),
        slopes=scale * (cost.slopes + eta * slopes),
        final_hessian=scale * cost.final_hessian,
        final_slope=scale * cost.final_slope,
    )


def minus_log_density(
    controller: LinearGaussian,
) -> tuple[Float[Array, "both both"], Float[Array, " both"]]:
    """−log N(u; Kx + k, C) of one step as a quadratic function of (x, u), without its constant."""
    gain, offset, covariance = controller.gains, controller.offsets, controller.covariances
    # r = u − Kx − k = M z − k.
    residual = jnp.concatenate([-gain, jnp.eye(len(offset), dtype=offset.dtype)], axis=1)
    solved = solve(covariance, jnp.concatenate([residual, -offset[:, None]], axis=1))
    along = residual.T @ solved
    return along[:, :-1], along[:, -1]
