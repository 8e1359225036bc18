"""One iteration of guided policy search as one compiled program."""

import functools
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ._devices import Restarts
from ._draws import Draws, draw, losses_of
from ._engine._losses import loss_function, losses_and_grads, select
from ._misc import add_updates, cast_like
from ._types import Scalar
from .control import (
    LinearDynamics,
    LinearGaussian,
    QuadraticCost,
    expected_cost,
    optimize_trajectory,
    propagate,
)
from .control._kl_step import minus_log_density
from .objectives import AbstractObjectiveFamily
from .optimizers import AbstractOptimizer, Seen, take_step
from .weightings import AbstractWeighting

Structure = Literal["full", "diagonal"]

# Of the multiplier of the step, in all and at once; of the penalty, in all.
_MULTIPLIER, _CHANGE, _PENALTY = (0.01, 10.0), (0.1, 5.0), (0.01, 100.0)
# Of the regression of the policy's answers on where they are given, relative to the spread of these.
_RIDGE = 1e-2
_TINY = 1e-8
# Where only the diagonal of a Hessian is wanted, it is estimated with so many random signs.
_PROBES = 8


class SearchSettings(NamedTuple):
    """Those of `policy_search` that a compiled program depends on."""

    num_steps: int
    num_objectives: int
    structure: Structure
    num_samples: int
    inner_iterations: int
    kl_step: float
    initial_rate: float
    initial_std: float
    penalty: float
    dual_rate: float
    weighting: AbstractWeighting
    fit_updates: int
    fit_batch: int


class SearchState(eqx.Module):
    """What a policy search remembers of every objective, beside the policy.

    A trajectory of `dim` coordinates is cut into `blocks` of `size` each: one of all, or all of one.

    **Fields:**

    - `controllers`: ψ; with axes for the objectives and the blocks in front.
    - `duals`: λ, what closes the gap between what controllers do and what the policy does.
    - `penalty`: ν.
    - `multiplier`: of the bound on a controller's step.
    - `costs`: of the last samples, and how much less the step after them was to cost.
    - `covariance`: of the policy's noise, the same everywhere.
    """

    controllers: LinearGaussian
    duals: Float[Array, "*restarts objectives steps blocks size"]
    penalty: Float[Array, "*restarts objectives"]
    multiplier: Float[Array, "*restarts objectives"]
    costs: Float[Array, "*restarts objectives 2"]
    covariance: Float[Array, "*restarts blocks size size"]


class _Paths(eqx.Module):
    # Samples of the controllers' trajectories, flat: where they were, and what an optimizer sees there.
    points: Float[Array, "objectives samples points dim"]
    losses: Float[Array, "objectives samples points"]
    grads: Float[Array, "objectives samples points dim"]


class _Problem(NamedTuple):
    # The draws, and how their params are made of a flat vector.
    draws: Draws
    starts: Float[Array, "objectives dim"]
    unravel: Any
    settings: SearchSettings

    def blocks(self, flat):
        """(…, dim) as (…, blocks, size)."""
        dim = self.starts.shape[-1]
        shape = (1, dim) if self.settings.structure == "full" else (dim, 1)
        return flat.reshape(*flat.shape[:-1], *shape)

    def tree(self, flat):
        """(…, dim) as params with the same axes in front."""
        leading = flat.shape[:-1]
        tree = jax.vmap(self.unravel)(flat.reshape(-1, flat.shape[-1]))
        return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), tree)

    def flat(self, tree):
        """One vector per objective."""
        return jax.vmap(lambda x: ravel_pytree(x)[0])(tree)

    def evaluate(self, points, step):
        """Losses and gradients of all objectives at a point each, `(objectives, dim)`."""
        draws = self.draws
        keys = draws.keys
        losses, grads, _ = losses_and_grads(draws.objectives, self.tree(points), step, keys, draws.states)
        return losses.astype(points.dtype), self.flat(grads).astype(points.dtype)

    def hessians(self, points, step, key):
        """The blocks of the Hessians at a point each, `(objectives, blocks, size, size)`."""
        draws = self.draws
        arrays = (draws.objectives.own, draws.states, points, draws.keys)

        def one(own, state, point, objective_key):
            function = loss_function(draws.objectives, own, state, step, objective_key)

            def value(flat):
                return function(self.unravel(flat))[0].astype(flat.dtype)

            if self.settings.structure == "full":
                return jax.hessian(value)(point)[None]
            probes = jr.rademacher(key, (_PROBES, *point.shape), point.dtype)
            products = jax.vmap(lambda v: jax.jvp(jax.grad(value), (point,), (v,))[1])(probes)
            return jnp.mean(probes * products, axis=0)[:, None, None]

        return jax.vmap(one)(*arrays)


