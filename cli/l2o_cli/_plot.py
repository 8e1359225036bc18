"""`l2o plot`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ._errors import UsageError

Format = Literal["png", "svg", "pdf"]
# The figure that is drawn from each file of a folder.
FIGURES = {
    "curves.csv": "curves",
    "metrics.jsonl": "training",
    "pretraining.csv": "pretraining",
    "card.json": "card",
    "fits.csv": "fits",
}


def plot(
    run: Annotated[Path, typer.Argument(help="Run folder, or folder of an evaluation.", metavar="RUN")],
    file_format: Annotated[Format, typer.Option("--format", help="Kind of file.")] = "png",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the figures; beside their data if not given.", metavar="FOLDER"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Draw the figures of a run and of its evaluations again."""
    if not run.is_dir():
        raise UsageError(f"RUN: there is no folder {run}")
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
    }
    try:
        content = readers[name](source)
        if not len(content):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            if name == "curves":
                plots.plot_curves(content, temporary, title=_title(source.parent / "comparison.json"))
            elif name == "card":
                plots.plot_card(content, temporary, title=_title(source))
            elif name == "fits":
                plots.plot_fits(content, temporary)
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
    import json

    try:
        return json.loads(path.read_text(encoding="utf-8"))["title"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
