"""From presets, a file, `--set` and options to one checked configuration, and back to TOML."""

import ast
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tomli_w

from ._errors import UsageError, in_brief
from ._estimator import with_estimator
from ._kinds import NONE, ROLES, kind_name, own_kinds, signature
from ._mixture import MIXTURE, as_table, with_families
from ._presets import DEFAULT_OBJECTIVE, FORMER_PRESET, OTHER_OBJECTIVES, PRESETS, kinds_of_line
from ._settings import OLD_KINDS, OLD_SETTINGS, OLD_VALUES, label, show, unknown_setting
from ._signatures import REQUIRED, Parameter, Reference, Signature
from ._tables import NEEDS, TABLES, Setting, settings
from ._toml import parse_toml, read_toml_file
from ._types import FLOAT

Layer = dict[str, Any]
Names = tuple[str, ...]

# Two ways to say how long a super epoch is: a layer that has one takes the other out of those below.
LENGTHS = ("num_steps", "num_epochs")
_OWN = ("key", "params", "unknown")
# What stands where a part must be given and no preset says which.
_DEFAULT_KINDS = {"objectives": DEFAULT_OBJECTIVE, "estimators": "auto"}


class Table(dict[str, Any]):
    """A table of a configuration, whose entries are attributes, too. A new one is made to change it."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def but(self, **changes: Any) -> "Table":
        """The same with other values."""
        return Table({**self, **changes})


def resolve(layers: Iterable[Layer]) -> Table:
    """One configuration out of several layers, later ones over earlier ones, all over the presets.

    **Arguments:**

    - `layers`: nested tables, each with some of the settings; values may be text.

    **Returns:** a table with the tables `objective`, `optimizer`, `strategy` and `weighting`, each with a
    `kind` and its parameters, and those of `_tables`.

    **Raises:** `UsageError` for what is unknown, and what can be seen to be wrong without the library.
    """
    data: Layer = {}
    for layer in map(with_names_of_today, layers):
        _refuse_other_preset(data, layer)
        data = merge(_without_other_length(data, layer), layer)
    if all(name in _meta(data) for name in LENGTHS):
        steps, epochs = (label(("meta", name)) for name in LENGTHS)
        raise UsageError(f"{epochs} and {steps} cannot both be given: each is the length of a super epoch")
    root = settings("root")
    unknown = [name for name in data if name not in (*root, *ROLES, *TABLES)]
    if unknown:
        raise UsageError(unknown_setting((unknown[0],), "", [*root, *ROLES, *TABLES]))
    config = Table({name: _read(root[name], data.get(name), (name,)) for name in root})
    lines = _lines(config.preset, _table(data, "objective"))
    for role, group in ROLES.items():
        node, table = _Node(role, role, group, (role,), lines), _table(data, role)
        mixed = role == "objective" and table.get("kind") == MIXTURE
        config[role] = _complete_mixture(node, table) if mixed else _complete(node, table)
    for table in TABLES:
        config[table] = _complete_table(table, _table(data, table), lines)
    if "warmup_updates" in _meta(data):
        return config
    # A preset's is for its own number of super epochs, each of which has one meta-update at least.
    meta = config.meta
    shortest = min(meta.warmup_updates, meta.super_epochs // 5)
    return config.but(meta=meta.but(warmup_updates=shortest))


def merge(below: Layer, above: Layer) -> Layer:
    """`above` over `below`, table by table; a table whose `kind` changes is replaced, not mixed.

    **Arguments:**

    - `below`, `above`: nested tables.
    """
    kind = above.get("kind")
    if kind is not None and kind != below.get("kind", kind):
        return above
    merged = dict(below)
    if above.keys() & {"data", "data_dir"}:
        # Other digits than those whose checksum a run's config.toml has.
        merged.pop("data_sha256", None)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            value = merge(old, value)
        merged[name] = value
    return merged


def _refuse_other_preset(below: Layer, above: Layer) -> None:
    # A run's config.toml has all settings: another preset would change none of them.
    preset = above.get("preset")
    if "format" in below and preset is not None and preset != below["preset"]:
        raise UsageError(
            f"{label(('preset',))}: got {preset!r}, but the file has all settings already, those of the "
            f"preset {below['preset']!r}; leave one of the two out"
        )


def with_names_of_today(layer: Layer) -> Layer:
    """The same with the names of today for those of earlier versions, and for short ones."""
    if "format" in layer and "preset" not in layer:
        layer = {"preset": FORMER_PRESET, **layer}

    def renamed(path: tuple[str, ...], value: Any) -> Any:
        if not isinstance(value, dict):
            # A table may be no more than its kind.
            kinds = OLD_KINDS.get(path[-2] if path[1:] and path[-1] == "kind" else path[-1], {})
            names = kinds or OLD_VALUES.get(path, {})
            return names.get(value, value) if isinstance(value, str) else value
        names = OLD_SETTINGS.get(path[0], {}) if len(path) == 1 else {}
        return {names.get(k, k): renamed((*path, k), v) for k, v in value.items()}

    return {name: renamed((name,), value) for name, value in layer.items()}


def _meta(data: Layer) -> Layer:
    meta = data.get("meta")
    return meta if isinstance(meta, dict) else {}


def _without_other_length(below: Layer, above: Layer) -> Layer:
    if not _meta(above).keys() & {*LENGTHS}:
        return below
    return {**below, "meta": {name: v for name, v in _meta(below).items() if name not in LENGTHS}}


def _table(data: Layer, name: str) -> Layer:
    value = data.get(name, {})
    if isinstance(value, str) and name in ROLES:
        value = {"kind": value}
    if not isinstance(value, dict):
        raise UsageError(f"{label((name,))}: got {in_brief(show(value))!r}, must be a table")
    if not isinstance(value.get("kind", ""), str):
        raise UsageError(f"{label((name, 'kind'))}: got {in_brief(show(value['kind']))!r}, must be a name")
    return with_families(value, label((name,))) if name == "objective" else value


def _lines(preset: str, objective: Layer) -> Layer:
    # Families around others have the presets of the innermost; those of other packages that of the default,
    # as the library's have where a preset says nothing of them.
    kind = None
    table: Any = objective
    while isinstance(table, dict):
        kind, table = table.get("kind", kind), table.get("family")
    kind = table if isinstance(table, str) else kind if isinstance(kind, str) else None
    known = PRESETS[preset]
    if kind == MIXTURE and kind not in known:
        kind = OTHER_OBJECTIVES
    # A preset without the default is for objectives of its own, the first of them if nothing is said.
    home = DEFAULT_OBJECTIVE if DEFAULT_OBJECTIVE in known else next(iter(known))
    if kind not in known and kind in own_kinds("objectives"):
        # What a wrapper is around if nothing is said is the default.
        wraps = "family" in signature("objectives", str(kind)).parameters
        kind = home if wraps else OTHER_OBJECTIVES
    return known[kind if isinstance(kind, str) and kind in known else home]


def _read(setting: Setting, value: Any, path: Names) -> Any:
    if value is None:
        return setting.parameter.default
    try:
        return setting.read(value)
    except ValueError as error:
        mark = "," if "must" in str(error) else ";"
        raise UsageError(f"{label(path)}: got {in_brief(show(value))!r}{mark} {error}") from None


def _complete_table(name: str, given: Layer, lines: Layer) -> Table:
    known = settings(name)
    for stray in given.keys() - known.keys():
        raise UsageError(unknown_setting((name, stray), "", [*known]))
    values = {}
    for own, setting in known.items():
        value = given.get(own, lines.get(f"{name}.{own}"))
        values[own] = _read(setting, value, (name, own))
    return Table(values)


@dataclasses.dataclass(frozen=True)
class _Node:
    # A place where a plug-in stands: `label` is the name of the role or of the parameter.
    role: str
    label: str
    group: str
    path: Names
    lines: Layer

    def line(self, kind: str, name: str) -> Any:
        # What the preset says of a parameter.
        top = self.group == ROLES[self.role]
        own = [f"{self.role}.{self.label}.{name}", *([f"{self.role}.{name}"] if top else [])]
        known = [(*kinds_of_line(line), value) for line, value in self.lines.items()]
        fitting = [(path, value) for only, path, value in known if not only or kind in only]
        return next((value for name in own for path, value in fitting if path == name), None)

    def part(self, parameter: Parameter) -> "_Node":
        name = parameter.name
        return _Node(self.role, name, parameter.type.group, (*self.path, name), self.lines)

    def default(self, parameter: Parameter | None) -> tuple[str, Layer]:
        # Which kind stands here if none is given, and with which settings.
        preset = self.line("", "kind")
        if preset is not None:
            return preset, {}
        if parameter is not None and isinstance(parameter.default, Reference):
            return _called(parameter.default.text, self.group)
        if parameter is not None and parameter.default is None:
            return NONE, {}
        if self.group in _DEFAULT_KINDS:
            return _DEFAULT_KINDS[self.group], {}
        raise UsageError(f"{label(self.path)}: must be given")

    def signature(self, kind: Any) -> Signature:
        try:
            return signature(self.group, str(kind))
        except UsageError as error:
            path = (*self.path, "kind")
            raise UsageError(f"{label(path)}: {error.format_message()}") from None


def _called(text: str, group: str) -> tuple[str, Layer]:
    # A default such as `Backprop(constants=("grads",))`: its kind, and its settings.
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call):
        return kind_name(text.rpartition(".")[2], group), {}
    kind = kind_name(ast.unparse(call.func).rpartition(".")[2], group)
    names = [*signature(group, kind).parameters]
    values = dict(zip(names, call.args, strict=False)) | {str(k.arg): k.value for k in call.keywords}
    plain = {}
    for name, value in values.items():
        try:
            plain[name] = ast.literal_eval(value)
        except ValueError:
            continue
    return kind, plain


def _complete(node: _Node, given: Layer, parameter: Parameter | None = None) -> Table:
    kind, of_default = (given["kind"], {}) if "kind" in given else node.default(parameter)
    if kind == NONE and parameter is not None and parameter.type.optional:
        for name in given.keys() - {"kind"}:
            raise UsageError(unknown_setting((*node.path, name), kind, []))
        return Table(kind=NONE)
    known = node.signature(kind).parameters
    given = {**of_default, **{name: value for name, value in given.items() if name != "kind"}}
    if "estimator" in known:
        given = with_estimator(given, node.lines, known)
    for stray in [name for name in given if name not in known or known[name].type.name in _OWN]:
        home = _home(node, known, given, stray)
        if home is None:
            possible = [p.name for p in known.values() if p.type.name not in _OWN]
            raise UsageError(unknown_setting((*node.path, stray), str(kind), possible))
        given[home] = merge(as_table(given.get(home)), {stray: given.pop(stray)})
    table = Table(kind=str(kind))
    for name, p in known.items():
        if p.type.name == "part":
            table[name] = _complete(node.part(p), as_table(given.get(name)), p)
        elif p.type.name not in _OWN:
            table[name] = _value(node, str(kind), p, given.get(name))
    return table


def _complete_mixture(node: _Node, given: Layer) -> Table:
    for stray in given.keys() - {"kind", "families", "weights"}:
        raise UsageError(
            f"{label((*node.path, stray))}: the objective is a mixture; say which family is meant, as in "
            f"--set objective.families.NAME.{stray}=..."
        )
    tables, weights = given.get("families"), given.get("weights") or {}
    for name, value in (("families", tables), ("weights", weights)):
        if not isinstance(value, dict):
            raise UsageError(f"{label((*node.path, name))}: got {show(value)!r}, must be a table")
    assert isinstance(tables, dict)
    families = Table()
    for name, table in tables.items():
        path = (*node.path, "families", name)
        if "kind" not in as_table(table):
            raise UsageError(f"unknown setting '{'.'.join(path)}'; the families are {', '.join(families)}")
        families[name] = _complete(dataclasses.replace(node, path=path), as_table(table))
    for name in weights.keys() - families.keys():
        raise UsageError(unknown_setting((*node.path, "weights", name), MIXTURE, [*families]))
    known = {name: _weight((*node.path, "weights", name), weights.get(name, 1.0)) for name in families}
    return Table(kind=MIXTURE, families=families, weights=Table(known))


def _weight(path: Names, value: Any) -> float:
    try:
        weight = FLOAT.read(value)
    except ValueError as error:
        raise UsageError(f"setting '{'.'.join(path)}': got {show(value)!r}, {error}") from None
    if weight <= 0:
        raise UsageError(f"setting '{'.'.join(path)}': got {show(value)!r}, must be greater than 0")
    return weight


def _value(node: _Node, kind: str, p: Parameter, value: Any) -> Any:
    value = node.line(kind, p.name) if value is None else value
    if value is None and p.default is not REQUIRED:
        # A default that is no plain value stays the library's.
        return None if isinstance(p.default, Reference) else p.default
    path = (*node.path, p.name)
    if value is None:
        raise UsageError(f"{label(path)}: must be given")
    return _read(Setting(p, ""), value, path)


def _home(node: _Node, known: dict[str, Parameter], given: Layer, name: str) -> str | None:
    # The first part that has a setting which its owner does not have.
    for p in known.values():
        if p.type.name != "part":
            continue
        inner, table = node.part(p), as_table(given.get(p.name))
        kind = table["kind"] if "kind" in table else inner.default(p)[0]
        if kind == NONE:
            continue
        parameters = inner.signature(kind).parameters
        own = parameters.get(name)
        if (own is not None and own.type.name not in _OWN) or _home(inner, parameters, table, name):
            return p.name
    return None


# What only means something next to other settings.


def refuse_ignored(config: Table, given: Iterable[Layer]) -> None:
    """Refuses options that the rest of the configuration leaves without a meaning.

    **Arguments:**

    - `config`: the whole configuration.
    - `given`: the layers of `--set` and of the options. A file may have such settings: that of every run has
        all there are.

    **Raises:** `UsageError` for the first such option.
    """
    layers = list(given)
    for (table, name), other, values in NEEDS:
        found = config[table][other]
        for layer in layers:
            value = layer.get(table, {}).get(name)
            if value is not None and found not in values:
                missing = _missing((table, other), found, values)
                raise UsageError(f"{label((table, name))}: got {show(value)!r}, but {missing}")


def _missing(other: Names, found: Any, values: Any) -> str:
    if not found:
        return f"without {label(other)} there is no {other[0]}"
    possible = " or ".join(map(repr, values))
    return f"{label(other)} is {found!r}; it has a meaning with {possible} only"


# Files and `--set`.


def read_toml(path: Path) -> Layer:
    """The layer that a `--config` file holds.

    **Raises:** `UsageError` if it cannot be read.
    """
    try:
        return read_toml_file(path)
    except OSError as error:
        raise UsageError(f"option '--config': {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"option '--config': {path} is not TOML: {error}") from None


def read_assignments(texts: Iterable[str]) -> list[Layer]:
    """The layers that `--set a.b=v` options hold; an unquoted word counts as a string.

    **Arguments:**

    - `texts`: such as `"meta.num_steps=100"`.

    **Raises:** `UsageError` for anything else.
    """
    return [_read_assignment(text) for text in texts]


def _read_assignment(text: str) -> Layer:
    name, equals, value = text.partition("=")
    for written in (value, json.dumps(value)):
        try:
            layer = parse_toml(f"{name} = {written}")
        except ValueError:
            continue
        if equals and value.strip():
            return layer
    raise UsageError(f"option '--set': got {text!r}, must look like 'meta.num_steps=100'")


def nested(path: Names, value: Any) -> Layer:
    """The layer with one value."""
    for name in reversed(path):
        value = {name: value}
    return value


def plain(value: Any) -> Any:
    """A configuration as TOML and JSON have it: without what is `None`, sets and tuples as lists."""
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items() if v is not None}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def to_toml(config: Table) -> str:
    """The file that `--config` reads back as the same configuration."""
    return tomli_w.dumps(plain(config))


def walk(table: Any) -> Iterator[Table]:
    """A table and those in it."""
    if isinstance(table, dict):
        yield Table(table)
        for value in table.values():
            yield from walk(value)
