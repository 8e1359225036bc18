"""`l2o train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._options import with_settings
from ._resolve import read_assignments, read_toml, resolve

PANEL = "Output"


@with_settings()
def train(
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings, such as a run's config.toml.", metavar="FILE"),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting by its TOML name: meta.num_steps=100.", metavar="A.B=V"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to make; runs/<time>-<objective>-<optimizer> if not given.",
            metavar="FOLDER",
            rich_help_panel=PANEL,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel=PANEL)] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=PANEL),
    ] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train an optimizer, compare it with tuned hand-made ones, keep all in a folder.

    The order of precedence: options, --set, the file of --config, the defaults of the objective.

    A run's config.toml, given to --config, repeats the run.
    """
    file = [read_toml(config)] if config else []
    checked = resolve([*file, *read_assignments(assignments or []), settings])

    from ._output import Output
    from ._training import train as run

    run(checked, out, Output(quiet, as_json))
