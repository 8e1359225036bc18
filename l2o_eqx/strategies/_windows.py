import abc
from typing import Any, Literal

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import Keys, State
from ..estimators import AbstractEstimator, Auto
from ..objectives import ObjectiveBatch
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractUpdateStrategy, MetaUpdate, SuperEpoch
from ._loop import num_windows, run_windows

Remainder = Literal["skip", "train"]


def check_fits(name: str, window: int, shortest: int, num_steps: int) -> None:
    """Refuses, in the name of a strategy, a window that is longer than the super epoch."""
    if num_steps < shortest:
        raise ArgumentError(
            f"`{name}`: a super epoch needs at least {shortest} steps, for one window. Got {num_steps}.",
            argument="num_steps",
            given=num_steps,
        )
    if window > num_steps:
        raise ArgumentError(
            f"`{name}(window={window})`: the window is longer than the super epoch of {num_steps} steps. It "
            f"can have {shortest} to {num_steps} steps.",
            argument="window",
            given=window,
        )


class AbstractWindowStrategy(AbstractUpdateStrategy):
    """A strategy that is a setting of the window loop: implement `num_updates` and `windows`."""

    @abc.abstractmethod
    def windows(self, num_steps: int) -> dict[str, Any]:
        """The settings of `run_windows` for a super epoch of `num_steps`, its `estimator` among them."""

    def super_epoch(
        self,
        optimizer: AbstractOptimizer,
        meta_state: PyTree,
        objectives: ObjectiveBatch,
        *,
        meta_update: MetaUpdate,
        weighting: AbstractWeighting,
        num_steps: int,
        init_keys: Keys,
        loss_keys: Keys,
        key: PRNGKeyArray,
        strategy_state: State = None,
    ) -> SuperEpoch:
        del strategy_state
        return run_windows(
            optimizer,
            meta_state,
            objectives,
            meta_update=meta_update,
            weighting=weighting,
            num_steps=num_steps,
            init_keys=init_keys,
            loss_keys=loss_keys,
            key=key,
            **self.windows(num_steps),
        )


class EveryWindow(AbstractWindowStrategy):
    """One meta-update every T steps, on the losses of these T steps: truncated backpropagation.

    Params and the optimizer's state are constants where a window begins.

    **Arguments:**

    - `window`: T ≥ 2; the last update of a window moves no loss of it, so that T = 1 trains nothing
        without `include_final_loss`.
    - `estimator`: how a window's meta-gradient is got; by default of first order.
    - `include_final_loss`: adds the loss after the window's last update, which is then trained, too.
    - `remainder`: what becomes of the steps after the last full window (7 of the thesis's 375): `"skip"`
        takes them but trains nothing on them; `"train"` makes a shorter window of them.
    - `random_phase`: begins the first window after a random number of steps below T, which train nothing,
        so that windows do not always end at the same steps. There is one window fewer then, and a learned
        starting point is not trained.

    **Raises:** `ValueError` for a window that is too short, an unknown `remainder`, one to be trained beside
    a random phase, or, when training, for a T longer than the super epoch.

    Reference: thesis sec. 5.5.2; random phases: Metz et al. 2022, "Practical tradeoffs between memory,
    compute, and performance in learned optimizers" (arXiv:2203.11860), sec. 3.
    """

    window: int = eqx.field(static=True, default=16)
    estimator: AbstractEstimator = Auto()
    include_final_loss: bool = eqx.field(static=True, default=False)
    remainder: Remainder = eqx.field(static=True, default="skip")
    random_phase: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.random_phase and self.remainder == "train":
            raise ArgumentError(
                "`EveryWindow(random_phase=True, remainder='train')`: how many steps remain is not known "
                "before the phase is drawn; leave one of the two out.",
                argument="remainder",
                given=self.remainder,
                possible=("skip",),
            )
        if self.window < self._shortest:
            raise ArgumentError(
                f"`EveryWindow(window=...)` needs at least {self._shortest} steps: in a window of one the "
                "loss comes before the update it should judge, unless with `include_final_loss`. "
                f"Got window={self.window}.",
                argument="window",
                given=self.window,
            )
        if self.remainder not in ("skip", "train"):
            raise ArgumentError(
                f"`EveryWindow(remainder={self.remainder!r})`: the steps after the last full window can be "
                "'skip' or 'train'.",
                argument="remainder",
                given=self.remainder,
                possible=("skip", "train"),
            )

    @property
    def _shortest(self):
        return 1 if self.include_final_loss else 2

    def num_updates(self, num_steps: int) -> int:
        check_fits("EveryWindow", self.window, self._shortest, num_steps)
        return self._num_windows(num_steps) + self._trains_rest(num_steps)

    def num_trained_steps(self, num_steps: int) -> int:
        """How many steps of a super epoch of `num_steps` lie in a window."""
        return num_steps if self._trains_rest(num_steps) else self.window * self._num_windows(num_steps)

    def _num_windows(self, num_steps):
        return num_windows(num_steps, self.window, random_phase=self.random_phase)

    def _trains_rest(self, num_steps):
        return self.remainder == "train" and num_steps % self.window >= self._shortest

    def begins_anywhere(self) -> bool:
        return self.random_phase

    def coordinates_apart(self) -> bool:
        return self.estimator.coordinates_apart()

    def windows(self, num_steps: int) -> dict[str, Any]:
        return {
            "estimator": self.estimator,
            "length": self.window,
            "train_rest": self._trains_rest(num_steps),
            "random_phase": self.random_phase,
            "include_final_loss": self.include_final_loss,
        }


