"""Mistakes of the user: one line on stderr, exit code 2."""

import difflib
from collections.abc import Iterable

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


def suggestion(given: str, possible: Iterable[str]) -> str:
    """The near miss, or all that is possible."""
    possible = list(possible)
    close = difflib.get_close_matches(given, possible, n=1)
    listed = f"possible: {', '.join(possible)}" if possible else "there are none"
    return f"did you mean '{close[0]}'? ({listed})" if close else listed
