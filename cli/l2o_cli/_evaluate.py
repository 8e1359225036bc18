"""`l2o evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._errors import UsageError
from ._options import OUTPUT, AsJson, Assignments, Cache, Cores, Quiet, with_settings
from ._resolve import read_assignments
from ._start import start

SECOND_NAMES = {"evaluation.num_steps": "--steps", "evaluation.num_objectives": "--objectives"}


@with_settings(
    lambda leaf: leaf.path[0] in ("objective", "evaluation", "seed"),
    SECOND_NAMES,
    show_defaults=False,
)
def evaluate(
    source: Annotated[
        Path,
        typer.Argument(help="Run folder, or file of a trained optimizer.", metavar="RUN_OR_FILE"),
    ],
    assignments: Assignments = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Compare with hand-designed optimizers."),
    ] = True,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Also how far it generalizes: longer, other sizes and kinds, scales; takes minutes.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to make; RUN/evaluations/<time>-<objective> if not given; a file: none.",
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
    """Compare a trained optimizer again: other draws, longer, or another objective.

    Whatever is not given is as in the training, but for the seed, which is the next one.
    """
    if card and not baselines:
        raise UsageError("option '--card': compares with baselines; leave out --no-baselines")
    layers = [*read_assignments(assignments or []), settings]

    start(cores=cores, cache=cache)
    from ._evaluation import evaluate as run
    from ._output import Output

    run(source, layers, out, Output(quiet, as_json), with_baselines=baselines, with_card=card)
