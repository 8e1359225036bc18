"""The policy of a policy search: its answers along samples, and how it is fitted to controllers."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .._engine._losses import select
from .._misc import add_updates, cast_like, ravel
from .._types import Scalar
from ..optimizers import AbstractOptimizer, Seen, take_step
from ._controllers import inverse
from ._problem import Paths, Problem, SearchState


class Fitter(NamedTuple):
    """The policy's part: answers along paths, and the regression of these on what the controllers do."""

    static: PyTree
    meta_optimizer: optax.GradientTransformation
    problem: Problem

    def means(self, arrays: PyTree, paths: Paths) -> Array:
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
            return cast_like(new, state), ravel(updates, problem.starts.dtype)

        return lax.scan(step, first, (jnp.arange(num_steps), params, losses[:-1], slopes))[1]

    def fit(
        self,
        arrays: PyTree,
        meta_state: PyTree,
        paths: Paths,
        intended: Float[Array, "objectives samples steps dim"],
        search: SearchState,
        sound: Bool[Array, " objectives"],
        key: PRNGKeyArray,
    ) -> tuple[PyTree, PyTree, Scalar]:
        """The policy's step of BADMM: min λᵀμ + (ν/2)(μ − û)ᵀC⁻¹(μ − û) over the samples, û being `intended`.

        The square is completed: answers are regressed on û − Cλ/ν.
        """
        problem, settings = self.problem, self.problem.settings
        # λ and C in the order (objectives, steps, blocks, …).
        covariances = jnp.moveaxis(search.controllers.covariances, 1, 2)
        shift = jnp.einsum("ntbij,ntbj->ntbi", covariances, search.duals)
        shift = (shift / search.penalty[:, None, None, None]).reshape(*shift.shape[:2], -1)
        targets = intended - shift[:, None]
        weights = inverse(covariances) * search.penalty[:, None, None, None, None]
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
