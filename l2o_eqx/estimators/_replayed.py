r"""The meta-gradient along recorded gradients.

With the first-order convention ∂∇_t/∂φ = 0 (thesis eq. 3.8) whatever the optimizer is shown is a
constant, and θ_t = θ_1 + Σ_{τ<t} u_τ, where u_τ is the update of step τ. So for a meta-loss
L(f(θ_1), …, f(θ_T)) with w_t = ∂L/∂f(θ_t)

    dL/dφ = Σ_t w_t ∇f(θ_t)ᵀ Σ_{τ<t} ∂u_τ/∂φ = Σ_τ λ_τᵀ ∂u_τ/∂φ,    λ_τ = Σ_{t>τ} w_t ∇f(θ_t).

Hence two phases. *Record*: run the window, keep the gradients. *Replay*: λ is a suffix sum of the
recorded gradients, and what remains is backpropagation through the optimizer alone along a known
sequence of inputs. The objective is never differentiated twice, nor through the optimizer. Where the
coordinates are independent, the replay runs block by block over them, so that memory is O(T·N) for the
record plus O(T·block) for the activations of one block instead of O(T·N) times the size of a network.
Blocks, and objectives, may lie on different devices; the sum over them is then the only exchange.

Few coordinates keep their activations instead (`Backprop`): reverse-mode differentiation of the first phase,
in which f is linear in θ with slope ∇f(θ_t) and so adds up the same λ_τ. That saves the optimizer's second
run.

The true, second-order gradient is got in that way, too, with one term more: a cotangent v of ∇f(θ_t) adds
H(θ_t)v to that of θ_t, one Hessian-vector product per step. Kept along the window are params, gradients and
the optimizer's states, O(T·N); the activations of the optimizer if they are few, else those of a single
step, computed again. Nothing is kept of the objective.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._engine._inner import FIRST_ORDER, show_again
from .._engine._losses import select
from .._engine._replay import replay, start_gradient
from .._types import State
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractEstimator, check_flow
from ._window import Taken, Window, WindowResult


class Replay(AbstractEstimator):
    """The first-order gradient in two phases: record the gradients, then replay the optimizer on them.

    In memory are the gradients of all steps and, where coordinates are independent, the activations of a
    single block of them; else those of a single step.

    **Arguments:**

    - `detach_state`: takes the optimizer's state for a constant at every step, too, as the thesis's released
        code does; otherwise it is backpropagated through from the window's start on.

    Reference: thesis eq. 3.5 to 3.8.
    """

    detach_state: bool = eqx.field(static=True, default=False)

    def coordinates_apart(self) -> bool:
        return True

    def check(self, optimizer: AbstractOptimizer) -> None:
        check_flow("`Replay`, which is of first order", FIRST_ORDER, optimizer)

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        self.check(optimizer)
        return _along(optimizer, window, _take(optimizer, window), weighting, self.detach_state), state


class Recorded(AbstractEstimator):
    """The first-order gradient along the steps as they were taken, each by the optimizer of its time.

    As an automatic-differentiation tape that runs along would have it; the objective is not evaluated again.
    It differs from `Replay` where the meta-parameters change inside a window, as in `EveryStep`. A window
    that was not taken yet is run.

    **Arguments:**

    - `detach_state`: as in `Replay`.

    Reference: thesis sec. 5.5.3.
    """

    detach_state: bool = eqx.field(static=True, default=False)

    def coordinates_apart(self) -> bool:
        return True

    def check(self, optimizer: AbstractOptimizer) -> None:
        check_flow("`Recorded`, which is of first order", FIRST_ORDER, optimizer)

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        self.check(optimizer)
        taken = _take(optimizer, window) if window.taken is None else window.taken
        return _along(optimizer, window, taken, weighting, self.detach_state), state


def _take(optimizer, window):
    params, state, record = window.run(optimizer)
    return Taken(record, None, params, state)


def _along(optimizer, window, taken, weighting, detach_state):
    record = taken.record

    @functools.partial(jax.value_and_grad, has_aux=True)
    def of_losses(losses):
        return window.meta_loss(weighting, record.with_weighed(losses))

    (meta_loss, health), weights = of_losses(record.weighed)
    shown = select(record.sound, window.first_params(optimizer), 1.0)
    grads = replay(
        optimizer,
        shown,
        window.state,
        show_again(optimizer, window.state.layout, record, window.start, window.keys),
        record.slopes,
        weights,
        detach_state=detach_state,
        history=taken.optimizers,
    )
    if window.begins:
        start = start_gradient(optimizer, window.params, window.state.layout, record.slopes, weights)
        grads = jax.tree.map(jnp.add, grads, start)
    meta_loss, grads = window.objectives.mean_over_devices((meta_loss, grads))
    return WindowResult(record.losses, meta_loss, grads, taken.params, taken.state, health)