class Drawn(eqx.Module):
    """The objectives of a whole search and where they start.

    **Fields:**

    - `arrays`: those of each restart on the leading axis, if there are several.
    - `all`: what the arrays belong to, with what they share.
    """

    arrays: PyTree
    all: Draws

    @classmethod
    def of(cls, family: AbstractObjectiveFamily, keys: Any, runs: Restarts) -> "Drawn":
        """Draws them.

        **Arguments:**

        - `keys`: one for each objective, or `(restarts, objectives)` of them.
        """
        draws = draw(family, keys if runs.count is None else keys.reshape(-1))
        shape = (*runs.shape, draws.count // (runs.count or 1))
        return cls(jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), draws.arrays), draws)

    def problem(self, arrays: PyTree, settings: SearchSettings) -> _Problem:
        """Those of one restart."""
        draws = self.all.with_arrays(arrays)
        unravel = ravel_pytree(jax.tree.map(lambda x: x[0], draws.params))[1]
        starts = jax.vmap(lambda x: ravel_pytree(x)[0])(draws.params)
        return _Problem(draws, starts, unravel, settings)


@eqx.filter_jit
def init_search(drawn: Drawn, settings: SearchSettings, runs: Restarts) -> SearchState:
    """Controllers that do what gradient descent does, to first order along its way, with noise."""

    def one(arrays):
        problem = drawn.problem(arrays, settings)
        shape = problem.blocks(problem.starts).shape
        num_objectives, blocks, size = shape
        rate, dtype = settings.initial_rate, problem.starts.dtype

        def step(points, t):
            _, grads = problem.evaluate(points, t)
            hessians = problem.hessians(points, t, jr.fold_in(problem.draws.keys[0], t))
            own = problem.blocks(points)
            gains = -rate * hessians
            offsets = -rate * problem.blocks(grads) - jnp.einsum("nbij,nbj->nbi", gains, own)
            return points - rate * grads, (gains, offsets)

        _, (gains, offsets) = lax.scan(step, problem.starts, jnp.arange(settings.num_steps))
        eye = settings.initial_std**2 * jnp.eye(size, dtype=dtype)
        covariances = jnp.broadcast_to(eye, (num_objectives, blocks, settings.num_steps, size, size))
        controllers = LinearGaussian(jnp.moveaxis(gains, 0, 2), jnp.moveaxis(offsets, 0, 2), covariances)
        each = jnp.ones(num_objectives, dtype)
        return SearchState(
            controllers,
            jnp.zeros((num_objectives, settings.num_steps, blocks, size), dtype),
            settings.penalty * each,
            each,
            jnp.full((num_objectives, 2), jnp.nan, dtype),
            jnp.broadcast_to(eye, (blocks, size, size)),
        )

    return runs.over(one)(drawn.arrays)


