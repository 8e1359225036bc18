"""Optimizers that evaluate the objective several times a step, and how often they do."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._baselines import LineSearch
from ._draws import Draws, over_draws
from ._evaluate import Trajectories


@eqx.filter_jit
def run_line_search(optimizer: LineSearch, draws: Draws, num_steps: int) -> Trajectories:
    """Runs an optimizer with line search.

    **Arguments:**

    - `optimizer`: gets `value`, `grad` and `value_fn` at every step; on data all three are those of the
        minibatch of this step.
    - `draws`: what to run it on.
    - `num_steps`: its steps, however many evaluations each takes.

    **Returns:** `Trajectories` with `evaluations`. Every step counts one evaluation of f and ∇f where it
    begins, which optax spares only where f is the same at every step, and one for each step of the search,
    be it of f alone (backtracking) or of both (zoom).
    """
    transformation = optimizer.transformation

    def run_one(objective: Any, params: Any, key: Any) -> Any:
        def one_step(carry, step):
            params, state, spent = carry

            def value_fn(params):
                return objective.loss(params, step, key)

            value, grads = jax.value_and_grad(value_fn)(params)
            updates, state = transformation.update(
                grads, state, params, value=value, grad=grads, value_fn=value_fn
            )
            known = spent + 1
            return (eqx.apply_updates(params, updates), state, known + _searched(state)), (value, known)

        start = (params, transformation.init(params), jnp.int32(0))
        return lax.scan(one_step, start, jnp.arange(num_steps))[1]

    def run_chunk(draws: Draws) -> Any:
        def run(own, params, key):
            return run_one(draws.objectives.select(own), params, key)

        return jax.vmap(run)(draws.objectives.own, draws.params, draws.keys)

    losses, evaluations = over_draws(run_chunk, draws)
    return Trajectories(losses, evaluations=evaluations)


def _searched(state: Any) -> Any:
    # Both of optax's line searches say how many steps the last one took; what searches no line takes none.
    steps = optax.tree.get(state, "num_linesearch_steps", default=0)
    return jnp.asarray(steps, jnp.int32)
