"""The policy of a policy search: its answers along samples, and how it is fitted to controllers."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .._draws import losses_of
from .._engine._losses import select
from .._linear_algebra import cholesky
from .._misc import add_updates, cast_like, ravel
from .._types import Scalar
from ..optimizers import AbstractOptimizer, Seen, take_step
from ._problem import Paths, Problem, sample


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
        first = self._first(optimizer, points[0])

        def step(state, t):
            number, point, loss, grad = t
            return self._answer(optimizer, state, number, point, loss, grad, key)

        return lax.scan(step, first, (jnp.arange(num_steps), points[:-1], losses[:-1], grads[:-1]))[1]

    def _first(self, optimizer, point):
        return optimizer.init_for(self.problem.tree(point), self.problem.settings.num_steps)

    def _answer(self, optimizer, state, number, point, loss, grad, key):
        params, slope = (self.problem.tree(x) for x in (point, grad))
        seen = Seen(slope, loss, jr.fold_in(key, number))
        updates, new = take_step(optimizer, seen, state, params)
        return cast_like(new, state), ravel(updates, self.problem.starts.dtype)

    def sample(self, arrays: PyTree, covariance: Array, key: PRNGKeyArray) -> tuple[Paths, Array]:
        """Trajectories of the policy with noise, and its answers along them."""
        problem = self.problem
        optimizer: AbstractOptimizer = eqx.combine(arrays, self.static)
        num_steps, keys = problem.settings.num_steps, problem.draws.keys

        def act(states, number, points, losses, grads):
            each = jax.vmap(functools.partial(self._answer, optimizer), in_axes=(0, None, 0, 0, 0, 0))
            return each(states, number, points, losses, grads, keys)

        first = jax.vmap(functools.partial(self._first, optimizer))(problem.starts)
        factor = cholesky(covariance)
        factors = jnp.broadcast_to(factor, (num_steps, 1, *factor.shape))
        return sample(problem, first, act, factors, key)

    def fit(
        self,
        arrays: PyTree,
        meta_state: PyTree,
        paths: Paths,
        targets: Float[Array, "objectives samples steps dim"],
        precisions: Float[Array, "objectives steps blocks size size"],
        key: PRNGKeyArray,
    ) -> tuple[PyTree, PyTree, Scalar]:
        """Regression: min Σ (μ − targets)ᵀ precisions (μ − targets) over the samples.

        Of objectives without precision nothing is learned; without any nothing changes.
        """
        problem, settings = self.problem, self.problem.settings
        anything = jnp.any(precisions != 0)
        used = jnp.any(precisions != 0, axis=(1, 2, 3, 4))
        paths, targets = select(used, (paths, targets), 0.0)
        tiny = jnp.finfo(precisions.dtype).tiny
        weights = precisions / jnp.maximum(jnp.mean(jnp.trace(precisions, axis1=-2, axis2=-1)), tiny)
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
        before = (arrays, meta_state)
        after, losses = lax.scan(update, before, keys)
        arrays, meta_state = jax.tree.map(lambda x, y: jnp.where(anything, x, y), after, before)
        return arrays, meta_state, jnp.mean(losses[-max(1, settings.fit_updates // 4) :])

    def metrics(
        self, arrays: PyTree, meta_state: PyTree, sound: Bool[Array, " objectives"]
    ) -> dict[str, Array]:
        """Of the policy alone, without noise, and of the objectives that did not fail."""
        problem = self.problem
        reached = losses_of(eqx.combine(arrays, self.static), problem.draws, problem.settings.num_steps)
        skipped = optax.tree.get_all_with_path(meta_state, "total_notfinite")
        return {
            "mean_loss": jnp.mean(reached, where=sound[:, None]),
            "final_loss": jnp.mean(reached[:, -1], where=sound),
            "skipped_updates": sum((n for _, n in skipped), jnp.asarray(0)),
            "failed_objectives": jnp.sum(~sound),
        }
