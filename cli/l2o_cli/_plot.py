"""`l2o plot`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import l2o_eqx as l2o

from ._errors import UsageError
from ._folder import file_name
from ._options import Assignments, Cache, Cores, Quiet, with_settings
from ._resolve import read_assignments
from ._start import start

Format = Literal["png", "svg", "pdf"]
# The figure that is drawn from each file of a folder.
FIGURES = {
    "curves.csv": "curves",
    "comparison.json": "curves",
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
    # Of a run and of its evaluations; a comparison on several families has a folder for each.
    folders = [run, *sorted(run.glob("evaluations/*/"))]
    folders = [one for folder in folders for one in (folder, *sorted(folder.glob("families/*/")))]
    sources = [source for f in folders for name in FIGURES if (source := f / name).is_file()]
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

    # How each is read and drawn, and which settings of the figure are kept in that file or beside it.
    known: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[Path], dict[str, Any]]]] = {
        "curves.csv": (plots.read_curves, plots.plot_curves, _of_curves),
        "comparison.json": (_read_families, plots.plot_families, _titled),
        "metrics.jsonl": (callbacks.read_metrics, plots.plot_training, lambda _: {}),
        "pretraining.csv": (plots.read_pretraining, plots.plot_pretraining, lambda _: {}),
        "card.json": (_read_rows, plots.plot_card, _titled),
        "fits.csv": (plots.read_fits, plots.plot_fits, lambda _: {}),
        "updates.json": (plots.read_updates, plots.plot_updates, _titled),
        "answers.json": (plots.read_answers, plots.plot_answers, _titled),
    }
    read, draw, settings = known[source.name]
    path = folder / f"{FIGURES[source.name]}.{file_format}"
    try:
        content = read(source)
        if source.name != "answers.json" and not len(content):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            draw(content, temporary, **settings(source))
    except (ValueError, KeyError, OSError, RecursionError) as error:
        raise UsageError(f"{source} cannot be drawn: {error}") from None
    return path


def _read_families(path: Path) -> dict[str, dict[str, Any]]:
    # The curves of each, of a comparison on several.
    from l2o_eqx import plots

    names = _read(path, lambda content: [str(name) for name in content["families"]], [])
    files = {name: path.parent / "families" / file_name(name) / "curves.csv" for name in names}
    return {name: plots.read_curves(file) for name, file in files.items() if file.is_file()}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    from l2o_eqx import Card

    return Card.read(path).as_dict()["rows"]


def _titled(path: Path) -> dict[str, Any]:
    return {"title": _read(path, lambda content: content["title"], None)}


def _of_curves(path: Path) -> dict[str, Any]:
    beside = path.parent / "comparison.json"
    return {**_titled(beside), "several": _several(beside)}


def _several(path: Path) -> list[str]:
    # The optimizers that evaluate f more than once a step.
    def names(content: Any) -> list[str]:
        return [row["name"] for row in content["summary"] if row["evaluations_per_step"] > 1]

    return _read(path, names, [])


def _read(path: Path, find: Callable[[Any], Any], otherwise: Any) -> Any:
    import json

    try:
        return find(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return otherwise
