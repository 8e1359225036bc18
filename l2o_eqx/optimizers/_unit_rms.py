import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from .._errors import ArgumentError
from .._misc import unit_rms
from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractOptimizer
from ._layouts import Seen, take_step
from ._wrapper import AbstractWrapper


class _UnitRMSState(eqx.Module):
    step: Array
    inner: State


class UnitRMS(AbstractWrapper):
    """Takes only the direction of another optimizer's updates; how far to go stays the user's.

    Of every tensor the update u becomes α_t·u/rms(u) − α_t·λ·θ, with the rate α_t of step t = 0, 1, …, the
    weight decay λ, and rms(u) = √mean(u²), taken in at least float32. A zero u stays zero. Neither α nor λ
    is a meta-parameter.

    Use it to run a trained optimizer with a rate and a schedule tuned by hand, or to train the direction
    alone. It works around any optimizer. As the entries of a tensor share their norm, it is not
    coordinatewise, and runs the inner optimizer on all coordinates at once; in an optax loop
    `l2o_eqx.as_optax(inner, output="rms")` does so block by block.

    **Arguments:**

    - `inner`: whose directions are taken.
    - `learning_rate`: α, a number or an optax schedule. `l2o_eqx.save` cannot store a schedule.
    - `weight_decay`: λ.

    **Raises:** `ValueError` for a negative weight decay, and on `update` for a weight decay without params.

    Reference: the output of Celo2 (2026), and of μ-parametrized and normalized updates in general.
    """

    inner: AbstractOptimizer
    learning_rate: float | optax.Schedule = eqx.field(static=True, default=1e-3)
    weight_decay: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if not self.weight_decay >= 0:
            raise ArgumentError(
                f"`UnitRMS(weight_decay=...)` cannot be negative. Got weight_decay={self.weight_decay}.",
                argument="weight_decay",
                given=self.weight_decay,
            )

    def inner_state(self, state: State) -> State:
        return state.inner

    def init(self, params: Params) -> State:
        return _UnitRMSState(jnp.zeros((), jnp.int32), self.inner.init(params))

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        return _UnitRMSState(jnp.zeros((), jnp.int32), self.inner.init_for(params, num_steps))

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        if params is None and self.weight_decay:
            raise ArgumentError(
                "`UnitRMS(weight_decay=...)` needs the params: hand them to `update`.",
                argument="params",
            )
        updates, inner = take_step(self.inner, Seen(grads, value, key), state.inner, params)
        rate = self.learning_rate(state.step) if callable(self.learning_rate) else self.learning_rate
        updates = jax.tree.map(lambda u: (rate * u).astype(u.dtype), unit_rms(updates))
        if self.weight_decay:
            decay = rate * self.weight_decay
            updates = jax.tree.map(lambda u, p: (u - decay * p).astype(u.dtype), updates, params)
        return updates, _UnitRMSState(state.step + 1, inner)
