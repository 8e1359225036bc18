"""Typer options made from the settings, and those that several commands share."""

import dataclasses
import inspect
import json
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ._errors import UsageError, suggestion
from ._kinds import ROLES, is_plain_kind, kinds_in, signature
from ._mixture import names_in
from ._resolve import Layer, merge, nested, read_assignments, read_toml
from ._settings import Option, label, old_options, options
from ._start import start
from ._types import TEXT

OUTPUT = "Output"
MACHINE = "Machine"
PARTS = {
    "objective": "Objective",
    "optimizer": "Optimizer",
    "strategy": "Strategy",
    "weighting": "Weighting",
    "trainer": "Trainer",
    "meta": "Meta-training",
    "pretraining": "Pretraining",
    "validation": "Validation",
    "evaluation": "Evaluation",
}
# Shown by `--help`; `--help-all` shows all.
COMMON = (
    *("preset", "seed", "objective.kind", "objective.dim", "optimizer.kind", "optimizer.hidden_sizes"),
    *("optimizer.learning_rate", "strategy.kind", "strategy.window", "weighting.kind", "meta.learning_rate"),
    *("meta.num_steps", "meta.super_epochs", "meta.num_objectives", "meta.restarts", "pretraining.enabled"),
    *("validation.every", "evaluation.num_objectives", "evaluation.num_steps", "evaluation.last"),
)
HELP_ALL = "--help-all"

Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting by its TOML name: meta.num_steps=100.", metavar="A.B=V"),
]
Config = Annotated[
    Path | None, typer.Option(help="TOML file of settings, such as a run's config.toml.", metavar="FILE")
]


def folder_option(help: str) -> Any:
    """The option for a folder that a command writes in.

    **Arguments:**

    - `help`: what is told of it.
    """
    return typer.Option(help=help, metavar="FOLDER", rich_help_panel=OUTPUT)


Source = Annotated[
    Path,
    typer.Argument(
        help="Run folder, file of a trained optimizer, or name in the gallery.", metavar="RUN_OR_FILE"
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--classes",
        help="Module whose classes a file may have; those of a run are known.",
        metavar="MODULE",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel=OUTPUT)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=OUTPUT)
]
Cores = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processor cores to use; all if not given.", metavar="INT", rich_help_panel=MACHINE
    ),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Keep compiled programs in the user's cache folder, so that the next call starts sooner.",
        rich_help_panel=MACHINE,
    ),
]


@dataclasses.dataclass(frozen=True)
class WithSettings:
    """A command that takes settings as options, beside its own parameters, as the layer `settings`.

    **Arguments:**

    - `command`: the function, with a parameter `settings`, a layer for `resolve`.
    - `keep`: picks the settings.
    - `names`: second names for some options, by dotted path.
    - `show_defaults`: whether the help tells them.
    """

    command: Callable[..., None]
    keep: Callable[[tuple[str, ...]], bool]
    names: Mapping[str, str]
    show_defaults: bool

    def for_arguments(self, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]]:
        """The function that Typer takes, with the options of all plug-ins that the arguments name.

        **Returns:** it, and the arguments for it: `--help-all` becomes `--help` of a function with all
        options, or with those of the part that follows.

        **Raises:** `UsageError` for plug-ins that cannot be had, and an unknown part.
        """
        arguments = list(arguments)
        named = import_named(arguments)
        visible = {p for p, o in options().items() if ".".join(p) in COMMON or _belongs(o, named)}
        if HELP_ALL in arguments:
            part = next(iter(arguments[arguments.index(HELP_ALL) + 1 :]), "")
            if part and not part.startswith("-") and part not in PARTS:
                raise UsageError(f"option '{HELP_ALL}': got {part!r}; {suggestion(part, PARTS)}")
            visible = {path for path in options() if part not in PARTS or path[0] == part}
            arguments = ["--help"]
        return self._function(visible), arguments

    def _function(self, visible: Collection[tuple[str, ...]]) -> Callable[..., None]:
        chosen = {"_".join(path): option for path, option in options().items() if self.keep(path)}
        paths = {name: option.path for name, option in chosen.items()}
        made = [
            _parameter(name, option, self._help(option) if shown else "", self._names(option), shown)
            for name, option in chosen.items()
            for shown in (option.path in visible,)
        ]
        taken = {option.name for option in chosen.values()}
        for name, path in old_options().items():
            if name not in taken and self.keep(path):
                python_name = "old_" + "_".join(path)
                paths[python_name] = path
                made.append(_parameter(python_name, _old(name, path), "", [name], False))

        def run(**arguments: Any) -> None:
            layer: Layer = {}
            given = [(paths[name], arguments.pop(name)) for name in paths]
            for path, value in given:
                if value is not None:
                    layer = merge(layer, nested(path, value))
            arguments.pop("help_all", None)
            self.command(settings=layer, **arguments)

        own = [p for p in inspect.signature(self.command).parameters.values() if p.name != "settings"]
        # Typer reads the signature; keyword-only, so that defaults may come in any order.
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        made.append(_HELP_ALL)
        signature = inspect.Signature([*own[:1], *made, *own[1:]])
        run.__signature__ = signature
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        run.__name__, run.__doc__ = self.command.__name__, self.command.__doc__
        return run

    def _names(self, option: Option) -> list[str]:
        second = self.names.get(".".join(option.path))
        return [second, option.name] if second else [option.name]

    def _help(self, option: Option) -> str:
        default = option.describe_default() if self.show_defaults else ""
        # Every optimizer is a kind of its own; naming those that have a setting would say little.
        tables = {path: kinds for path, kinds in option.owners.items() if path != ("optimizer",)}
        if self.show_defaults and option.default_names_owners:
            tables.pop(option.path[:-1], None)
        only = "; ".join(f"{path[-1]} {', '.join(kinds)}" for path, kinds in tables.items())
        choices = option.choices
        own = " or module:name of your own" if option.group else ""
        parts = [
            option.help,
            choices and f"One of {', '.join(choices)}{own}.",
            only and f"For {only}.",
            default and f"Default: {default}.",
        ]
        return " ".join(part for part in parts if part)


