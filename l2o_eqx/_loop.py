"""The one loop on the host: steps, callbacks, and when to stop."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ._devices import any_process
from .callbacks._base import AbstractCallback, Callback, StopTraining, as_callback

State = TypeVar("State")
Solution = TypeVar("Solution")


class Attendance:
    """The callbacks of a piece of work, and what they are told at its end.

    **Arguments:**

    - `callbacks`: as a verb is given them.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks: list[AbstractCallback] = [as_callback(one) for one in callbacks]
        self.solution: Any = None

    def stop(self, progress: Any) -> StopTraining | None:
        """Calls them all after a step.

        **Arguments:**

        - `progress`: what they are shown.

        **Returns:** the first wish to stop, if there is one; that of any process, as none can go on alone.
        """
        answers = [one.on_step(progress) for one in self.callbacks]
        wishes = [_as_stop(answer) for answer in answers]
        own = next((wish for wish in wishes if wish is not None), None)
        return (own or StopTraining("another process")) if any_process(own is not None) else None


def _as_stop(answer: object) -> StopTraining | None:
    # Not whatever is true: many functions return something that nobody means.
    if answer is StopTraining:
        return StopTraining()
    return answer if isinstance(answer, StopTraining) else None


@contextlib.contextmanager
def attended(callbacks: Sequence[Callback], first: Any) -> Iterator[Attendance]:
    """Starts callbacks and ends them, whatever happens between.

    **Arguments:**

    - `callbacks`: as a verb is given them.
    - `first`: what they are shown before the first step.
    """
    attendance = Attendance(callbacks)
    with contextlib.ExitStack() as ends:
        for one in attendance.callbacks:
            one.on_start(first)
            ends.callback(lambda one=one: one.on_end(attendance.solution))
        yield attendance


def run(
    step: Callable[[State, int], tuple[State, Any]],
    state: State,
    counts: Iterable[int],
    callbacks: Sequence[Callback],
    *,
    first: Any,
    finish: Callable[[State, StopTraining | None], Solution],
) -> Solution:
    """Takes steps until there are no more, or until a callback returns `StopTraining`.

    **Arguments:**

    - `step`: `(state, count) -> (next state, progress for the callbacks)`.
    - `state`: where to begin.
    - `counts`: how much is done after each step; those that are left, if the work goes on where it ended.
    - `callbacks`: called after each step.
    - `first`: what callbacks are shown before the first one.
    - `finish`: `(last state, wish to stop) -> solution`.

    **Returns:** the solution.
    """
    with attended(callbacks, first) as attendance:
        stop = None
        for count in counts:
            state, progress = step(state, count)
            stop = attendance.stop(progress)
            if stop is not None:
                break
        attendance.solution = finish(state, stop)
        return attendance.solution
