"""Which values the command line can read for a parameter, out of its annotation."""

import collections.abc
import dataclasses
import math
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from ._errors import in_brief

_SEQUENCES = (tuple, list, frozenset, set, collections.abc.Sequence)


@dataclasses.dataclass(frozen=True)
class Type:
    """What may be given for a parameter.

    **Arguments:**

    - `name`: `"int"`, `"float"`, `"bool"`, `"text"`, `"choice"`, `"list"`; `"part"`, another plug-in;
        `"function"`, one of some functions of the library; `"key"` and `"params"`, which the command line has
        itself; `"unknown"`.
    - `choices`: of a choice or a function.
    - `item`: of a list; `length`: how many, if it is fixed; `container`: what they are handed over in.
    - `scalar`: whether a single entry is handed over as it is.
    - `group`: of a part; `maker`: whether it is handed over as a function of a key.
    - `prefix`: of the names of functions, which choices go without.
    - `optional`: whether it may be `None`.
    """

    name: str
    choices: tuple[Any, ...] = ()
    item: "Type | None" = None
    length: int | None = None
    container: Callable[[Any], Any] = tuple
    scalar: bool = False
    group: str = ""
    maker: bool = False
    prefix: str = ""
    optional: bool = False

    @property
    def metavar(self) -> str:
        """What the help shows for a value."""
        if self.name in ("choice", "part", "function"):
            return "NAME"
        return f"{self.item.metavar},..." if self.item else self.name.upper()

    def read(self, value: Any) -> Any:
        """The value as the library gets it, from text or from TOML.

        **Raises:** `ValueError` that says what it must be.
        """
        if value is None and self.optional:
            return None
        if self.name == "list" and self.item is not None:
            return self._read_list(value, self.item)
        if isinstance(value, dict):
            raise ValueError("must not be a table")
        return _READERS[self.name](self, value)

    def _read_list(self, value: Any, item: "Type") -> Any:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        values = value if isinstance(value, list | tuple | set | frozenset) else [value]
        if self.scalar and not values:
            raise ValueError("must have an entry")
        if self.length not in (None, len(values)) and not (self.scalar and len(values) == 1):
            raise ValueError(f"must have {self.length} entries{' or one' if self.scalar else ''}")
        read = []
        for one in values:
            try:
                read.append(item.read(one))
            except ValueError as error:
                raise ValueError(f"{in_brief(repr(one))} {error}") from None
        return read[0] if self.scalar and len(read) == 1 else self.container(read)


# Of the integers that compiled programs count with.
_LARGEST = 2**31 - 1


def _read_int(_: Type, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be an integer") from None
    if isinstance(value, bool) or (not isinstance(value, str) and number != value):
        raise ValueError("must be an integer")
    if abs(number) > _LARGEST:
        raise ValueError(f"must be between -{_LARGEST} and {_LARGEST}")
    return number


def _read_float(_: Type, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise ValueError("must be a number") from None
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _read_bool(_: Type, value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return str(value).lower() == "true"


def _read_choice(kind: Type, value: Any) -> Any:
    for choice in kind.choices:
        if value == choice or str(value) == str(choice):
            return choice
    from ._errors import suggestion

    raise ValueError(suggestion(str(value), map(str, kind.choices)))


_READERS: dict[str, Callable[[Type, Any], Any]] = {
    "int": _read_int,
    "float": _read_float,
    "bool": _read_bool,
    "text": lambda _, value: str(value),
    "choice": _read_choice,
    "function": _read_choice,
}

INT, FLOAT, BOOL, TEXT, UNKNOWN = (Type(name) for name in ("int", "float", "bool", "text", "unknown"))
_PLAIN = {int: INT, float: FLOAT, bool: BOOL, str: TEXT, pathlib.Path: TEXT}


def type_of(annotation: Any, groups: Mapping[str, str]) -> Type:
    """The type of an annotation.

    **Arguments:**

    - `annotation`: as `typing` has it. Classes are told by their names.
    - `groups`: the group of plug-ins by the name of its abstract class.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return type_of(arguments[0], groups)
    if origin is Literal:
        return Type("choice", choices=arguments)
    if origin in (Union, types.UnionType):
        return _type_of_union([type_of(a, groups) for a in arguments if a is not type(None)], arguments)
    if origin in _SEQUENCES and arguments:
        return _type_of_list(origin, [type_of(a, groups) for a in arguments if a is not ...], arguments)
    if origin is collections.abc.Callable and arguments:
        made = type_of(arguments[-1], groups)
        return dataclasses.replace(made, maker=True) if made.group else UNKNOWN
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    name = getattr(annotation, "__name__", "")
    if name in ("PRNGKeyArray", "Key"):
        return Type("key")
    if name in ("PyTree", "Params"):
        return Type("params")
    names = [c.__name__ for c in getattr(annotation, "__mro__", ())] or [name]
    return next((Type("part", group=groups[n]) for n in names if n in groups), UNKNOWN)


def _type_of_union(members: list[Type], arguments: tuple[Any, ...]) -> Type:
    known = [member for member in members if member != UNKNOWN] or [UNKNOWN]
    lists = [member for member in known if member.name == "list"]
    optional = type(None) in arguments
    if lists:
        return dataclasses.replace(lists[0], scalar=len(known) > len(lists), optional=optional)
    return dataclasses.replace(known[0], optional=optional)


def _type_of_list(origin: Any, items: list[Type], arguments: tuple[Any, ...]) -> Type:
    if len(set(items)) > 1 or items[0].name in ("unknown", "part", "key", "params"):
        return UNKNOWN
    fixed = origin is tuple and arguments[-1] is not ...
    container = origin if origin in (frozenset, set, list) else tuple
    return Type("list", item=items[0], length=len(items) if fixed else None, container=container)