@eqx.filter_jit
def search_step(
    optimizer: AbstractOptimizer,
    meta_state: PyTree,
    search: SearchState,
    drawn: Drawn,
    keys: Any,
    settings: SearchSettings,
    meta_optimizer: optax.GradientTransformation,
    runs: Restarts,
) -> tuple[AbstractOptimizer, PyTree, SearchState, dict[str, Array], Array]:
    """Samples, improves the controllers, fits the policy to them.

    **Returns:** what of it goes on, the metrics, and which objectives failed.
    """
    arrays, static = eqx.partition(optimizer, eqx.is_array)

    def one(arrays, meta_state, search, own, key):
        problem = drawn.problem(own, settings)
        fitter = _Fitter(static, meta_optimizer, problem)
        skey, hkey, fkey = jr.split(key, 3)
        paths = _sample(problem, search.controllers, skey)
        weights = _weights(paths, settings)
        sampled = jnp.mean(jnp.sum(weights[:, None] * paths.losses[..., 1:], axis=-1), axis=1)
        search = eqx.tree_at(lambda s: s.multiplier, search, _adapted(search, sampled))
        old = search.controllers
        cost = _expand(problem, old, weights, hkey)
        # An objective that is not finite is left out: it teaches nothing, and its controller stays.
        sound = _finite(sampled, paths, cost)
        paths, cost = select(sound, paths, 0.0), select(sound, cost, 0.0)
        before = _expected(problem, cost, old)
        carry = (arrays, meta_state, search, fitter.means(arrays, paths))

        def inner(carry, key):
            arrays, meta_state, search, answers = carry
            linear = _linearized(problem, answers, paths, search.covariance)
            controllers = _improved(problem, cost, old, linear, search)
            controllers = _where(sound, controllers, old)
            search = eqx.tree_at(lambda s: s.controllers, search, controllers)
            arrays, meta_state, loss = fitter.fit(arrays, meta_state, paths, search, sound, key)
            answers = fitter.means(arrays, paths)
            gaps = answers - _actions(problem, controllers, paths)
            gap = problem.blocks(jnp.mean(gaps, axis=1))
            duals = search.duals + settings.dual_rate * search.penalty[:, None, None, None] * gap
            covariance = _shared_covariance(controllers, sound)
            search = eqx.tree_at(lambda s: (s.duals, s.covariance), search, (duals, covariance))
            return (arrays, meta_state, search, answers), (loss, gaps)

        carry, (losses, gaps) = lax.scan(inner, carry, jr.split(fkey, settings.inner_iterations))
        arrays, meta_state, search, _ = carry
        apart = _disagreement(problem, search.controllers, gaps[-1])
        gain = before - _expected(problem, cost, search.controllers)
        search = eqx.tree_at(
            lambda s: (s.costs, s.penalty),
            search,
            (jnp.stack([sampled, gain], axis=1), _penalties(search.penalty, apart, settings)),
        )
        reached = losses_of(eqx.combine(arrays, static), problem.draws, settings.num_steps)
        skipped = optax.tree.get_all_with_path(meta_state, "total_notfinite")
        metrics = {
            "meta_loss": losses[-1],
            "mean_loss": jnp.mean(reached, where=sound[:, None]),
            "final_loss": jnp.mean(reached[:, -1], where=sound),
            "teacher_loss": jnp.mean(paths.losses[..., 1:], where=sound[:, None, None]),
            "disagreement": jnp.mean(apart, where=sound),
            "penalty": jnp.mean(search.penalty),
            "step_multiplier": jnp.mean(search.multiplier),
            "skipped_updates": sum((n for _, n in skipped), jnp.asarray(0)),
            "failed_objectives": jnp.sum(~sound),
        }
        return arrays, meta_state, search, metrics, ~sound

    arrays, *found = runs.over(one)(arrays, meta_state, search, drawn.arrays, keys)
    return eqx.combine(arrays, static), *found


def _adapted(search, sampled):
    # Levine & Abbeel 2014, sec. 4.3: the best step, were the error of the model quadratic in it.
    predicted = search.costs[:, 1]
    actual = search.costs[:, 0] - sampled
    change = predicted / (2 * jnp.maximum(predicted - actual, 1e-4))
    new = jnp.clip(search.multiplier * jnp.clip(change, *_CHANGE), *_MULTIPLIER)
    return jnp.where(jnp.isfinite(change), new, search.multiplier)


def _sample(problem: _Problem, controllers: LinearGaussian, key: PRNGKeyArray) -> _Paths:
    settings = problem.settings
    factors = jnp.linalg.cholesky(controllers.covariances)

    def one_sample(key):
        def step(points, t):
            number, gains, offsets, factor = t
            losses, grads = problem.evaluate(points, number)
            own = problem.blocks(points)
            noise = jr.normal(jr.fold_in(key, number), own.shape, own.dtype)
            actions = jnp.einsum("nbij,nbj->nbi", gains, own) + offsets
            actions = actions + jnp.einsum("nbij,nbj->nbi", factor, noise)
            return points + actions.reshape(points.shape), (points, losses, grads)

        numbers = jnp.arange(settings.num_steps)
        by_step = [jnp.moveaxis(x, 2, 0) for x in (controllers.gains, controllers.offsets, factors)]
        last, found = lax.scan(step, problem.starts, (numbers, *by_step))
        end = (last, *problem.evaluate(last, jnp.asarray(settings.num_steps)))
        return [jnp.moveaxis(jnp.concatenate([x, y[None]]), 0, 1) for x, y in zip(found, end, strict=True)]

    points, losses, grads = jax.vmap(one_sample, out_axes=1)(jr.split(key, settings.num_samples))
    return _Paths(points, losses, grads)


def _weights(paths: _Paths, settings: SearchSettings) -> Float[Array, "objectives steps"]:
    # Of mean one, so that all else keeps its meaning.
    means = jnp.mean(paths.losses[..., 1:], axis=1)
    num_steps = settings.num_steps

    def one(losses, first):
        return jax.grad(lambda x: settings.weighting.of(x, 0, num_steps, first))(losses)

    weights = jax.vmap(one)(means, paths.losses[:, 0, 0])
    return weights / jnp.mean(weights, axis=1, keepdims=True)


