import abc

import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._errors import ArgumentError
from .._types import State
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._window import Window, WindowResult


class AbstractEstimator(eqx.Module):
    """How the meta-gradient of a window is got.

    To write your own, implement `estimate`: `Window.run` takes the inner steps, `Window.meta_loss` weighs
    their losses, and both can be differentiated. What it must remember from window to window goes into a
    state, which begins anew with every super epoch.
    """

    def init(self, optimizer: AbstractOptimizer, window: Window, *, key: PRNGKeyArray) -> State:
        """The state before the first window of a super epoch; by default there is none."""
        del optimizer, window, key
        return None

    def coordinates_apart(self) -> bool:
        """Whether different devices may run different coordinates of one objective; by default not."""
        return False

    def consecutive(self) -> bool:
        """Whether its state goes on where a window ends, so that the next one must begin there.

        By default not; then windows may overlap, too.
        """
        return False

    def check(self, optimizer: AbstractOptimizer) -> None:
        """Refuses an optimizer that it has no gradient for, with an `ArgumentError`; by default none.

        One that takes values for constants, say, has none for an optimizer that sees nothing else.
        """
        del optimizer

    @abc.abstractmethod
    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        """The meta-gradient of a window, and where the window ends.

        On several devices each may call this with its own part of the objectives; meta-loss and gradient must
        be the means over all, see `ObjectiveBatch.mean_over_devices`.

        **Arguments:**

        - `optimizer`: with the meta-parameters to differentiate by.
        - `window`: the steps.
        - `weighting`: turns the window's losses into the meta-loss.
        - `state`: from `init` or the window before.
        - `key`: for estimators that draw; another one for every window.
        """


def check_flow(where: str, constants: frozenset[str], optimizer: AbstractOptimizer) -> None:
    """Refuses, in the name of `where`, an optimizer for which nothing is left to differentiate."""
    shut = sorted(constants & {"params", "value"})
    if shut and optimizer.is_black_box():
        name = type(optimizer).__name__
        raise ArgumentError(
            f"{where}: `{name}` sees nothing of an objective but its values, and almost no "
            f"meta-gradient is left where {' and '.join(shut)} are constants. Take `Auto(())`, or "
            '`Auto({"grads"})`, which here is the same; or `ES`, `PES` or `NRES`, which need no gradient.',
            argument="constants",
            given=constants,
        )
