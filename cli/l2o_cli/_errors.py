"""Mistakes of the user: one line on stderr, exit code 2."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import typer

from ._fields import Path, leaves, members_at, show


class UsageError(typer.TyperException):
    """A mistake of the user; `message` says in one line what was given and what is possible."""

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def label(path: Path) -> str:
    """How a message names a setting: by its option and by its path."""
    leaf = leaves().get(path) or leaves().get((*path, "kind"))
    name = ".".join(path)
    return f"option '{leaf.option}' ({name})" if leaf else f"setting '{name}'"


@contextlib.contextmanager
def blaming(*path: str) -> Iterator[None]:
    """Turns the library's `ValueError` into one about a setting.

    **Arguments:**

    - `path`: the setting to blame, unless the error itself says which one of the same table it is.
    """
    try:
        yield
    except ValueError as error:
        own = (*path[:-1], getattr(error, "argument", None) or path[-1])
        raise UsageError(f"{label(own if own in leaves() else path)}: {error}") from None


def suggestion(given: str, possible: Iterable[str]) -> str:
    """The near miss, or all that is possible."""
    possible = list(possible)
    close = difflib.get_close_matches(given, possible, n=1)
    listed = f"possible: {', '.join(possible)}" if possible else "there are none"
    return f"did you mean '{close[0]}'? ({listed})" if close else listed


def describe(error: dict[str, Any], config: dict[str, Any]) -> str:
    """One of pydantic's errors as one line.

    **Arguments:**

    - `error`: an entry of `ValidationError.errors()`.
    - `config`: what was validated, to tell which kinds were chosen.
    """
    path = _path(error["loc"])
    given = error.get("input")
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = given.get("kind") if isinstance(given, dict) else given
        return _unknown_choice((*path, "kind"), given)
    if error["type"] == "literal_error":
        return _unknown_choice(path, given)
    if error["type"] == "extra_forbidden":
        return _unknown_setting(path, config)
    if error["type"] == "missing":
        return f"{label(path)}: must be given"
    return f"{label(path)}: got {show(given)!r}, {_reason(error)}"


def first_of(errors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The error to show: an unknown kind first, for the others may follow from it."""
    kinds = [e for e in errors if e["type"].startswith("union_tag") or e["loc"][-1] == "kind"]
    return (kinds or [e for e in errors if e["type"] != "missing"] or errors)[0]


def _reason(error: dict[str, Any]) -> str:
    if error["type"].startswith(("model_", "dict_")):
        return "must be a table"
    if error["type"] == "too_short":
        return f"must have at least {error['ctx']['min_length']} entry"
    # "Input should be a valid integer, unable to parse string as an integer"
    reason = error["msg"].partition(", ")[0].replace("Input should", "must")
    return reason.replace("a valid integer", "an integer").replace("a valid ", "a ")


def _unknown_choice(path: Path, given: Any) -> str:
    leaf = leaves().get(path)
    possible = [str(c) for c in leaf.choices or ()] if leaf else []
    return f"{label(path)}: got {show(given)!r}; {suggestion(str(given), possible)}"


def _unknown_setting(path: Path, config: dict[str, Any]) -> str:
    leaf = leaves().get(path) or leaves().get((*path, "kind"))
    for table, kinds in leaf.owners.items() if leaf else ():
        chosen = _get(config, (*table, "kind"))
        if chosen not in kinds:
            what = f"the {table[-1]} {' or '.join(map(repr, kinds))}"
            return f"{label(path)} belongs to {what}, but the {table[-1]} is {chosen!r}"
    above = _get(config, path[:-1])
    kind = above.get("kind", "") if isinstance(above, dict) else ""
    tables = members_at(path[:-1])
    fields = tables[kind].model_fields if kind in tables else {}
    return f"unknown setting '{'.'.join(path)}'; {suggestion(path[-1], fields)}"


def _path(loc: tuple[int | str, ...]) -> Path:
    # Pydantic puts the kind of a union's member, and the index of an entry, between the names.
    path: Path = ()
    for name in loc:
        if isinstance(name, str) and name not in members_at(path):
            path = (*path, name)
    return path


def _get(config: Any, path: Path) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config
