"""What the models of `_config` say about their fields: paths, kinds, option names."""

import dataclasses
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ._config import OptionName, RunConfig
from ._presets import DEFAULT_PRESET, PRESETS

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting: its place in the configuration and its option.

    **Arguments:**

    - `path`: e.g. `("strategy", "window")`.
    - `option`: e.g. `"--window"`.
    - `owners`: the kinds that have it, by the path of the table:
        `{("strategy",): ["every-window"]}`.
    - `info`: pydantic's description of the field (of the first owner, if there are several).
    """

    path: Path
    option: str
    owners: dict[Path, list[str]]
    info: FieldInfo

    @property
    def name(self) -> str:
        """The dotted path, as `--set` takes it."""
        return ".".join(self.path)

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The possible values if there are only so many."""
        if self.path[-1] == "kind":
            return tuple(members_at(self.path[:-1]))
        return get_args(self.info.annotation) if is_literal(self.info) else None

    @property
    def is_flag(self) -> bool:
        """Whether the option is a switch."""
        return self.info.annotation is bool

    @property
    def is_tuple(self) -> bool:
        """Whether the option takes several values, with commas."""
        parts = (self.info.annotation, *get_args(self.info.annotation))
        return any(get_origin(unannotated(part)) is tuple for part in parts)

    def describe_default(self) -> str:
        """The default for people, per objective where it differs."""
        presets = {kind: table.get(self.name) for kind, table in PRESETS[DEFAULT_PRESET].items()}
        values = {kind: show(v) for kind, v in presets.items() if v is not None}
        if not values:
            default = None if self.info.is_required() else self.info.default
            return "" if default is None else show(default)
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        return ", ".join(f"{value} ({kind})" for kind, value in values.items())


def show(value: Any) -> str:
    """A value as one types it after an option."""
    if isinstance(value, list | tuple):
        return ",".join(map(show, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_literal(info: FieldInfo) -> bool:
    """Whether a field takes one of some values."""
    return get_origin(info.annotation) is Literal


def unannotated(annotation: Any) -> Any:
    """The type inside an `Annotated`."""
    return (
        getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
    )


def members(info: FieldInfo) -> dict[str, type[BaseModel]]:
    """The tables that may stand in a field, by kind (`""` for a table that has none)."""
    annotation = unannotated(info.annotation)
    union = get_origin(annotation) in (Union, types.UnionType)
    models = get_args(annotation) if union else (annotation,)
    tables = [m for m in models if isinstance(m, type) and issubclass(m, BaseModel)]
    return {_kind(m): m for m in tables}


def members_at(path: Sequence[str]) -> dict[str, type[BaseModel]]:
    """All tables that may stand at a path, whatever the kinds above it."""
    tables: dict[str, type[BaseModel]] = {"": RunConfig}
    for name in path:
        fields = [t.model_fields[name] for t in tables.values() if name in t.model_fields]
        tables = {kind: m for info in fields for kind, m in members(info).items()}
    return tables


@functools.cache
def leaves() -> dict[Path, Leaf]:
    """Every setting, by path."""
    found: dict[Path, Leaf] = {}
    for path, owners, info in _walk(RunConfig, (), {}, None):
        if path in found:
            for table, kinds in owners.items():
                known = found[path].owners.setdefault(table, [])
                known += [kind for kind in kinds if kind not in known]
        else:
            found[path] = Leaf(path, _option(path, info), owners, info)
    return found


def _walk(
    model: type[BaseModel], path: Path, owners: dict[Path, list[str]], parent: FieldInfo | None
) -> Iterator[tuple[Path, dict[Path, list[str]], FieldInfo]]:
    for name, info in model.model_fields.items():
        here = (*path, name)
        if name == "kind" and parent is not None:
            yield here, {t: [*kinds] for t, kinds in owners.items() if t != path}, parent
            continue
        tables = members(info)
        if not tables:
            yield here, {t: [*kinds] for t, kinds in owners.items()}, info
        for kind, table in tables.items():
            yield from _walk(table, here, {**owners, here: [kind]} if kind else owners, info)


def _option(path: Path, info: FieldInfo) -> str:
    given = [m.name for m in info.metadata if isinstance(m, OptionName)]
    own = path[-2] if path[-1] == "kind" else path[-1]
    return given[0] if given else "--" + own.replace("_", "-")


def _kind(model: type[BaseModel]) -> str:
    return model.model_fields["kind"].default if "kind" in model.model_fields else ""
