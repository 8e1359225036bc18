"""A policy search by mirror descent: its state, and one super epoch of it as one compiled program."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, PyTree

from .._devices import Restarts
from .._engine._losses import is_sound, select
from ..optimizers import AbstractOptimizer
from . import _controllers as control
from ._fitter import Fitter
from ._problem import Drawn, MirrorState, SearchSettings

# Of the multiplier of the step, in all.
_MULTIPLIER = (0.1, 10.0)


@eqx.filter_jit
def init_mirror(drawn: Drawn, settings: SearchSettings, runs: Restarts) -> MirrorState:
    """The noise that a policy is sampled with at first."""

    def one(arrays):
        problem = drawn.problem(arrays, settings)
        return MirrorState(control.first_noise(problem), jnp.ones((), problem.starts.dtype))

    return runs.over(one)(drawn.arrays)


@eqx.filter_jit
def mirror_step(
    optimizer: AbstractOptimizer,
    meta_state: PyTree,
    search: MirrorState,
    drawn: Drawn,
    keys: Any,
    settings: SearchSettings,
    meta_optimizer: optax.GradientTransformation,
    runs: Restarts,
) -> tuple[AbstractOptimizer, PyTree, MirrorState, dict[str, Array], Array]:
    """Again and again samples the policy, improves it locally, and fits it to that.

    **Returns:** what of it goes on, the metrics, and which objectives failed.
    """
    arrays, static = eqx.partition(optimizer, eqx.is_array)

    def one(arrays, meta_state, search, own, key):
        problem = drawn.problem(own, settings)
        fitter = Fitter(static, meta_optimizer, problem)
        # The same noise in every iteration, so that their costs differ by what was learned.
        skey, key = jr.split(key)

        def iteration(carry, key):
            arrays, meta_state, search, costs, gains, sound = carry
            hkey, fkey = jr.split(key)
            paths, answers = fitter.sample(arrays, search.covariance, skey)
            weights, sampled = control.sampled_costs(paths, settings)
            # An objective that is not finite is left out: it teaches nothing.
            here = is_sound(sampled, (paths.grads, answers))
            paths, answers = select(here, (paths, answers), 0.0)
            policy = control.linearized(problem, answers, paths, search.covariance, with_rest=False)
            cost = control.expand(problem, policy, weights, hkey)
            here = here & is_sound(sampled, (cost, policy))
            cost = select(here, cost, 0.0)
            policy = select(here, policy, control.still(problem, search.covariance))
            expected, gained = (jnp.mean(x, where=sound & here) for x in (gains, costs - sampled))
            multiplier = control.adapted(search.multiplier, expected, gained, _MULTIPLIER)
            controllers, kept = control.near_policy(problem, cost, policy, multiplier)
            here = here & kept & is_sound(sampled, controllers)
            sound = sound & here
            controllers = select(here, controllers, policy)
            # What the controllers would change, added to what the policy answers: a step of length zero
            # changes nothing, however little of the answers is linear in where they are given.
            before, after = (control.actions_of(problem, c, paths) for c in (policy, controllers))
            targets = answers + after - before
            precisions = select(here, control.inverse(jnp.moveaxis(controllers.covariances, 1, 2)), 0.0)
            arrays, meta_state, loss = fitter.fit(arrays, meta_state, paths, targets, precisions, fkey)
            gaps = fitter.means(arrays, paths) - targets
            gain = control.expected(problem, cost, policy) - control.expected(problem, cost, controllers)
            search = MirrorState(control.shared_covariance(controllers, here, search.covariance), multiplier)
            found = {
                "meta_loss": loss,
                "teacher_loss": jnp.mean(sampled - gain, where=here) / settings.num_steps,
                "disagreement": jnp.mean(control.disagreement(problem, controllers, gaps), where=here),
                "step_multiplier": multiplier,
            }
            return (arrays, meta_state, search, sampled, gain, sound), found

        unknown = jnp.full(problem.starts.shape[0], jnp.nan, problem.starts.dtype)
        carry = (arrays, meta_state, search, unknown, unknown, jnp.ones(unknown.shape, bool))
        carry, found = lax.scan(iteration, carry, jr.split(key, settings.inner_iterations))
        arrays, meta_state, search, *_, sound = carry
        metrics = {
            **fitter.metrics(arrays, meta_state, sound),
            **jax.tree.map(lambda x: x[-1], found),
        }
        return arrays, meta_state, search, metrics, ~sound

    arrays, *found = runs.over(one)(arrays, meta_state, search, drawn.arrays, keys)
    return eqx.combine(arrays, static), *found