def _expand(
    problem: _Problem,
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


def _dynamics(problem: _Problem) -> LinearDynamics:
    _, blocks, size = problem.blocks(problem.starts).shape
    one = LinearDynamics.adding(problem.settings.num_steps, size, problem.starts.dtype)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (blocks, *x.shape)), one)


def _start_of(problem: _Problem):
    means = problem.blocks(problem.starts)
    return means, jnp.zeros((*means.shape, means.shape[-1]), means.dtype)


def _marginals(problem: _Problem, controllers: LinearGaussian):
    dynamics = _dynamics(problem)
    over_blocks = jax.vmap(propagate, in_axes=(0, 0, 0, 0))
    return jax.vmap(over_blocks, in_axes=(0, None, 0, 0))(controllers, dynamics, *_start_of(problem))


def _expected(problem: _Problem, cost: QuadraticCost, controllers: LinearGaussian):
    each = jax.vmap(jax.vmap(expected_cost))(cost, controllers, _marginals(problem, controllers))
    return jnp.sum(each, axis=1)


def _linearized(
    problem: _Problem, answers: Array, paths: _Paths, covariance: Float[Array, "blocks size size"]
) -> LinearGaussian:
    """The policy as a controller: its answers along the samples, regressed on where they were given."""

    def one(points, answers, covariance):
        centered = points - jnp.mean(points, axis=0, keepdims=True)
        moved = answers - jnp.mean(answers, axis=0, keepdims=True)
        spread = centered.T @ centered
        size = len(spread)
        ridge = _RIDGE * jnp.trace(spread) / size + _TINY
        spread = spread + ridge * jnp.eye(size, dtype=spread.dtype)
        gain = cho_solve((jnp.linalg.cholesky(spread), True), centered.T @ moved).T
        rest = moved - centered @ gain.T
        offset = jnp.mean(answers, axis=0) - gain @ jnp.mean(points, axis=0)
        return gain, offset, covariance + rest.T @ rest / len(rest)

    # (objectives, samples, steps, blocks, size), mapped over all but samples and size.
    args = problem.blocks(paths.points[:, :, :-1]), problem.blocks(answers)
    over_steps = jax.vmap(one, in_axes=(1, 1, None))
    over_blocks = jax.vmap(over_steps, in_axes=(2, 2, 0))
    return LinearGaussian(*jax.vmap(over_blocks, in_axes=(0, 0, None))(*args, covariance))


def _improved(
    problem: _Problem, cost: QuadraticCost, old: LinearGaussian, policy: LinearGaussian, search: SearchState
) -> LinearGaussian:
    """The controllers' step of BADMM: min E[c − λᵀu] + ν·KL(ψ ‖ π), not far from the samples."""
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
        )[0]

    return jax.vmap(one)(cost, old, policy, search.duals, search.penalty, bounds, *_start_of(problem))


def _actions(problem: _Problem, controllers: LinearGaussian, paths: _Paths):
    """What the controllers mean to do where the samples were, `(objectives, samples, steps, dim)`."""
    points = problem.blocks(paths.points[:, :, :-1])
    actions = jnp.einsum("nbtij,nmtbj->nmtbi", controllers.gains, points)
    return (actions + jnp.moveaxis(controllers.offsets, 1, 2)[:, None]).reshape(
        *points.shape[:-2], problem.starts.shape[-1]
    )


def _shared_covariance(controllers: LinearGaussian, sound: Bool[Array, " objectives"]):
    # The noise for which the sum of all KL(π ‖ ψ) is least: Levine et al. 2016 (arXiv:1504.00702), app. A.
    precisions = _inverse(controllers.covariances)
    among = sound.reshape(-1, *(1,) * (precisions.ndim - 1))
    return _inverse(jnp.mean(precisions, axis=(0, 2), where=among))


def _inverse(matrices):
    # Of positive definite ones.
    eye = jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)
    return cho_solve((jnp.linalg.cholesky(matrices), True), eye)


def _finite(sampled: Array, paths: _Paths, cost: QuadraticCost) -> Bool[Array, " objectives"]:
    each = jax.tree.leaves((sampled, paths.grads, cost))
    return functools.reduce(
        jnp.logical_and, (jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1) for x in each)
    )


def _where(sound: Bool[Array, " objectives"], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(sound.reshape(-1, *(1,) * (x.ndim - 1)), x, y), new, old)


def _disagreement(problem: _Problem, controllers: LinearGaussian, gaps: Array):
    """½·E[(μ − û)ᵀ C⁻¹ (μ − û)] per step: how far apart policy and controllers are, in nats."""
    gaps = problem.blocks(gaps)
    precisions = _inverse(controllers.covariances)
    squares = jnp.einsum("nmtbi,nbtij,nmtbj->nmt", gaps, precisions, gaps)
    return jnp.mean(squares, axis=(1, 2)) / 2