def with_settings(
    keep: Callable[[tuple[str, ...]], bool] = lambda path: True,
    names: Mapping[str, str] | None = None,
    *,
    show_defaults: bool = True,
) -> Callable[[Callable[..., None]], WithSettings]:
    """Decorates a command whose options are settings, see `WithSettings`."""
    return lambda command: WithSettings(command, keep, names or {}, show_defaults)


_HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            HELP_ALL,
            help=f"Show all options and exit; or those of one part that follows: {', '.join(PARTS)}.",
        ),
    ],
)


def _old(name: str, path: tuple[str, ...]) -> Option:
    today = [option for option in options().values() if option.name == name]
    return Option(path, name, today[0].type if today else TEXT, "", None, {})


def _parameter(
    name: str, option: Option, text: str, names: Sequence[str], visible: bool
) -> inspect.Parameter:
    # Values stay text, for one place to check them.
    is_flag = option.type.name == "bool"
    annotation: Any = bool | None if is_flag else str | None

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in option.choices if choice.startswith(incomplete)]

    info = typer.Option(
        *([f"{n}/--no-{n[2:]}" for n in names] if is_flag else names),
        help=text,
        metavar=None if is_flag else option.type.metavar,
        rich_help_panel=PARTS.get(option.path[0]),
        show_default=False,
        hidden=not visible,
        autocompletion=complete if option.group or option.type.choices else None,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, info]
    )


# Plug-ins are imported when they are named, before the options are known.


def import_named(arguments: Sequence[str]) -> set[tuple[str, str]]:
    """Imports the plug-ins that arguments and the files in them name; the kinds named, by group."""
    kinds: set[tuple[str, str]] = set()
    for path, option in options().items():
        for value in _kinds(arguments, option) if option.group else ():
            kinds.add((option.group, value))
            if not is_plain_kind(option.group, value):
                _import(option.group, value, path, arguments)
    for layer in _layers(arguments):
        for role, group in ROLES.items():
            for path, inner, kind in kinds_in(layer.get(role), group, (role,)):
                if not is_plain_kind(inner, kind):
                    _import(inner, kind, path, arguments)
    return kinds


def _import(group: str, kind: str, path: tuple[str, ...], arguments: Sequence[str]) -> None:
    cores = next(iter(_values(arguments, "--cores")), "")
    # It may start JAX.
    start(cores=int(cores) if cores.isdigit() else None, cache="--no-cache" not in arguments)
    try:
        signature(group, kind)
    except UsageError as error:
        raise UsageError(f"{label(path)}: {error.format_message()}") from None


def _kinds(arguments: Sequence[str], option: Option) -> Iterator[str]:
    for value in _values(arguments, option.name):
        yield from names_in(value) if option.path == ("objective", "kind") else [value]


def _values(arguments: Sequence[str], name: str) -> Iterator[str]:
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            yield argument.partition("=")[2]
        elif argument == name and i + 1 < len(arguments):
            yield arguments[i + 1]


def _layers(arguments: Sequence[str]) -> Iterator[Layer]:
    # What is wrong with them, the command itself will say.
    for text in _values(arguments, "--set"):
        yield from read_assignments([text])
    for path in _values(arguments, "--config"):
        yield read_toml(Path(path))
    for argument in arguments:
        config = Path(argument) / "config.toml"
        if not argument.startswith("-") and config.is_file():
            yield read_toml(config)
        elif argument.endswith(".safetensors"):
            yield _config_in(Path(argument))


def _config_in(path: Path) -> Layer:
    # The settings in the header of a trained optimizer's file.
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(size, 2**26)))
        return json.loads(header["__metadata__"]["l2o_eqx"])["metadata"].get("config") or {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return {}


def _belongs(option: Option, named: set[tuple[str, str]]) -> bool:
    # Of a kind that was named.
    kinds = {kind for _, kind in named}
    return any(kind in kinds for owners in option.owners.values() for kind in owners)
