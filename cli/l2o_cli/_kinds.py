"""The kinds of every plug-in: the library's exported ones, those of entry points, and `module:name`."""

import functools
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ._cache import remembered
from ._errors import UsageError, suggestion
from ._mixture import MIXTURE, names_in
from ._signatures import (
    GROUPS,
    Parameter,
    Signature,
    exported,
    find_module,
    is_plugin,
    live_signature,
    static_signature,
)
from ._types import Type

LIBRARY = "l2o_eqx"
# The top of a configuration: which group stands in which table.
ROLES = {
    "objective": "objectives",
    "optimizer": "optimizers",
    "strategy": "strategies",
    "weighting": "weightings",
}
NONE = "none"
# Objectives made of MNIST's digits, which a run loads before it makes the family, to say which they are.
DIGIT_KINDS = ("mnist", "few-shot-digits")
# Of which settings are parameters.
VERBS = ("compare", "default_meta_optimizer", "meta_train", "policy_search", "pretrain", "Validation")
_KEPT_SHA = Parameter(
    "data_sha256",
    Type("text", optional=True),
    None,
    "Refuse other digits than these; a run's config.toml has its own.",
)


def kind_name(name: str, group: str) -> str:
    """`"adam-mlp"` of `AdamMLP`, `"adam"` of `AdamOutput`."""
    noun = re.sub("^Abstract", "", GROUPS[group])
    name = name.removesuffix(noun) or name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


@functools.cache
def own_kinds(group: str) -> Mapping[str, str]:
    """The library's names by kind; those that the command line can make."""
    return {kind: name for kind, (name, _) in _library()[group].items()}


@functools.cache
def _library() -> dict[str, dict[str, tuple[str, Signature]]]:
    return remembered(LIBRARY, _read_library)


def _read_library() -> dict[str, dict[str, tuple[str, Signature]]]:
    found: dict[str, dict[str, tuple[str, Signature]]] = {}
    for group, abstract in GROUPS.items():
        module = find_module(f"{LIBRARY}.{group}")
        names = [n for n in exported(module) if is_plugin(module, n, abstract)] if module else []
        made = [(n, static_signature(module, n)) for n in names] if module else []
        found[group] = {kind_name(n, group): (n, s) for n, s in made if s.is_complete}
    library = find_module(LIBRARY)
    assert library is not None
    found[""] = {verb: (verb, static_signature(library, verb)) for verb in VERBS}
    for kind in found["objectives"].keys() & {*DIGIT_KINDS}:
        found["objectives"][kind][1].parameters[_KEPT_SHA.name] = _KEPT_SHA
    return found


def verb_parameters(verb: str) -> Mapping[str, Parameter]:
    """Those of one of `VERBS`."""
    return _library()[""][verb][1].parameters


@functools.cache
def _entry_points() -> Mapping[str, Mapping[str, importlib.metadata.EntryPoint]]:
    found: dict[str, dict[str, importlib.metadata.EntryPoint]] = {}
    for point in (p for package in importlib.metadata.distributions() for p in package.entry_points):
        if point.group.startswith("l2o."):
            found.setdefault(point.group.removeprefix("l2o."), {}).setdefault(point.name, point)
    return found


def entry_points(group: str) -> Mapping[str, importlib.metadata.EntryPoint]:
    """What other packages add to a group, by name; `"commands"` is a group, too."""
    return _entry_points().get(group, {})


def kinds(group: str) -> list[str]:
    """All that can be named without a module."""
    own = own_kinds(group)
    return [*own, *(name for name in entry_points(group) if name not in own)]


def is_plain_kind(group: str, kind: str) -> bool:
    """Whether nothing is imported to know a kind: one of the library, none, or nothing at all."""
    return kind in own_kinds(group) or (kind not in entry_points(group) and ":" not in kind)


_NAMED: dict[tuple[str, str], Signature] = {}


def known_kinds(group: str, but: str = "") -> tuple[str, ...]:
    """Those whose parameters are known: the library's, and plug-ins that were named."""
    return tuple(k for k in (*own_kinds(group), *(k for g, k in _NAMED if g == group)) if k != but)


