"""The steps that an estimator is asked about."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from .._engine._inner import FIRST_ORDER, Record, init_params, init_states, run_training_steps
from .._engine._layout import BatchState, batched_init, begin_at, learns_start
from .._types import Keys, Params, Scalar, StepNumber
from ..objectives import ObjectiveBatch
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting


class Health(eqx.Module):
    """What is remembered of every objective during a super epoch: whether it has been finite, and f(θ_1).

    NaN stands for a first loss that is not known: the window's own is taken.
    """

    sound: Bool[Array, " objectives"]
    first_losses: Float[Array, " objectives"]


class Taken(eqx.Module):
    """The steps of a window that have been taken already.

    **Fields:**

    - `record`: of these steps.
    - `optimizers`: the floating-point arrays of the optimizers that took them, the steps on a leading axis,
        if they were others than today's.
    - `params`, `state`: where they ended, if that is known.
    """

    record: Record
    optimizers: PyTree[Float[Array, "steps ..."]] | None = None
    params: Params | None = None
    state: BatchState | None = None


class WindowResult(eqx.Module):
    """What an estimator finds of a window.

    **Fields:**

    - `losses`: f(θ_t) at the window's steps (and after it, with `include_final_loss`).
    - `meta_loss`: what the weighting makes of them, or of the outer losses if objectives have others; the
        mean over objectives that are finite.
    - `grads`: an estimate of how the meta-loss changes with the meta-parameters, with the structure of the
        optimizer; its other leaves are `None`.
    - `params`, `state`: where the window ends, `None` if that is not known.
    - `health`: of the objectives at its end.
    """

    losses: Float[Array, "losses objectives"]
    meta_loss: Scalar
    grads: PyTree
    params: Params | None
    state: BatchState | None
    health: Health


class Window(eqx.Module):
    """Consecutive inner steps of a batch of objectives, all that an estimator is told of them.

    **Fields:**

    - `objectives`: one inner optimization each.
    - `params`, `state`: where the window begins, with an objectives axis; constants.
    - `start`: number of its first step in the super epoch.
    - `num_steps`: length of the super epoch, for weightings that ask.
    - `keys`: with a step's number they pick each minibatch; the same for the whole super epoch.
    - `health`: of the objectives so far.
    - `length`: T, the number of steps.
    - `include_final_loss`: adds the loss f(θ_{T+1}) after the last update, which is then trained, too; as in
        the code of Andrychowicz et al. Without it the updates u_1 … u_{T−1} are (thesis eq. 3.5).
    - `begins`: whether the window is the first, and the optimizer has a say in where it begins: `params` are
        then as drawn, and the run begins at `optimizer.initial_params` of them.
    - `taken`: the steps as they were taken, where the strategy has done so; by whom and when may matter to an
        estimator.
    """

    objectives: ObjectiveBatch
    params: Params
    state: BatchState
    start: StepNumber
    num_steps: StepNumber
    keys: Keys
    health: Health
    length: int = eqx.field(static=True)
    include_final_loss: bool = eqx.field(static=True, default=False)
    begins: bool = eqx.field(static=True, default=False)
    taken: Taken | None = None

    def run(
        self,
        optimizer: AbstractOptimizer,
        constants: frozenset[str] = FIRST_ORDER,
        *,
        recompute: bool = False,
        forward: bool = False,
    ) -> tuple[Params, BatchState, Record]:
        """Takes the steps; differentiable, but for what is in `constants` (see `Backprop`).

        With `recompute`, a reverse pass computes the optimizer's activations again, step by step. With
        `forward` it is differentiable in forward mode alone.
        """
        return run_training_steps(
            optimizer,
            self.objectives,
            self.first_params(optimizer),
            self.state,
            self.length,
            start=self.start,
            keys=self.keys,
            sound=self.health.sound,
            constants=constants,
            recompute=recompute,
            forward=forward,
            include_final_loss=self.include_final_loss,
        )

    def later(self, optimizer: AbstractOptimizer, count: StepNumber) -> "Window":
        """The window of the same length that begins `count` steps later; nothing is differentiated.

        **Arguments:**

        - `count`: may be traced.
        """

        def one_step(step, carry):
            params, state, sound, losses = carry
            params, state, record = run_training_steps(
                optimizer,
                self.objectives,
                params,
                state,
                1,
                start=self.start + step,
                keys=self.keys,
                sound=sound,
                constants=FIRST_ORDER,
            )
            first = jnp.where(jnp.isnan(losses), record.weighed[0].astype(losses.dtype), losses)
            return params, state, record.sound, first

        begin = (self.first_params(optimizer), self.state, self.health.sound, self.health.first_losses)
        params, state, *health = lax.fori_loop(0, count, one_step, begin)
        start = self.start + count
        return dataclasses.replace(
            self, params=params, state=state, health=Health(*health), start=start, begins=False, taken=None
        )

    def first_params(self, optimizer: AbstractOptimizer) -> Params:
        """θ_1 of the window."""
        return begin_at(optimizer, self.params) if self.begins else self.params

    def uncut(self) -> "Window":
        """The same with the optimizer's state in as few pieces as possible, to be differentiated through."""
        return dataclasses.replace(self, state=self.state.uncut())

    def after(self, result: WindowResult, length: int | None = None) -> "Window":
        """The window that begins where this one ended, by default of the same length."""
        return dataclasses.replace(
            self,
            params=result.params,
            state=result.state,
            health=result.health,
            start=self.start + self.length,
            length=self.length if length is None else length,
            begins=False,
            taken=None,
        )

    def meta_loss(self, weighting: AbstractWeighting, record: Record) -> tuple[Scalar, Health]:
        """The mean over sound objectives of what the weighting makes of their losses; NaN if there are none.

        Also the health at the window's end.
        """
        losses, sound = record.weighed, record.sound
        first = self._first_losses(losses)
        shares = self.shares(sound)
        usable = jnp.where(sound | jnp.isnan(shares), losses, 1)
        meta_losses = self._weigh(weighting, usable, jnp.where(sound, first, 1))
        return jnp.sum(meta_losses * shares), Health(sound, first)

    def shares(self, sound: Bool[Array, " objectives"]) -> Float[Array, " objectives"]:
        """What each objective counts in a mean over those that are sound.

        If none is, NaN, and with it the whole meta-gradient: zeros would be followed by a meta-optimizer that
        has momentum.
        """
        count = count_sound(sound, self.objectives)
        # XLA makes 0/0 of a truth value zero.
        return jnp.where(count == 0, jnp.nan, sound / count)

    def meta_losses(self, weighting: AbstractWeighting, record: Record) -> Float[Array, " objectives"]:
        """Of every objective by itself; 0 where it is not sound."""
        losses, sound = record.weighed, record.sound
        first = self._first_losses(losses)
        meta_losses = self._weigh(weighting, jnp.where(sound, losses, 1), jnp.where(sound, first, 1))
        return jnp.where(sound, meta_losses, 0)

    def _first_losses(self, losses):
        # Of the super epoch; the window's own where none are known yet.
        return jnp.where(jnp.isnan(self.health.first_losses), losses[0], self.health.first_losses)

    def _weigh(self, weighting, losses, first):
        def weigh(losses, first):
            return weighting.of(losses, self.start, self.num_steps, lax.stop_gradient(first))

        return jax.vmap(weigh, in_axes=(1, 0))(losses, first)


