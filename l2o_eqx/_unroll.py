import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._engine._inner import as_batch, run_steps
from ._engine._layout import add_axis, drop_axis, from_batched_state, to_batched_state
from ._errors import ArgumentError
from ._types import Params, State, StepNumber
from .objectives import AbstractObjective
from .optimizers import AbstractOptimizer


class Unroll(eqx.Module):
    """The result of `unroll`: the losses before each step, and where the steps ended.

    `state` is the optimizer's, `objective_state` that of the objective, if it has any.
    """

    losses: Float[Array, " steps"]
    params: Params
    state: State
    objective_state: State = None


def unroll(
    optimizer: AbstractOptimizer,
    objective: AbstractObjective,
    params: Params,
    state: State,
    num_steps: int,
    *,
    start: StepNumber = 0,
    key: PRNGKeyArray,
    objective_state: State = None,
) -> Unroll:
    """Lets an optimizer take `num_steps` steps on one objective.

    Differentiable through everything, the objective's gradients included; the objective's state, if it has
    any, is a constant. Compiled on its first call for given shapes; `start` may change without compiling
    again.

    **Arguments:**

    - `optimizer`: learned or wrapped by `FromOptax`.
    - `objective`: e.g. `Quadratic().sample(key)`.
    - `params`, `state`: from `objective.init(key)` and `optimizer.init(params)`, or the end of an earlier
        unroll. A learned start is taken if they are from `optimizer.initial_params`.
    - `num_steps`: how many inner steps.
    - `start`: number of the first step in its super epoch.
    - `key`: with the step's number it picks each minibatch; keep it for the whole super epoch.
    - `objective_state`: of an objective with a state, the end of an earlier unroll; by default
        `objective.init_state(key)`.

    **Returns:** an `Unroll`; `losses[t]` is f(θ_t), before step t's update.

    **Raises:** `ValueError` for fewer than one step.
    """
    if num_steps < 1:
        raise ArgumentError(
            f"`unroll(num_steps=...)` needs at least one step. Got {num_steps}.", argument="num_steps"
        )
    return _unroll(optimizer, objective, params, state, num_steps, jnp.asarray(start), key, objective_state)


@eqx.filter_jit
def _unroll(optimizer, objective, params, state, num_steps, start, key, objective_state):
    params = add_axis(params)
    # In one block, because others may differentiate through it.
    states = add_axis(objective.init_state(key) if objective_state is None else objective_state)
    state = to_batched_state(optimizer, state, params).with_objectives(states).uncut()
    params, state, record = run_steps(
        optimizer, as_batch(objective), params, state, num_steps, start=start, keys=key[None]
    )
    states = drop_axis(state.of_objectives)
    return Unroll(record.losses[:, 0], drop_axis(params), from_batched_state(state), states)
