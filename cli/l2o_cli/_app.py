"""The commands. A command's module is imported when it is called: `--help` answers at once."""

import ast
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# A command `name` is the function of that name in the module `_name`. Others are entry points of the group
# `l2o.commands`, functions as Typer takes them.
COMMANDS = {
    "train": "Train an optimizer, compare it with tuned hand-designed ones, keep all in a folder.",
    "pretrain": "Train an optimizer to start as gradient descent, without any objective.",
    "evaluate": "Compare a trained optimizer again: other draws, longer, or another objective.",
    "bench": "Measure speed and memory next to what one would write otherwise.",
    "plot": "Draw the figures of a run and of its evaluations again.",
}


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """The commands of installed packages by name, without importing them."""
    found = importlib.metadata.entry_points(group="l2o.commands")
    return {entry.name: entry for entry in found if importlib.util.find_spec(entry.module.partition(".")[0])}


class _Commands(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        known = [*COMMANDS, *entry_points()]
        if name not in known and not name.startswith("-"):
            from ._errors import UsageError, suggestion

            raise UsageError(f"there is no command {name!r}; {suggestion(name, known)}")
        if name in known:
            self.commands[name] = _load(name)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *(name for name in entry_points() if name not in COMMANDS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in entry_points() and cmd_name not in self.commands:
            # For the list of commands; `resolve_command` loads the one that is called.
            self.commands[cmd_name] = _command(cmd_name, lambda: None, _first_line(entry_points()[cmd_name]))
        return super().get_command(ctx, cmd_name)

    # Typer draws a box of several lines around a mistake; a line serves scripts and logs better.
    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
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
        sys.exit(code if isinstance(code, int) else 0)


def _load(name: str) -> Any:
    if name in COMMANDS:
        return _command(name, getattr(importlib.import_module(f"._{name}", __package__), name))
    return _command(name, entry_points()[name].load())


def _command(name: str, function: Any, summary: str | None = None) -> Any:
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, help=summary)(function)
    return typer.main.get_command(alone)


def _first_line(entry: importlib.metadata.EntryPoint) -> str:
    # The first line of the function's docstring, without importing what it needs.
    spec = importlib.util.find_spec(entry.module)
    if spec is None or spec.origin is None:
        return ""
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False)


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


for _name, _summary in COMMANDS.items():
    app.command(_name, help=_summary)(lambda: None)
