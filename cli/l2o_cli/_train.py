"""`l2o train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._needs import refuse_ignored
from ._options import OUTPUT, AsJson, Assignments, Cache, Cores, Quiet, with_settings
from ._resolve import read_assignments, read_toml, resolve
from ._start import start


@with_settings()
def train(
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings, such as a run's config.toml.", metavar="FILE"),
    ] = None,
    assignments: Assignments = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to make; runs/<time>-<objective>-<optimizer> if not given.",
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train an optimizer, compare it with tuned hand-designed ones, keep all in a folder.

    The order of precedence: options, --set, the file of --config, the defaults of the objective.

    A run's config.toml, given to --config, repeats the run.
    """
    file = [read_toml(config)] if config else []
    given = [*read_assignments(assignments or []), settings]
    checked = resolve([*file, *given])
    refuse_ignored(checked, given)

    start(cores=cores, cache=cache)
    from ._output import Output
    from ._training import train as run

    run(checked, out, Output(quiet, as_json))
