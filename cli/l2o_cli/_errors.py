"""Mistakes of the user: one line on stderr, exit code 2."""

import contextlib
import difflib
import os
from collections.abc import Iterable
from typing import Any

import typer


class UsageError(typer.TyperException):
    """A mistake of the user; `message` says in one line what was given and what is possible."""

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Failure(typer.TyperException):
    """What went wrong on the way, though nobody made a mistake, e.g. a full disk; `message` is one line."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def drop_output(stream: Any) -> None:
    """Sends what is still to be printed nowhere, for Python not to fail once more as it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def describe(error: BaseException) -> str | None:
    """One line about what the machine refuses, to write a file, or memory, and about wrong arguments.

    **Returns:** `None` for any other error.
    """
    if type(error).__name__ == "ArgumentError":
        # The library's, which is not imported for it; most are about a part of the user's own.
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)[:200]
    first = str(error).partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return f"out of memory: {first}; smaller sizes, or fewer at a time, take less" if out_of_memory else None


def counted(number: int, noun: str) -> str:
    """`"1 objective"`, `"2 objectives"`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_brief(text: str) -> str:
    """The beginning of a text that may be very long."""
    return text if len(text) <= 80 else f"{text[:70]}... ({len(text):,} characters)"


def suggestion(given: str, possible: Iterable[str]) -> str:
    """The near miss, or all that is possible."""
    possible = list(possible)
    close = difflib.get_close_matches(given, possible, n=1)
    listed = f"possible: {', '.join(possible)}" if possible else "there are none"
    return f"did you mean '{close[0]}'? ({listed})" if close else listed
