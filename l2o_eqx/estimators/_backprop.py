import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._devices._axis import mean_over
from .._engine._inner import FIRST_ORDER
from .._errors import ArgumentError
from .._types import State
from ..optimizers import AbstractLayout, AbstractOptimizer, default_block_size, own_coordinates
from ..weightings import AbstractWeighting
from ._base import AbstractEstimator, check_flow
from ._replayed import Replay
from ._window import Window, WindowResult

_KNOWN = frozenset({"grads", "params", "value", "state"})
# About 20 MB of activations are kept of an optimizer whose coordinates cannot be cut into blocks.
_KEPT_COORDINATE_STEPS = 2**14


class Backprop(AbstractEstimator):
    """The gradient by reverse-mode differentiation of the window's steps.

    What is in `constants` is not differentiated: of what the optimizer is shown the objective's `"grads"`,
    the `"params"` and the loss (`"value"`), and the `"state"` of the optimizer at every step.

    - All but the state, by default: the first order of the paper and the thesis.
    - None, `Backprop(())`: the true gradient, at one Hessian-vector product per step. Nothing of the
        objective's own activations is kept.
    - All: the state is not backpropagated through either, as in the thesis's released code.

    In memory are the optimizer's activations of all coordinates and steps.

    **Arguments:**

    - `constants`: names of what is not differentiated.
    - `recompute`: keeps params, gradients and states alone, and computes the activations of a step, and of a
        block of coordinates, again.

    **Raises:** `ValueError` for other names.

    Reference: thesis eq. 3.5 to 3.8.
    """

    constants: frozenset[str] = eqx.field(static=True, default=FIRST_ORDER, converter=frozenset)
    recompute: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_constants("Backprop", self.constants)

    def coordinates_apart(self) -> bool:
        return self.constants >= FIRST_ORDER

    def check(self, optimizer: AbstractOptimizer) -> None:
        check_flow("`Backprop(constants=...)`", self.constants, optimizer)

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

        @eqx.filter_value_and_grad(has_aux=True)
        def in_one_pass(optimizer):
            begun = window if self.recompute else window.uncut()
            params, end, record = begun.run(optimizer, self.constants, recompute=self.recompute)
            meta_loss, health = window.meta_loss(weighting, record)
            end = end if self.recompute else window.state.cut(end)
            return meta_loss, (params, end, record.losses, health)

        (meta_loss, (params, end, losses, health)), grads = in_one_pass(optimizer)
        # Where the updates of all devices are gathered, every device has added all of their cotangents.
        grads = mean_over(grads, window.objectives.coordinate_axis)
        meta_loss, grads = window.objectives.mean_over_devices((meta_loss, grads))
        return WindowResult(losses, meta_loss, grads, params, end, health), state


class Auto(AbstractEstimator):
    """`Backprop` where the activations are few; where there are more, what needs less memory.

    That is `Replay` if `constants` allow it, and `Backprop` that recomputes if not.

    **Arguments:**

    - `constants`: as in `Backprop`.

    **Raises:** `ValueError` for other names.
    """

    constants: frozenset[str] = eqx.field(static=True, default=FIRST_ORDER, converter=frozenset)

    def __check_init__(self):
        check_constants("Auto", self.constants)

    def coordinates_apart(self) -> bool:
        return self.constants >= FIRST_ORDER

    def check(self, optimizer: AbstractOptimizer) -> None:
        check_flow("`Auto(constants=...)`", self.constants, optimizer)

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
        return self.choose(window).estimate(optimizer, window, weighting, state, key=key)

    def choose(self, window: Window) -> AbstractEstimator:
        """The estimator for windows like this one."""
        num_coordinates = own_coordinates(window.params, window.objectives.coordinate_axis)
        if kept_by_default(window.state.layout, window.length, num_coordinates):
            return Backprop(self.constants)
        if self.constants >= FIRST_ORDER:
            return Replay(detach_state="state" in self.constants)
        return Backprop(self.constants, recompute=True)


def kept_by_default(layout: AbstractLayout, window: int, num_coordinates: int) -> bool:
    """Whether activations of so many coordinates on one device are kept if nothing else is said.

    For a single block recomputing saves no memory; several are faster one after the other
    (docs/performance.md). Without blocks memory is what counts.
    """
    if layout.coordinates_apart:
        return num_coordinates <= default_block_size()
    return window * num_coordinates <= _KEPT_COORDINATE_STEPS


def check_constants(where, constants):
    if unknown := sorted(constants - _KNOWN):
        raise ArgumentError(
            f"`{where}(constants=...)` can have {', '.join(map(repr, sorted(_KNOWN)))}, what is not "
            f"differentiated. Got {', '.join(map(repr, unknown))}.",
            argument="constants",
            given=constants,
            possible=sorted(_KNOWN),
        )
