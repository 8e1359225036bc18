"""A policy search by BADMM: its state, and one iteration of it as one compiled program."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, PyTree

from .._devices import Restarts
from .._engine._losses import is_sound, select
from ..control import LinearGaussian
from ..optimizers import AbstractOptimizer
from . import _controllers as control
from ._fitter import Fitter
from ._problem import BadmmState, Drawn, SearchSettings

# Of the multiplier of the step, and of the penalty, in all.
_MULTIPLIER, _PENALTY = (0.01, 10.0), (0.01, 100.0)


@eqx.filter_jit
def init_badmm(drawn: Drawn, settings: SearchSettings, runs: Restarts) -> BadmmState:
    """Controllers that do what gradient descent does, to first order along its way, with noise."""

    def one(arrays):
        problem = drawn.problem(arrays, settings)
        num_objectives, blocks, size = problem.blocks(problem.starts).shape
        rate, dtype = settings.initial_rate, problem.starts.dtype

        def step(points, t):
            _, grads = problem.evaluate(points, t)
            hessians = problem.hessians(points, t, jr.fold_in(problem.draws.keys[0], t))
            own = problem.blocks(points)
            gains = -rate * hessians
            offsets = -rate * problem.blocks(grads) - jnp.einsum("nbij,nbj->nbi", gains, own)
            return points - rate * grads, (gains, offsets)

        _, (gains, offsets) = lax.scan(step, problem.starts, jnp.arange(settings.num_steps))
        noise, each = control.first_noise(problem), jnp.ones(num_objectives, dtype)
        still = control.still(problem, noise)
        found = LinearGaussian(jnp.moveaxis(gains, 0, 2), jnp.moveaxis(offsets, 0, 2), still.covariances)
        # Where gradient descent does not come through, the first controller stays where it is.
        controllers = select(is_sound(each, found), found, still)
        return BadmmState(
            controllers,
            jnp.zeros((num_objectives, settings.num_steps, blocks, size), dtype),
            settings.penalty * each,
            each,
            jnp.full((num_objectives, 2), jnp.nan, dtype),
            noise,
        )

    return runs.over(one)(drawn.arrays)


@eqx.filter_jit
def badmm_step(
    optimizer: AbstractOptimizer,
    meta_state: PyTree,
    search: BadmmState,
    drawn: Drawn,
    keys: Any,
    settings: SearchSettings,
    meta_optimizer: optax.GradientTransformation,
    runs: Restarts,
) -> tuple[AbstractOptimizer, PyTree, BadmmState, dict[str, Array], Array]:
    """Samples, improves the controllers, fits the policy to them.

    **Returns:** what of it goes on, the metrics, and which objectives failed.
    """
    arrays, static = eqx.partition(optimizer, eqx.is_array)

    def one(arrays, meta_state, search, own, key):
        problem = drawn.problem(own, settings)
        fitter = Fitter(static, meta_optimizer, problem)
        skey, hkey, fkey = jr.split(key, 3)
        paths = control.sample_controllers(problem, search.controllers, skey)
        weights, sampled = control.sampled_costs(paths, settings)
        gained = search.costs[:, 0] - sampled
        multiplier = control.adapted(search.multiplier, search.costs[:, 1], gained, _MULTIPLIER)
        search = eqx.tree_at(lambda s: s.multiplier, search, multiplier)
        old = search.controllers
        cost = control.expand(problem, old, weights, hkey)
        # An objective that is not finite is left out: it teaches nothing, and its controller stays.
        sound = is_sound(sampled, (paths.grads, cost))
        paths, cost = select(sound, paths, 0.0), select(sound, cost, 0.0)
        before = control.expected(problem, cost, old)
        carry = (arrays, meta_state, search, fitter.means(arrays, paths), sound)

        def inner(carry, key):
            arrays, meta_state, search, answers, sound = carry
            linear = control.linearized(problem, answers, paths, search.covariance, with_rest=True)
            controllers, kept = control.between(problem, cost, old, linear, search)
            sound = sound & kept & is_sound(sampled, controllers)
            controllers = select(sound, controllers, old)
            intended = control.actions_of(problem, controllers, paths)
            search = eqx.tree_at(lambda s: s.controllers, search, controllers)
            targets, precisions = _regression(intended, search, sound)
            arrays, meta_state, loss = fitter.fit(arrays, meta_state, paths, targets, precisions, key)
            answers = fitter.means(arrays, paths)
            gaps = answers - intended
            gap = problem.blocks(jnp.mean(gaps, axis=1))
            duals = search.duals + settings.dual_rate * search.penalty[:, None, None, None] * gap
            duals = select(sound, duals, search.duals)
            covariance = control.shared_covariance(controllers, sound, search.covariance)
            search = eqx.tree_at(lambda s: (s.duals, s.covariance), search, (duals, covariance))
            return (arrays, meta_state, search, answers, sound), (loss, gaps)

        carry, (losses, gaps) = lax.scan(inner, carry, jr.split(fkey, settings.inner_iterations))
        arrays, meta_state, search, _, sound = carry
        apart = control.disagreement(problem, search.controllers, gaps[-1])
        gain = before - control.expected(problem, cost, search.controllers)
        # Of an objective that was left out nothing was predicted.
        gain = jnp.where(sound, gain, jnp.nan)
        penalty = jnp.where(sound, _penalties(search.penalty, apart, settings), search.penalty)
        search = eqx.tree_at(
            lambda s: (s.costs, s.penalty),
            search,
            (jnp.stack([sampled, gain], axis=1), penalty),
        )
        metrics = {
            **fitter.metrics(arrays, meta_state, sound),
            "meta_loss": losses[-1],
            "teacher_loss": jnp.mean(paths.losses[..., 1:], where=sound[:, None, None]),
            "disagreement": jnp.mean(apart, where=sound),
            "penalty": jnp.mean(search.penalty, where=sound),
            "step_multiplier": jnp.mean(search.multiplier, where=sound),
        }
        return arrays, meta_state, search, metrics, ~sound

    arrays, *found = runs.over(one)(arrays, meta_state, search, drawn.arrays, keys)
    return eqx.combine(arrays, static), *found


def _regression(intended, search, sound):
    # The policy's step, min λᵀμ + (ν/2)(μ − û)ᵀC⁻¹(μ − û), û being intended, with the square completed:
    # answers are regressed on û − Cλ/ν. λ and C are in the order (objectives, steps, blocks, …).
    covariances = jnp.moveaxis(search.controllers.covariances, 1, 2)
    shift = jnp.einsum("ntbij,ntbj->ntbi", covariances, search.duals)
    shift = (shift / search.penalty[:, None, None, None]).reshape(*shift.shape[:2], -1)
    precisions = control.inverse(covariances) * search.penalty[:, None, None, None, None]
    return intended - shift[:, None], select(sound, precisions, 0.0)


def _penalties(penalty, apart, settings: SearchSettings):
    # Twice where policy and controllers are more than a step apart, half where less than a tenth of one.
    new = jnp.where(apart > settings.kl_step, 2 * penalty, penalty)
    new = jnp.where(apart < settings.kl_step / 10, penalty / 2, new)
    least, most = (settings.penalty * x for x in _PENALTY)
    return jnp.clip(new, least, most)
