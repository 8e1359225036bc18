import abc

import equinox as eqx
from jaxtyping import PRNGKeyArray

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