def signature(group: str, kind: str) -> Signature:
    """The parameters of a kind. Only plug-ins are imported for it.

    **Raises:** `UsageError` for an unknown kind, and for a plug-in that is none.
    """
    if kind in own_kinds(group):
        return _library()[group][kind][1]
    if (group, kind) not in _NAMED:
        _NAMED[group, kind] = live_signature(load(group, kind))
    return _NAMED[group, kind]


def kinds_in(table: Any, group: str, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The path, group and kind of all plug-ins in a table, which may be no more than a kind."""
    kind = table.get("kind") if isinstance(table, dict) else table
    families = table.get("families") if isinstance(table, dict) else None
    if group == "objectives" and (kind == MIXTURE or len(names_in(kind)) > 1):
        named = {name: {"kind": name} for name in names_in(kind) if kind != MIXTURE}
        for name, one in {**named, **(families if isinstance(families, dict) else {})}.items():
            yield from kinds_in(one, group, (*path, "families", name))
        return
    if not isinstance(kind, str) or (kind not in own_kinds(group) and is_plain_kind(group, kind)):
        # None, one of an earlier version, or a mistake that `resolve` reports.
        return
    yield (*path, "kind"), group, kind
    for p in signature(group, kind).parameters.values() if isinstance(table, dict) else ():
        if p.type.name == "part":
            yield from kinds_in(table.get(p.name), p.type.group, (*path, p.name))


def classes_in(config: Mapping[str, Any]) -> list[type]:
    """All classes of the packages whose plug-ins a configuration has, for the files that name them."""
    homes = {load(group, kind).__module__ for _, group, kind in plugins_in(config)}
    return classes_of(homes)


def plugins_in(config: Mapping[str, Any]) -> list[tuple[tuple[str, ...], str, str]]:
    """The path, group and kind of all parts of a configuration that are not the library's."""
    found = [k for role, group in ROLES.items() for k in kinds_in(config.get(role), group, (role,))]
    return [(path, group, kind) for path, group, kind in found if not is_plain_kind(group, kind)]


def classes_of(modules: Iterable[str]) -> list[type]:
    """All classes that are defined in the packages of some modules, as far as they are imported."""
    packages = {name.partition(".")[0] for name in modules}
    imported = [m for name, m in [*sys.modules.items()] if name.partition(".")[0] in packages]
    members = [x for module in imported for x in vars(module).values() if isinstance(x, type)]
    return [x for x in members if x.__module__.partition(".")[0] in packages]


def load(group: str, kind: str) -> Callable[..., Any]:
    """The constructor itself; starts JAX.

    **Raises:** `UsageError`, as `signature`.
    """
    if name := own_kinds(group).get(kind):
        return getattr(importlib.import_module(f"{LIBRARY}.{group}"), name)
    if point := entry_points(group).get(kind):
        reference = point.value
    elif re.fullmatch(r"[\w.]+:[\w.]+", kind):
        reference = kind
    else:
        raise UsageError(f"got {kind!r}; {suggestion(kind, kinds(group))}, or module:name of your own")
    target = import_reference(reference, kind)
    _check_is(target, group, kind)
    return target


def import_reference(reference: str, called: str) -> Any:
    """What `module:name` stands for, or a module alone.

    **Raises:** `UsageError` that says why it cannot be had.
    """
    home, _, name = reference.partition(":")
    # As with `python -m`: a module beside where one stands.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return functools.reduce(getattr, filter(None, name.split(".")), importlib.import_module(home))
    except Exception as error:
        raise UsageError(f"{called!r} cannot be imported: {type(error).__name__}: {error}") from None


def _check_is(target: Any, group: str, kind: str) -> None:
    # Names come out of files, too: nothing is called that does not say what it makes.
    abstract = getattr(importlib.import_module(f"{LIBRARY}.{group}"), GROUPS[group])
    made = target if isinstance(target, type) else getattr(target, "__annotations__", {}).get("return")
    if isinstance(made, str):
        made = getattr(sys.modules[target.__module__], made, None)
    if not (isinstance(made, type) and issubclass(made, abstract)):
        raise UsageError(
            f"{kind!r} must be a subclass of l2o_eqx.{group}.{GROUPS[group]}, or a function that is "
            f"annotated to return one (-> {GROUPS[group]})"
        )
