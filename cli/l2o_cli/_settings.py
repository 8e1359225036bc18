"""Every setting there is, with its place in a configuration and its option."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from ._errors import suggestion
from ._estimator import IN_SHORT
from ._kinds import NONE, ROLES, kinds, known_kinds, own_kinds, signature
from ._presets import DEFAULT_OBJECTIVE, DEFAULT_PRESET, PRESETS, kinds_of_line
from ._signatures import GROUPS, REQUIRED, Parameter, Reference
from ._tables import SEARCH, TABLES, settings
from ._types import Type

Path = tuple[str, ...]

# Options whose names are not made by the rule of `_name`, some of them because users know them.
_NAMES: dict[Path, str] = {
    ("objective", "hidden_sizes"): "--network-sizes",
    ("objective", "output"): "--network-output",
    ("optimizer", "decay"): "--start-decay",
    ("weighting", "eps"): "--log-eps",
    ("weighting", "relative"): "--relative-loss",
    ("weighting", "power"): "--log-power",
}
# Parts whose options always carry their name.
_PREFIXED = ("output",)

# Settings and kinds of earlier versions, and short names, and what they are called today.
OLD_SETTINGS: dict[str, dict[str, str]] = {
    "optimizer": {
        "mlp_sizes": "hidden_sizes",
        "start_rate": "learning_rate",
        "momentum_size": "hidden_size",
        "subspace_size": "hidden_size",
        "groups": "label",
    },
    "strategy": {"lookahead": "include_final_loss"},
    "pretraining": {"learning_rate": "meta_learning_rate"},
}
_SHORT = {"gp": "gaussian-process", "logistic": "logistic-regression"}
OLD_KINDS: dict[str, dict[str, str]] = {
    "objective": _SHORT,
    "family": _SHORT,
    "output": {"sum": NONE},
    "preprocessor": {"log-sign": "signed-log", "two-feature": "log-and-sign"},
}
OLD_VALUES: dict[Path, dict[Any, Any]] = {("meta", "normalization"): {"block": "part"}}
_OLD_OPTIONS = {("pretraining", "learning_rate"): "--pretrain-learning-rate"}


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting: its place in the configuration and its option.

    **Arguments:**

    - `path`: e.g. `("strategy", "window")`.
    - `name`: e.g. `"--window"`.
    - `type`, `help`: what may be given, and what it is.
    - `default`: of the library, if it is the same for all kinds.
    - `owners`: the kinds that have it, by the path of the table: `{("strategy",): ["every-window"]}`.
    - `group`: of plug-ins, if it names one.
    - `defaults`: of the library, by kind, as one types them.
    """

    path: Path
    name: str
    type: Type
    help: str
    default: Any
    owners: dict[Path, list[str]]
    group: str = ""
    defaults: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def choices(self) -> list[str]:
        """The possible values if there are only so many."""
        optional = [NONE] if self.group and self.type.optional else []
        return [*optional, *kinds(self.group)] if self.group else [str(c) for c in self.type.choices]

    @property
    def default_names_owners(self) -> bool:
        """Whether the default differs by kind, so that telling it names all kinds that have the setting."""
        return not self._of_presets and len({*self.defaults.values()}) > 1 and all(self.defaults.values())

    def describe_default(self) -> str:
        """The default for people: by objective or by kind where it differs."""
        values = self._of_presets
        if values:
            # Those of the default objective hold for all that are not named.
            usual = values.get(DEFAULT_OBJECTIVE)
            others = _by_value({name: value for name, value in values.items() if value != usual})
            return "; ".join(filter(None, (usual, others)))
        if len({*self.defaults.values()}) > 1:
            return _by_value(self.defaults)
        return "" if isinstance(self.default, Reference) or not self.default else show(self.default)

    @property
    def _of_presets(self) -> dict[str, str]:
        # By objective.
        name = ".".join(self.path)
        lines = {objective: _line(preset, name) for objective, preset in PRESETS[DEFAULT_PRESET].items()}
        return {objective: show(v) for objective, v in lines.items() if v is not None}


def _by_value(values: dict[str, str]) -> str:
    # `"20 (quadratic, others), 25 (mnist)"`
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in found.items() if value)


def _line(preset: dict[str, Any], name: str) -> Any:
    lines = ((kinds_of_line(key), value) for key, value in preset.items())
    # What another trainer than the usual one has is said where that is described.
    return next((v for (only, path), v in lines if path == name and SEARCH not in only), None)