def _penalties(penalty, apart, settings: SearchSettings):
    # Twice where policy and controllers are more than a step apart, half where less than a tenth of one.
    new = jnp.where(apart > settings.kl_step, 2 * penalty, penalty)
    new = jnp.where(apart < settings.kl_step / 10, penalty / 2, new)
    least, most = (settings.penalty * x for x in _PENALTY)
    return jnp.clip(new, least, most)


class _Fitter(NamedTuple):
    # The policy's part: answers along paths, and the regression of these on what the controllers do.
    static: PyTree
    meta_optimizer: optax.GradientTransformation
    problem: _Problem

    def means(self, arrays: PyTree, paths: _Paths) -> Array:
        """The policy's answers along all paths, `(objectives, samples, steps, dim)`."""

        def one_objective(points, losses, grads, key):
            over_samples = jax.vmap(self._along, in_axes=(None, 0, 0, 0, None))
            return over_samples(arrays, points, losses, grads, key)

        return jax.vmap(one_objective)(paths.points, paths.losses, paths.grads, self.problem.draws.keys)

    def _along(self, arrays, points, losses, grads, key):
        problem = self.problem
        optimizer: AbstractOptimizer = eqx.combine(arrays, self.static)
        num_steps = problem.settings.num_steps
        params, slopes = (problem.tree(x[:-1]) for x in (points, grads))
        first = optimizer.init_for(jax.tree.map(lambda x: x[0], params), num_steps)

        def step(state, t):
            number, params, value, slope = t
            seen = Seen(slope, value, jr.fold_in(key, number))
            updates, new = take_step(optimizer, seen, state, params)
            return cast_like(new, state), ravel_pytree(updates)[0]

        return lax.scan(step, first, (jnp.arange(num_steps), params, losses[:-1], slopes))[1]

    def fit(
        self,
        arrays: PyTree,
        meta_state: PyTree,
        paths: _Paths,
        search: SearchState,
        sound: Bool[Array, " objectives"],
        key: PRNGKeyArray,
    ) -> tuple[PyTree, PyTree, Scalar]:
        """The policy's step of BADMM: min λᵀμ + (ν/2)(μ − û)ᵀC⁻¹(μ − û) over the samples.

        The square is completed: answers are regressed on û − Cλ/ν.
        """
        problem, settings = self.problem, self.problem.settings
        controllers = search.controllers
        # λ and C in the order (objectives, steps, blocks, …).
        covariances = jnp.moveaxis(controllers.covariances, 1, 2)
        shift = jnp.einsum("ntbij,ntbj->ntbi", covariances, search.duals)
        shift = (shift / search.penalty[:, None, None, None]).reshape(*shift.shape[:2], -1)
        targets = _actions(problem, controllers, paths) - shift[:, None]
        weights = _inverse(covariances) * search.penalty[:, None, None, None, None]
        weights = select(sound, weights, 0.0)
        weights = weights / jnp.mean(jnp.trace(weights, axis1=-2, axis2=-1))
        num_objectives, num_samples = paths.losses.shape[:2]
        count = num_objectives * num_samples
        batch = min(settings.fit_batch, count)

        def error(arrays, chosen):
            number, sample = chosen // num_samples, chosen % num_samples
            points, losses, grads = (x[number, sample] for x in (paths.points, paths.losses, paths.grads))
            along = jax.vmap(self._along, in_axes=(None, 0, 0, 0, 0))
            means = along(arrays, points, losses, grads, problem.draws.keys[number])
            gaps = problem.blocks(means - targets[number, sample])
            return jnp.mean(jnp.einsum("mtbi,mtbij,mtbj->mt", gaps, weights[number], gaps))

        def update(carry, key):
            arrays, meta_state = carry
            chosen = jr.randint(key, (batch,), 0, count)
            floats, others = eqx.partition(arrays, eqx.is_inexact_array)
            loss, grads = jax.value_and_grad(lambda x: error(eqx.combine(x, others), chosen))(floats)
            changes, meta_state = self.meta_optimizer.update(grads, meta_state, floats)
            return (eqx.combine(add_updates(floats, changes), others), meta_state), loss

        keys = jr.split(key, settings.fit_updates)
        (arrays, meta_state), losses = lax.scan(update, (arrays, meta_state), keys)
        return arrays, meta_state, jnp.mean(losses[-max(1, settings.fit_updates // 4) :])