class OncePerSuperEpoch(AbstractWindowStrategy):
    """One meta-update per super epoch, on all of its losses.

    Memory for the recorded gradients, and for activations that are kept, grows with the length of the super
    epoch.

    **Arguments:**

    - `estimator`, `include_final_loss`: as in `EveryWindow`.

    Reference: thesis sec. 5.5.1.
    """

    estimator: AbstractEstimator = Auto()
    include_final_loss: bool = eqx.field(static=True, default=False)

    def num_updates(self, num_steps: int) -> int:
        if num_steps < 2 and not self.include_final_loss:
            raise ArgumentError(
                "`OncePerSuperEpoch`: a super epoch needs at least 2 steps, so that a loss comes after an "
                f"update. Got {num_steps}.",
                argument="num_steps",
                given=num_steps,
            )
        return 1

    def coordinates_apart(self) -> bool:
        return self.estimator.coordinates_apart()

    def windows(self, num_steps: int) -> dict[str, Any]:
        return {
            "estimator": self.estimator,
            "length": num_steps,
            "include_final_loss": self.include_final_loss,
        }


class EveryStep(AbstractWindowStrategy):
    """A meta-update after every step, on the losses of the last T steps: a window that runs along.

    The meta-parameters change inside the window, so that two gradients can be meant. Most estimators run the
    window again, from the params and the state where it began, by the optimizer as it is now; this is the
    gradient of the window's meta-loss. `estimators.Recorded` counts each step as it was taken, by the
    optimizer of its time, as an automatic-differentiation tape that runs along would have it; the objective
    is not evaluated again. Both need memory for T steps, however long the super epoch.

    The first update comes with the first full window, after step T.

    **Arguments:**

    - `window`: T ≥ 2.
    - `estimator`: how a window's meta-gradient is got; by default of first order, the window being run again.

    **Raises:** `ValueError` for T < 2, for an estimator that needs windows one after the other (`PES`,
    `NRES`, `RTRL`), or, when training, for a T longer than the super epoch.

    Reference: thesis sec. 5.5.3, which gives it up as too expensive.
    """

    window: int = eqx.field(static=True, default=16)
    estimator: AbstractEstimator = Auto()

    def __check_init__(self):
        if self.window < 2:
            raise ArgumentError(
                f"`EveryStep(window=...)` needs at least 2 steps. Got window={self.window}.",
                argument="window",
                given=self.window,
            )
        if self.estimator.consecutive():
            raise ArgumentError(
                f"`EveryStep(estimator={type(self.estimator).__name__}(...))`: its runs go on where a window "
                "ends, but windows of `EveryStep` overlap. Take `EveryWindow`, or `ES` for a gradient "
                "without derivatives.",
                argument="estimator",
                given=self.estimator,
            )

    def num_updates(self, num_steps: int) -> int:
        check_fits("EveryStep", self.window, 2, num_steps)
        return num_steps - self.window + 1

    def coordinates_apart(self) -> bool:
        return self.estimator.coordinates_apart()

    def windows(self, num_steps: int) -> dict[str, Any]:
        del num_steps
        return {"estimator": self.estimator, "length": self.window, "overlap": True}
