"""Ctrl-C, and what ends a program from outside, while compiled code runs."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1
# A terminal that is closed, a scheduler that ends a job: as Ctrl-C. There is no SIGHUP on Windows.
_ENDING = tuple({signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)})


class _Abandoned:
    """Whether a thread was left behind in compiled code, or a process: there is no end in good order then."""

    any = False


def run_interruptibly(work: Callable[[], T], *, on_first: Callable[[], None] | None = None) -> T:
    """Runs `work` in a thread of its own, as compiled code would hold up the signal for minutes.

    **Arguments:**

    - `work`: what to run.
    - `on_first`: called at the first Ctrl-C, SIGTERM or SIGHUP instead of giving up, which it does if it
        raises `KeyboardInterrupt`; the second one gives up.

    **Returns:** what `work` returns.

    **Raises:** what `work` raises; `KeyboardInterrupt` when giving up, with `work` still running.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    begin_in_good_order()
    signals: list[int] = []
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:
            outcome["error"] = error

    previous = {
        one: signal.signal(one, lambda number, frame: signals.append(number))
        for one in _ENDING
        # What is ignored, as under nohup, stays so.
        if signal.getsignal(one) is not signal.SIG_IGN
    }
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        _wait(thread, signals, on_first)
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def _wait(thread: threading.Thread, signals: list[int], on_first: Callable[[], None] | None) -> None:
    patience = 0 if on_first is None else 1
    asked = False
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if len(signals) > patience:
            _Abandoned.any = True
            raise KeyboardInterrupt
        if signals and on_first is not None and not asked:
            asked = True
            try:
                on_first()
            except KeyboardInterrupt:
                _Abandoned.any = True
                raise


def end_at_once(number: int, frame: object) -> NoReturn:
    """The handler of Ctrl-C until a command has begun: there is nothing to clean up."""
    os._exit(130)


def begin_in_good_order() -> None:
    """Makes Ctrl-C an exception again, once there is something to clean up."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted() -> NoReturn:
    """Ends the command as shells expect after Ctrl-C."""
    import typer

    raise typer.Exit(130)


def leave_at_once() -> None:
    """Lets the process end, once it does, without waiting for threads or other processes."""
    _Abandoned.any = True


def leave(code: int) -> NoReturn:
    """Ends the process; at once if something was left behind."""
    if _Abandoned.any:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
