"""Typer options made from the fields of the models."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from ._fields import Leaf, leaves
from ._resolve import Layer, merge, nested

PANELS = {
    "objective": "Objective",
    "optimizer": "Optimizer",
    "strategy": "Strategy",
    "weighting": "Weighting",
    "meta": "Meta-training",
    "pretraining": "Pretraining",
    "validation": "Validation",
    "evaluation": "Evaluation",
}


OUTPUT = "Output"
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting by its TOML name: meta.num_steps=100.", metavar="A.B=V"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel=OUTPUT)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=OUTPUT)
]
MACHINE = "Machine"
Cores = Annotated[
    int | None,
    typer.Option(min=1, help="Processor cores to use; all if not given.", rich_help_panel=MACHINE),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Keep compiled programs in the user's cache folder, so that the next call starts sooner.",
        rich_help_panel=MACHINE,
    ),
]


def with_settings(
    keep: Callable[[Leaf], bool] = lambda leaf: leaf.name != "format",
    names: Mapping[str, str] | None = None,
    *,
    show_defaults: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: settings become options, and it is given those used as `settings`.

    **Arguments:**

    - `keep`: picks the settings.
    - `names`: second names for some options, by dotted path.
    - `show_defaults`: whether the help tells them.

    The command takes `settings`, a layer for `resolve`, beside its own parameters.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        chosen = {_python_name(leaf): leaf for leaf in leaves().values() if keep(leaf)}

        def run(**arguments: Any) -> None:
            layer: Layer = {}
            for python_name, leaf in chosen.items():
                value = arguments.pop(python_name)
                if value is not None:
                    layer = merge(layer, nested(leaf.path, _parse(leaf, value)))
            command(settings=layer, **arguments)

        own = list(inspect.signature(command).parameters.values())
        own = [p for p in own if p.name != "settings"]
        made = []
        for name, leaf in chosen.items():
            text = _help(leaf, leaf.describe_default() if show_defaults else "")
            made.append(_parameter(name, leaf, text, (names or {}).get(leaf.name)))
        # Typer reads the signature; keyword-only, so that defaults may come in any order.
        arguments = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        signature = inspect.Signature([*arguments[:1], *made, *arguments[1:]])
        run.__signature__ = signature
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _parameter(name: str, leaf: Leaf, text: str, second: str | None) -> inspect.Parameter:
    names = [second, leaf.option] if second else [leaf.option]
    # Values stay text, for one place to check them: the models.
    annotation: Any = bool | None if leaf.is_flag else str | None
    if leaf.is_flag:
        names = [f"{name}/--no-{name[2:]}" for name in names]
    info = typer.Option(
        *names,
        help=text,
        metavar=None if leaf.is_flag else _metavar(leaf),
        rich_help_panel=PANELS.get(leaf.path[0]),
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, info]
    )


def _help(leaf: Leaf, default: str) -> str:
    # Every optimizer is a kind of its own; naming those that have a field would say little.
    tables = {path: kinds for path, kinds in leaf.owners.items() if path != ("optimizer",)}
    only = "; ".join(f"{path[-1]} {', '.join(kinds)}" for path, kinds in tables.items())
    choices = f"One of {', '.join(leaf.choices)}." if leaf.choices else ""
    parts = [
        leaf.info.description,
        choices,
        only and f"For {only}.",
        default and f"Default: {default}.",
    ]
    return " ".join(part for part in parts if part)


def _metavar(leaf: Leaf) -> str:
    if leaf.choices:
        return "NAME"
    kind = "float" if "float" in str(leaf.info.annotation) else "int"
    kind = "text" if "str" in str(leaf.info.annotation) else kind
    return f"{kind.upper()},..." if leaf.is_tuple else kind.upper()


def _parse(leaf: Leaf, value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if leaf.is_tuple else value


def _python_name(leaf: Leaf) -> str:
    return leaf.name.replace(".", "_")
