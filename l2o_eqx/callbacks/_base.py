import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx


class StopTraining(eqx.Module):
    """What a callback returns to end the work after this step; nothing else that it returns does.

    The class itself will do, too, if there is nothing to say: `return StopTraining`.

    **Arguments:**

    - `reason`: why, for the solution.
    """

    reason: str | None = eqx.field(static=True, default=None)


class AbstractCallback(eqx.Module):
    """Ordinary Python that a verb calls between its steps.

    A plain function of the progress will do where `on_step` is all there is. A callback is no part of any
    compiled program: it may hold files and change what it holds.
    """

    def on_start(self, progress: Any) -> None:
        """Called once before the first step.

        **Arguments:**

        - `progress`: where the work stands, e.g. at super epoch 0, or where an earlier one ended.
        """
        del progress

    @abc.abstractmethod
    def on_step(self, progress: Any) -> StopTraining | type[StopTraining] | None:
        """Called after every step.

        **Arguments:**

        - `progress`: what the verb says is handed to its callbacks, e.g. a `Progress`.

        **Returns:** `StopTraining`, be it the class or one with a reason, to end the work here.
        """

    def on_end(self, solution: Any) -> None:
        """Called once after the last step.

        **Arguments:**

        - `solution`: what the verb returns; `None` if an error ended the work.
        """
        del solution


# A function of the progress may return anything: only `StopTraining` means something.
Callback = AbstractCallback | Callable[[Any], Any]


class FromFunction(AbstractCallback):
    """A function of the progress as a callback.

    **Arguments:**

    - `function`: called after every step.
    """

    function: Callable[[Any], Any]

    def on_step(self, progress: Any) -> Any:
        return self.function(progress)


def as_callback(given: Callback) -> AbstractCallback:
    """A callback as it is; a function as a callback."""
    return given if isinstance(given, AbstractCallback) else FromFunction(given)