def first_window(
    optimizer: AbstractOptimizer,
    objectives: ObjectiveBatch,
    length: int,
    *,
    num_steps: int,
    init_keys: Keys,
    loss_keys: Keys,
    include_final_loss: bool = False,
) -> Window:
    """The first window of a super epoch of `num_steps`; `init_keys` draw where it begins.

    **Arguments:** as the fields of `Window`; `loss_keys` are its `keys`.
    """
    params = init_params(objectives, init_keys)
    # A learned start has its say in the state, too.
    start = begin_at(optimizer, params)
    state = batched_init(optimizer, start, num_steps, axis=objectives.coordinate_axis)
    state = state.with_objectives(init_states(objectives, init_keys))
    return Window(
        objectives,
        params,
        state,
        0,
        num_steps + include_final_loss,
        loss_keys,
        first_health(params),
        length,
        include_final_loss,
        learns_start(optimizer, params),
    )


def first_health(params: Params) -> Health:
    """Before the first window; `params` have the objectives axis."""
    count = jax.tree.leaves(params)[0].shape[0]
    return Health(jnp.ones(count, bool), jnp.full(count, jnp.nan))


def count_sound(sound: Bool[Array, " objectives"], objectives: ObjectiveBatch) -> Scalar:
    """How many objectives are sound, on the average of all devices, over whose results means are taken."""
    return objectives.mean_over_devices(jnp.sum(sound).astype(jnp.result_type(float)))
