"""The objectives of a policy search, flat and in blocks, and samples of what happens on them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._devices import Restarts
from .._draws import Draws, draw
from .._engine._losses import loss_function, losses_and_grads
from .._misc import ravel, tree_dtype, unravel_like, wide_dtype_of
from .._types import Params
from ..control import LinearGaussian
from ..objectives import AbstractObjectiveFamily
from ..weightings import AbstractWeighting

Method = Literal["mirror-descent", "badmm"]
Structure = Literal["full", "diagonal"]

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


class MirrorState(eqx.Module):
    """What a search by mirror descent remembers, beside the policy.

    **Fields:**

    - `covariance`: of the policy's noise, the same everywhere.
    - `multiplier`: of the bound on a controller's step.
    """

    covariance: Float[Array, "*restarts blocks size size"]
    multiplier: Float[Array, "*restarts"]


class BadmmState(eqx.Module):
    """What a search by BADMM remembers of every objective, beside the policy.

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


class Problem(NamedTuple):
    """The draws of a restart, and how their params are made of a flat vector."""

    draws: Draws
    starts: Float[Array, "objectives dim"]
    like: Params
    settings: SearchSettings

    def blocks(self, flat):
        """(…, dim) as (…, blocks, size)."""
        dim = self.starts.shape[-1]
        shape = (1, dim) if self.settings.structure == "full" else (dim, 1)
        return flat.reshape(*flat.shape[:-1], *shape)

    def tree(self, flat):
        """(…, dim) as params with the same axes in front."""
        leading = flat.shape[:-1]
        unravel = jax.vmap(lambda x: unravel_like(x, self.like))
        tree = unravel(flat.reshape(-1, flat.shape[-1]))
        return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), tree)

    def flat(self, tree):
        """One vector per objective."""
        return ravel(tree, self.starts.dtype, num_leading=1)

    def evaluate(self, points, step):
        """Losses and gradients of all objectives at a point each, `(objectives, dim)`."""
        draws = self.draws
        keys = draws.keys
        losses, grads, _ = losses_and_grads(draws.objectives, self.tree(points), step, keys, draws.states)
        return losses.astype(points.dtype), self.flat(grads)

    def hessians(self, points, step, key):
        """The blocks of the Hessians at a point each, `(objectives, blocks, size, size)`."""
        draws = self.draws
        arrays = (draws.objectives.own, draws.states, points, draws.keys)

        def one(own, state, point, objective_key):
            function = loss_function(draws.objectives, own, state, step, objective_key)

            def value(flat):
                return function(unravel_like(flat, self.like))[0].astype(flat.dtype)

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
        draws = draw(family, keys if runs.count is None else keys.reshape(-1, *keys.shape[2:]))
        shape = (*runs.shape, draws.count // (runs.count or 1))
        return cls(jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), draws.arrays), draws)

    def problem(self, arrays: PyTree, settings: SearchSettings) -> Problem:
        """Those of one restart."""
        draws = self.all.with_arrays(arrays)
        # Regulators and regressions need more than half precision.
        starts = ravel(draws.params, wide_dtype_of(tree_dtype(draws.params)), num_leading=1)
        return Problem(draws, starts, jax.tree.map(lambda x: x[0], draws.params), settings)


class Paths(eqx.Module):
    """Sampled trajectories, flat: where they were, and what an optimizer sees there."""

    points: Float[Array, "objectives samples points dim"]
    losses: Float[Array, "objectives samples points"]
    grads: Float[Array, "objectives samples points dim"]


def sample(problem: Problem, first: PyTree, act: Callable[..., Any], factors: Any, key: PRNGKeyArray) -> Any:
    """Trajectories, `num_samples` of each objective, with what was meant to be done along them.

    **Arguments:**

    - `first`: what goes along with the points of all objectives, from step to step.
    - `act`: takes it with the step's number, points, losses and gradients, and answers with what goes on and
        the mean actions, all `(objectives, dim)`.
    - `factors`: Cholesky's, of the noise of every step; `(steps, objectives or 1, blocks, size, size)`.

    **Returns:** the paths, and the mean actions, `(objectives, samples, steps, dim)`.
    """
    num_steps = problem.settings.num_steps

    def one_sample(key):
        def step(carry, t):
            number, factor = t
            points, along = carry
            losses, grads = problem.evaluate(points, number)
            along, actions = act(along, number, points, losses, grads)
            own = problem.blocks(points)
            noise = jr.normal(jr.fold_in(key, number), own.shape, own.dtype)
            noise = (factor @ noise[..., None]).reshape(points.shape)
            return (points + actions + noise, along), (points, losses, grads, actions)

        (last, _), found = lax.scan(step, (problem.starts, first), (jnp.arange(num_steps), factors))
        *before, actions = found
        end = (last, *problem.evaluate(last, jnp.asarray(num_steps)))
        paths = [jnp.concatenate([x, y[None]]) for x, y in zip(before, end, strict=True)]
        return [jnp.moveaxis(x, 0, 1) for x in (*paths, actions)]

    *paths, actions = jax.vmap(one_sample, out_axes=1)(jr.split(key, problem.settings.num_samples))
    return Paths(*paths), actions
