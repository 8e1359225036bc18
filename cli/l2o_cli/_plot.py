"""`l2o plot`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import l2o_eqx as l2o

from ._errors import UsageError
from ._options import Assignments, Cache, Cores, Quiet, with_settings
from ._resolve import read_assignments
from ._start import start

Format = Literal["png", "svg", "pdf"]
# The figure that is drawn from each file of a folder.
FIGURES = {
    "curves.csv": "curves",
    "metrics.jsonl": "training",
    "pretraining.csv": "pretraining",
    "card.json": "card",
    "fits.csv": "fits",
    "updates.json": "updates",
    "answers.json": "answers",
}


@with_settings(
    lambda path: path[0] in ("objective", "seed") or path == ("evaluation", "num_steps"),
    {"evaluation.num_steps": "--steps"},
    show_defaults=False,
)
def plot(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder, or folder of an evaluation; with --updates also a file of a trained optimizer, "
            "or a name in the gallery.",
            metavar="RUN",
        ),
    ],
    updates: Annotated[
        bool,
        typer.Option(
            "--updates",
            help="Draw how the trained optimizer updates a coordinate, and what its networks answer; takes "
            "a minute or two.",
        ),
    ] = False,
    tensor: Annotated[
        str | None,
        typer.Option(
            help="With --updates, whose coordinates: its path; the largest if not given.", metavar="NAME"
        ),
    ] = None,
    assignments: Assignments = None,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--classes", help="With --updates, module whose classes the file may have.", metavar="MODULE"
        ),
    ] = None,
    file_format: Annotated[Format, typer.Option("--format", help="Kind of file.")] = "png",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the figures; beside their data if not given, with --updates of a file or a name "
            "the current one.",
            metavar="FOLDER",
        ),
    ] = None,
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Draw the figures of a run again, or what an optimizer has learned (--updates).

    Objective, steps and seed are for --updates; whatever is not given is as in the training, but for the
    seed, which is the next one.
    """
    if updates:
        layers = [*read_assignments(assignments or []), settings]
        start(cores=cores, cache=cache)
        from ._output import Output
        from ._updates import draw_updates

        draw_updates(
            run,
            layers,
            out,
            Output(quiet, False),
            file_format=file_format,
            tensor=tensor,
            modules=modules or (),
        )
        return
    if settings or assignments or tensor or modules:
        raise UsageError(
            "option '--updates': must be given for an objective, settings, --tensor or --classes"
        )
    _redraw_all(run, file_format, out, quiet)


def _redraw_all(run: Path, file_format: str, out: Path | None, quiet: bool) -> None:
    if not run.is_dir():
        named = "; to look at the optimizer of the gallery, add --updates"
        raise UsageError(f"RUN: there is no folder {run}{named if str(run) in l2o.gallery.names() else ''}")
    folders = [run, *sorted(run.glob("evaluations/*/"))]
    sources = [f / name for f in folders for name in FIGURES]
    sources = [source for source in sources if source.is_file()]
    drawn = [
        _redraw(source, (out or run) / source.parent.relative_to(run), file_format) for source in sources
    ]
    if not any(drawn):
        raise UsageError(f"RUN: {run} holds nothing to draw, none of {', '.join(FIGURES)}")
    for figure in drawn:
        if figure and not quiet:
            typer.echo(figure)


def _redraw(source: Path, folder: Path, file_format: str) -> Path | None:
    from l2o_eqx import callbacks, plots
    from l2o_eqx.files import replacing

    name = FIGURES[source.name]
    path = folder / f"{name}.{file_format}"
    readers: dict[str, Any] = {
        "curves": plots.read_curves,
        "training": callbacks.read_metrics,
        "pretraining": plots.read_pretraining,
        "card": _read_rows,
        "fits": plots.read_fits,
        "updates": plots.read_updates,
        "answers": plots.read_answers,
    }
    try:
        content = readers[name](source)
        if name != "answers" and not len(content):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            if name == "curves":
                beside = source.parent / "comparison.json"
                plots.plot_curves(content, temporary, title=_title(beside), several=_several(beside))
            elif name == "card":
                plots.plot_card(content, temporary, title=_title(source))
            elif name == "fits":
                plots.plot_fits(content, temporary)
            elif name == "updates":
                plots.plot_updates(content, temporary, title=_title(source))
            elif name == "answers":
                plots.plot_answers(content, temporary, title=_title(source))
            elif name == "training":
                plots.plot_training(content, temporary)
            else:
                plots.plot_pretraining(content, temporary)
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(f"{source} cannot be drawn: {error}") from None
    return path


def _read_rows(path: Path) -> list[dict[str, Any]]:
    from l2o_eqx import Card

    return Card.read(path).as_dict()["rows"]


def _title(path: Path) -> str | None:
    return _read(path, lambda content: content["title"], None)


def _several(path: Path) -> list[str]:
    # The optimizers that evaluate f more than once a step.
    def names(content: Any) -> list[str]:
        return [row["name"] for row in content["summary"] if row["evaluations_per_step"] > 1]

    return _read(path, names, [])


def _read(path: Path, find: Callable[[Any], Any], otherwise: Any) -> Any:
    import json

    try:
        return find(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return otherwise
