"""The commands. A command's module is imported when it is called: `--help` answers at once."""

import ast
import importlib
import importlib.metadata
import importlib.util
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ._errors import describe, drop_output
from ._kinds import entry_points, import_reference
from ._signatures import find_module

# A command `name` is the function of that name in the module `_name`; those of entry points come beside them.
COMMANDS = {
    "train": "Train an optimizer, compare it with tuned hand-designed ones, keep all in a folder.",
    "resume": "Resume a run from its last checkpoint, whatever ended it.",
    "pretrain": "Train an optimizer to start as gradient descent, without any objective.",
    "evaluate": "Compare a trained optimizer again: other draws, longer, or another objective.",
    "compare": "Compare optimizers with one another: trained ones, and any of optax's, tuned.",
    "distill": "Fit an equation to what a trained optimizer does, and compare the two as optimizers.",
    "info": "Tell what a file of a trained optimizer holds, and how it came about.",
    "export": "Make a folder to share a trained optimizer: its file, its facts and a card.",
    "minimize": "Minimize a number that any program of yours returns, in few evaluations.",
    "objectives": "List what can be minimized, describe one family, or draw it.",
    "gallery": "List the trained optimizers of the package, show the card of one, or train it again.",
    "plot": "Draw the figures of a run again, or what an optimizer has learned (--updates).",
}
# What entry points of a checkout add.
_OF_THE_REPOSITORY = ("bench", "reproduce")


class _Command(TyperCommand):
    # In plain text, part by part: boxes would cut off names at 80 columns.
    def format_options(self, ctx: Any, formatter: Any) -> None:
        parts: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                part = "Arguments" if parameter.param_type_name == "argument" else None
                part = part or getattr(parameter, "rich_help_panel", None) or "Options"
                parts.setdefault(part, []).append(record)
        for name in sorted(parts, key=_order_of_part):
            records = parts[name]
            with formatter.section(name):
                formatter.write_dl(records)


def _order_of_part(name: str) -> int:
    from ._options import MACHINE, OUTPUT, PARTS

    order = ["Arguments", "Options", *PARTS.values(), OUTPUT, MACHINE]
    return order.index(name) if name in order else len(order)


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        # An installation may lack what a checkout has.
        others = {
            name: point.value for name, point in entry_points("commands").items() if name not in COMMANDS
        }
        return [*COMMANDS, *(name for name, value in others.items() if find_module(value.partition(":")[0]))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        # For the list of commands; `resolve_command` makes the one that is called.
        return self.commands.get(cmd_name) or _command(cmd_name, lambda: None, _summary(cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, *rest = args
        if name in COMMANDS or name in self.list_commands(ctx):
            command, rest = _load(name, rest)
            return name, command, rest
        if not name.startswith("-") and not ctx.resilient_parsing:
            from ._errors import UsageError, suggestion

            if name in _OF_THE_REPOSITORY:
                raise UsageError(
                    f"{name!r} comes with the repository, not with the package: clone it, and "
                    "`pip install -e '.[reproduction]'` there"
                )
            raise UsageError(f"there is no command {name!r}; {suggestion(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    # A mistake is one line, which serves scripts and logs better than Typer's several.
    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        extra.setdefault("prog_name", "l2o")
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except typer.TyperException as error:
            message = " ".join(error.format_message().split())
            print(f"l2o: {message}", file=sys.stderr)
            code = error.exit_code
        except typer.Abort:
            code = 1
        except BrokenPipeError:
            drop_output(sys.stdout)
            code = 0
        except Exception as error:
            reason = describe(error)
            if reason is None:
                raise
            print(f"l2o: {reason}", file=sys.stderr)
            code = 2 if isinstance(error, ValueError) else 1
        sys.exit(code if isinstance(code, int) else 0)


def _load(name: str, arguments: list[str]) -> tuple[Any, list[str]]:
    if name in COMMANDS:
        function = getattr(importlib.import_module(f"._{name}", __package__), name)
    else:
        function = import_reference(entry_points("commands")[name].value, name)
    if hasattr(function, "for_arguments"):
        function, arguments = function.for_arguments(arguments)
    return _command(name, function), arguments


def _command(name: str, function: Any, summary: str | None = None) -> Any:
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, cls=_Command, help=summary)(function)
    return typer.main.get_command(alone)


def _summary(name: str) -> str:
    if name in COMMANDS:
        return COMMANDS[name]
    # The first line of its docstring, without importing it.
    home, _, function = entry_points("commands")[name].value.partition(":")
    module = find_module(home)
    found = module.find(function) if module else None
    return (ast.get_docstring(found[1]) or "").partition("\n")[0] if found else ""


app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, rich_markup_mode=None)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"l2o-eqx {importlib.metadata.version('l2o-eqx')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Learned optimizers: train them, compare them, look at them."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
