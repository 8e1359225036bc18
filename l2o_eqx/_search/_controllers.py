"""The controllers of a policy search: how they begin, what they cost, how they get better."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._linear_algebra import cholesky, solve
from .._types import Scalar
from ..control import (
    LinearDynamics,
    LinearGaussian,
    QuadraticCost,
    expected_cost,
    minus_log_density,
    optimize_trajectory,
    propagate,
)
from ._problem import BadmmState, Paths, Problem, SearchSettings, sample

# Of the regression of the policy's answers on where they are given, relative to the spread of these.
_RIDGE = 1e-2
_TINY = 1e-8
# Of the bound on a step.
_SLACK = 1.01
# Of the multiplier of a step, at once.
_CHANGE = (0.1, 5.0)


def first_noise(problem: Problem) -> Float[Array, "blocks size size"]:
    """The covariance that a search begins with."""
    _, blocks, size = problem.blocks(problem.starts).shape
    eye = problem.settings.initial_std**2 * jnp.eye(size, dtype=problem.starts.dtype)
    return jnp.broadcast_to(eye, (blocks, size, size))


def still(problem: Problem, covariance: Float[Array, "blocks size size"]) -> LinearGaussian:
    """Controllers of noise alone, for objectives of which nothing better is known."""
    num_objectives, blocks, size = problem.blocks(problem.starts).shape
    shape = (num_objectives, blocks, problem.settings.num_steps, size)
    covariances = jnp.broadcast_to(covariance[:, None], (*shape, size))
    return LinearGaussian(jnp.zeros_like(covariances), jnp.zeros(shape, covariance.dtype), covariances)


def sampled_costs(
    paths: Paths, settings: SearchSettings
) -> tuple[Float[Array, "objectives steps"], Float[Array, " objectives"]]:
    """w_t, and the mean of Σ w_t f(θ_{t+1}) over the samples."""
    weights = _cost_weights(paths, settings)
    return weights, jnp.mean(jnp.sum(weights[:, None] * paths.losses[..., 1:], axis=-1), axis=1)


def _cost_weights(paths, settings):
    # Of mean one, so that all else keeps its meaning.
    means = jnp.mean(paths.losses[..., 1:], axis=1)
    num_steps = settings.num_steps

    def one(losses, first):
        return jax.grad(lambda x: settings.weighting.of(x, 0, num_steps, first))(losses)

    weights = jax.vmap(one)(means, paths.losses[:, 0, 0])
    return weights / jnp.mean(weights, axis=1, keepdims=True)


def expand(
    problem: Problem,
    controllers: LinearGaussian,
    weights: Float[Array, "objectives steps"],
    key: PRNGKeyArray,
) -> QuadraticCost:
    """Σ w_t f(θ_{t+1}) to second order around where the controllers lead on the average.

    Of Hessians that are not positive the absolute value is taken (of their eigenvalues), which makes the
    regulator keep away from saddles: Dauphin et al. 2014 (arXiv:1406.2572).
    """
    settings = problem.settings
    means = _marginals(problem, controllers).means

    def at(t):
        points = means[:, :, t].reshape(problem.starts.shape)
        _, grads = problem.evaluate(points, t)
        hessians = _absolute(problem.hessians(points, t, jr.fold_in(key, t)))
        own = problem.blocks(points)
        return hessians, problem.blocks(grads) - jnp.einsum("nbij,nbj->nbi", hessians, own)

    hessians, slopes = lax.map(at, jnp.arange(1, settings.num_steps + 1))
    hessians, slopes = jnp.moveaxis(hessians, 0, 2), jnp.moveaxis(slopes, 0, 2)
    hessians = weights[:, None, :, None, None] * hessians
    slopes = weights[:, None, :, None] * slopes
    size = slopes.shape[-1]
    # The first state costs nothing that could be helped, and actions cost nothing.
    running = jnp.pad(hessians[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, size), (0, size)))
    pull = jnp.pad(slopes[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, size)))
    return QuadraticCost(running, pull, hessians[:, :, -1], slopes[:, :, -1])


def _absolute(hessians):
    if hessians.shape[-1] == 1:
        return jnp.abs(hessians)
    values, vectors = jnp.linalg.eigh((hessians + jnp.swapaxes(hessians, -1, -2)) / 2)
    return jnp.einsum("...ik,...k,...jk->...ij", vectors, jnp.abs(values), vectors)


def _dynamics(problem: Problem) -> LinearDynamics:
    _, blocks, size = problem.blocks(problem.starts).shape
    one = LinearDynamics.adding(problem.settings.num_steps, size, problem.starts.dtype)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (blocks, *x.shape)), one)


def _start_of(problem: Problem):
    means = problem.blocks(problem.starts)
    return means, jnp.zeros((*means.shape, means.shape[-1]), means.dtype)


def _marginals(problem: Problem, controllers: LinearGaussian):
    dynamics = _dynamics(problem)
    over_blocks = jax.vmap(propagate, in_axes=(0, 0, 0, 0))
    return jax.vmap(over_blocks, in_axes=(0, None, 0, 0))(controllers, dynamics, *_start_of(problem))


def expected(problem: Problem, cost: QuadraticCost, controllers: LinearGaussian):
    each = jax.vmap(jax.vmap(expected_cost))(cost, controllers, _marginals(problem, controllers))
    return jnp.sum(each, axis=1)


def sample_controllers(problem: Problem, controllers: LinearGaussian, key: PRNGKeyArray) -> Paths:
    """Trajectories of the controllers."""
    by_step = [jnp.moveaxis(x, 2, 0) for x in (controllers.gains, controllers.offsets)]

    def act(along, number, points, losses, grads):
        gains, offsets = (x[number] for x in by_step)
        actions = jnp.einsum("nbij,nbj->nbi", gains, problem.blocks(points)) + offsets
        return along, actions.reshape(points.shape)

    factors = jnp.moveaxis(cholesky(controllers.covariances), 2, 0)
    return sample(problem, None, act, factors, key)[0]


def linearized(
    problem: Problem,
    answers: Array,
    paths: Paths,
    covariance: Float[Array, "blocks size size"],
    *,
    with_rest: bool,
) -> LinearGaussian:
    """The policy as a controller: its answers along the samples, regressed on where they were given.

    What is left over counts as noise, if `with_rest`.
    """

    def one(points, answers, covariance):
        centered = points - jnp.mean(points, axis=0, keepdims=True)
        moved = answers - jnp.mean(answers, axis=0, keepdims=True)
        spread = centered.T @ centered
        size = len(spread)
        ridge = _RIDGE * jnp.trace(spread) / size + _TINY
        spread = spread + ridge * jnp.eye(size, dtype=spread.dtype)
        gain = solve(spread, centered.T @ moved).T
        rest = moved - centered @ gain.T
        offset = jnp.mean(answers, axis=0) - gain @ jnp.mean(points, axis=0)
        return gain, offset, covariance + with_rest * (rest.T @ rest) / len(rest)

    # (objectives, samples, steps, blocks, size), mapped over all but samples and size.
    args = problem.blocks(paths.points[:, :, :-1]), problem.blocks(answers)
    over_steps = jax.vmap(one, in_axes=(1, 1, None))
    over_blocks = jax.vmap(over_steps, in_axes=(2, 2, 0))
    return LinearGaussian(*jax.vmap(over_blocks, in_axes=(0, 0, None))(*args, covariance))


def near_policy(
    problem: Problem, cost: QuadraticCost, policy: LinearGaussian, multiplier: Scalar
) -> tuple[LinearGaussian, Bool[Array, " objectives"]]:
    """The controllers' step of mirror descent: min E[c] at a bounded divergence from the policy.

    **Returns:** the controllers, and whether the bound is kept, which for the steepest costs cannot be.
    """
    settings = problem.settings
    bound = settings.kl_step * settings.num_steps * multiplier
    dynamics = _dynamics(problem)

    def one(cost, policy, mean, covariance):
        return optimize_trajectory(dynamics, cost, policy, mean=mean, covariance=covariance, step=bound)

    controllers, _, found = jax.vmap(one)(cost, policy, *_start_of(problem))
    return controllers, found <= _SLACK * bound


def between(
    problem: Problem, cost: QuadraticCost, old: LinearGaussian, policy: LinearGaussian, search: BadmmState
) -> tuple[LinearGaussian, Bool[Array, " objectives"]]:
    """The controllers' step of BADMM: min E[c − λᵀu] + ν·KL(ψ ‖ π), not far from the samples.

    **Returns:** as `near_policy`.
    """
    settings = problem.settings
    bounds = settings.kl_step * settings.num_steps * search.multiplier
    dynamics = _dynamics(problem)

    def one(cost, old, policy, duals, penalty, bound, mean, covariance):
        hessians, slopes = jax.vmap(jax.vmap(minus_log_density))(policy)
        pull = jnp.pad(jnp.moveaxis(duals, 0, 1), ((0, 0), (0, 0), (duals.shape[-1], 0)))
        total = QuadraticCost(
            cost.hessians + penalty * hessians,
            cost.slopes + penalty * slopes - pull,
            cost.final_hessian,
            cost.final_slope,
        )
        return optimize_trajectory(
            dynamics, total, old, mean=mean, covariance=covariance, step=bound, temperature=penalty
        )

    args = (cost, old, policy, search.duals, search.penalty, bounds, *_start_of(problem))
    controllers, _, found = jax.vmap(one)(*args)
    return controllers, found <= _SLACK * bounds


def actions_of(problem: Problem, controllers: LinearGaussian, paths: Paths):
    """What the controllers mean to do where the samples were, `(objectives, samples, steps, dim)`."""
    points = problem.blocks(paths.points[:, :, :-1])
    actions = jnp.einsum("nbtij,nmtbj->nmtbi", controllers.gains, points)
    return (actions + jnp.moveaxis(controllers.offsets, 1, 2)[:, None]).reshape(
        *points.shape[:-2], problem.starts.shape[-1]
    )


def shared_covariance(controllers: LinearGaussian, sound: Bool[Array, " objectives"], otherwise: Array):
    # The noise for which the sum of all KL(π ‖ ψ) is least: Levine et al. 2016 (arXiv:1504.00702), app. A.
    precisions = inverse(controllers.covariances)
    among = sound.reshape(-1, *(1,) * (precisions.ndim - 1))
    shared = inverse(jnp.mean(precisions, axis=(0, 2), where=among))
    shared = (shared + jnp.swapaxes(shared, -1, -2)) / 2
    # What noise cannot be drawn from would end the search for all.
    fine = jnp.any(sound) & jnp.all(jnp.isfinite(cholesky(shared)))
    return jnp.where(fine, shared, otherwise)


def inverse(matrices):
    # Of positive definite ones.
    eye = jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)
    return solve(matrices, eye)


def disagreement(problem: Problem, controllers: LinearGaussian, gaps: Array):
    """½·E[(μ − û)ᵀ C⁻¹ (μ − û)] per step: how far apart policy and controllers are, in nats."""
    gaps = problem.blocks(gaps)
    precisions = inverse(controllers.covariances)
    squares = jnp.einsum("nmtbi,nbtij,nmtbj->nmt", gaps, precisions, gaps)
    return jnp.mean(squares, axis=(1, 2)) / 2


def adapted(multiplier: Array, predicted: Array, actual: Array, bounds: tuple[float, float]) -> Array:
    """Of the bound on a step, by how well the gain of the last one was predicted.

    The best one, were the error of the prediction quadratic in it: Levine & Abbeel 2014, sec. 4.3.
    """
    change = predicted / (2 * jnp.maximum(predicted - actual, 1e-4))
    new = jnp.clip(multiplier * jnp.clip(change, *_CHANGE), *bounds)
    return jnp.where(jnp.isfinite(change), new, multiplier)