def show(value: Any) -> str:
    """A value as one types it after an option."""
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return ",".join(map(show, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def options() -> dict[Path, Option]:
    """Every setting by path; those of plug-ins of other packages once they have been named."""
    return _options(tuple(known_kinds(group) for group in GROUPS))


@functools.cache
def _options(known: tuple[tuple[str, ...], ...]) -> dict[Path, Option]:
    del known
    found: dict[Path, Option] = {}
    for name, setting in settings("root").items():
        if setting.option:
            p = setting.parameter
            found[name,] = Option((name,), setting.option, p.type, p.help, p.default, {})
    for table in TABLES:
        for name, setting in settings(table).items():
            p = setting.parameter
            found[table, name] = Option((table, name), setting.option, p.type, p.help, p.default, {})
    for name, p in in_short().items():
        option = "--" + name.replace("_", "-")
        found["strategy", name] = Option(("strategy", name), option, p.type, p.help, p.default, {})
    taken = {option.name for option in found.values()} | set(_NAMES.values())
    items = [
        i for role, group in ROLES.items() for i in _walk((role,), group, {}, Type("part", group=group), ())
    ]
    defaults = _defaults(items)
    # Plug-ins last: they take no names from the library, and say what those mean to them.
    for path, owners, p in sorted(items, key=lambda item: _is_foreign(item[1])):
        name = found[path].name if path in found else _NAMES.get(path) or _name(path, taken)
        taken.add(name)
        mine = found[path].owners if path in found else {}
        for table, names in owners.items():
            mine[table] = [*dict.fromkeys([*mine.get(table, []), *names])]
        if path not in found or _is_foreign(owners):
            of_kinds = defaults.get(path, {})
            if _is_foreign(owners):
                of_kinds = {k: v for k, v in of_kinds.items() if k in owners.get(path[:-1], ())}
            default = None if p.default is REQUIRED or len({*of_kinds.values()}) > 1 else p.default
            group_of = p.type.group if path[-1] == "kind" else ""
            found[path] = Option(path, name, p.type, p.help, default, mine, group_of, of_kinds)
    return found


def _defaults(items: list[tuple[Path, dict[Path, list[str]], Parameter]]) -> dict[Path, dict[str, str]]:
    # As one types them, by the kind that has the setting.
    found: dict[Path, dict[str, str]] = {}
    for path, owners, p in items:
        plain = p.default is not None and p.default is not REQUIRED and not isinstance(p.default, Reference)
        for kind in owners.get(path[:-1], ()):
            found.setdefault(path, {})[kind] = show(p.default) if plain else ""
    return found


def _is_foreign(owners: dict[Path, list[str]]) -> bool:
    own = {kind for group in GROUPS for kind in own_kinds(group)}
    return any(kind not in own for names in owners.values() for kind in names)


def in_short() -> dict[str, Parameter]:
    """What of a strategy can be said in short: its estimator, if the library's strategies have one."""
    strategies = [signature("strategies", kind).parameters for kind in known_kinds("strategies")]
    has_estimator = any(p.type.group == "estimators" for known in strategies for p in known.values())
    return IN_SHORT if has_estimator else {}


def _walk(
    path: Path, group: str, owners: dict[Path, list[str]], part: Type, above: tuple[str, ...], text: str = ""
) -> Iterator[tuple[Path, dict[Path, list[str]], Parameter]]:
    yield (*path, "kind"), owners, Parameter("kind", part, None, text or _ABOUT.get(path[0], ""))
    for kind in known_kinds(group):
        mine = {**owners, path: [kind]}
        for name, p in signature(group, kind).parameters.items():
            if p.type.name == "part" and p.type.group in (group, *above):
                yield (*path, name, "kind"), mine, dataclasses.replace(p, name="kind", default=None)
                # What a wrapper has itself, it cannot hand on under the same name.
                own = signature(group, kind).parameters.values()
                for q in (q for q in own if q.type.name not in ("part", "key", "params", "unknown")):
                    if any(q.name in signature(group, k).parameters for k in known_kinds(group, kind)):
                        yield (*path, name, q.name), mine, dataclasses.replace(q, help=f"As {q.name}.")
            elif p.type.name == "part":
                yield from _walk((*path, name), p.type.group, mine, p.type, (group, *above), p.help)
            elif p.type.name not in ("key", "params", "unknown"):
                yield (*path, name), mine, p


_ABOUT = {
    "objective": "What is minimized.",
    "optimizer": "What is trained.",
    "strategy": "When it is trained, and on which losses.",
    "weighting": "How losses make the meta-loss.",
}


def _name(path: Path, taken: set[str]) -> str:
    words = path[:-1] if path[-1] == "kind" else path
    short = "--" + words[-1].replace("_", "-")
    full = "--" + "-".join(words[-2:]).replace("_", "-")
    return full if short in taken or (len(words) > 1 and words[-2] in _PREFIXED) else short


def old_options() -> dict[str, Path]:
    """Options of earlier versions, with the paths that they had."""
    return {
        _OLD_OPTIONS.get((table, name), "--" + name.replace("_", "-")): (table, name)
        for table, names in OLD_SETTINGS.items()
        for name in names
    }


def label(path: Path) -> str:
    """How a message names a setting: by its option and by its path."""
    known = options()
    places = (
        path,
        (*path, "kind"),
        (path[0], *path[-1:]),
        (path[0], *path[-2:]),
        (path[0], path[-1], "kind"),
    )
    option = next((known[place] for place in places if place in known), None)
    name = ".".join(path)
    return f"option '{option.name}' ({name})" if option else f"setting '{name}'"


def unknown_setting(path: Path, kind: str, names: list[str]) -> str:
    """What to say about a setting that the kinds chosen do not have.

    **Arguments:**

    - `path`: of the setting.
    - `kind`: that of its table; `names`: what that has.
    """
    known = options()
    option = known.get(path) or known.get((*path, "kind"))
    for table, owners in reversed(option.owners.items()) if option else ():
        if table == path[:-1] and kind not in owners:
            what = f"the {table[-1]} {' or '.join(map(repr, owners))}"
            return f"{label(path)} belongs to {what}, but the {table[-1]} is {kind!r}"
    return f"unknown setting '{'.'.join(path)}'; {suggestion(path[-1], names)}"
