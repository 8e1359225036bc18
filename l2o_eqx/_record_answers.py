import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ._checks import check_sizes
from ._engine._inner import as_batch, show
from ._engine._layout import add_axis, batched_init, batched_update, begin_at, drop_axis, from_batched_state
from ._engine._losses import losses_and_grads
from ._misc import add_updates
from .objectives import AbstractObjectiveFamily
from .optimizers import AbstractOptimizer, Answers, Whole, ask


class AnswerRecord(eqx.Module):
    """What the networks of an optimizer saw and answered at every step of some runs.

    **Fields:**

    - `losses`: before each step; on data, that of the minibatch which the step sees.
    - `answers`: with the same two axes in front.
    """

    losses: Float[Array, "objectives steps"]
    answers: Answers


def record_answers(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    *,
    num_steps: int,
    num_objectives: int = 8,
    key: PRNGKeyArray,
) -> AnswerRecord | None:
    """Runs an optimizer on objectives of a family, and keeps what its networks see and answer at every step.

    **Arguments:**

    - `optimizer`: one that answers something to `answers`, such as `LearnedMomentum`, or a wrapper of it.
    - `family`: what it runs on.
    - `num_steps`: inner steps on each objective.
    - `num_objectives`: how many are drawn.
    - `key`: draws objectives, starting points and minibatches.

    **Returns:** the record, or `None` for an optimizer that has nothing to tell.

    **Raises:** `ValueError` for sizes below 1.
    """
    check_sizes("record_answers", num_steps=num_steps, num_objectives=num_objectives)
    return _record(optimizer, family, num_steps, jr.split(key, num_objectives))


@eqx.filter_jit
def _record(optimizer, family, num_steps, keys):
    def of_objective(key):
        okey, ikey, lkey = jr.split(key, 3)
        objective = family.sample(okey)
        batch, run_keys = as_batch(objective), lkey[None]
        params = begin_at(optimizer, add_axis(objective.init(ikey)))

        def one_step(carry, step):
            params, state, of_objective = carry
            losses, grads, of_objective = losses_and_grads(batch, params, step, run_keys, of_objective)
            whole = show(optimizer, Whole(), grads, losses, step, run_keys)
            told = ask(optimizer, drop_axis(whole), from_batched_state(state), drop_axis(params))
            seen = show(optimizer, state.layout, state.layout.lay_out(grads), losses, step, run_keys)
            updates, state = batched_update(optimizer, seen, state, params)
            return (add_updates(params, updates), state, of_objective), (losses[0], told)

        begin = (params, batched_init(optimizer, params, num_steps), add_axis(objective.init_state(ikey)))
        return lax.scan(one_step, begin, jnp.arange(num_steps))[1]

    losses, told = lax.map(of_objective, keys)
    return None if told is None else AnswerRecord(losses, told)
