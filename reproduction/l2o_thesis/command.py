"""`l2o reproduce`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from l2o_cli.plugin import OUTPUT, AsJson, Cache, Quiet, UsageError, folder_option, start
from typer import Option

Source = Literal["figures", "text", "code"]
Data = Literal["auto", "embedded", "tfds"]
REPORT = Path("docs/thesis.md")

_AS = (
    "What to follow. 'text': the thesis's text alone. 'code': its released code where that differs, but for "
    "some points that the report names. 'figures': the text, on the quadratic of the code, which is the one "
    "that the thesis's figures show."
)
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Figures, such as fig13, or all.", metavar="NAMES", show_default=False),
]
List = Annotated[bool, Option("--list", help="Show the figures, their claims and the time to expect.")]
Quick = Annotated[bool, Option("--quick", help="The same code on small sizes, for a look.")]
Restarts = Annotated[
    int | None, Option(min=1, help="Of every experiment; 100, or 10 of long trainings, if not given.")
]
Seed = Annotated[int, Option(min=0, max=2**31 - 2, help="Same seed, same numbers.")]
Which = Annotated[Data, Option(help="Which MNIST: 'auto' takes the full set if it is there.")]
Folder = Annotated[
    Path | None, Option(help="Folder of the full set; else the variable TFDS_DATA_DIR.", metavar="FOLDER")
]
Processes = Annotated[int | None, Option(min=1, help="To work in, on CPUs; one per core if not given.")]
SoFar = Annotated[bool, Option("--so-far", help="Run nothing; show the restarts that are finished.")]
Out = Annotated[
    Path | None,
    folder_option("Folder, which may exist; reproduction/results/<scale>-<as> if not given."),
]
Report = Annotated[
    bool, Option("--report", help=f"Write {REPORT} on all figures in the folder.", rich_help_panel=OUTPUT)
]
ReportTo = Annotated[
    Path | None, Option(help="Write that page elsewhere.", metavar="FILE", rich_help_panel=OUTPUT)
]


def reproduce(
    names: Names = None,
    show_list: List = False,
    quick: Quick = False,
    restarts: Restarts = None,
    source: Annotated[Source, Option("--as", help=_AS)] = "figures",
    seed: Seed = 0,
    data: Which = "auto",
    data_dir: Folder = None,
    processes: Processes = None,
    so_far: SoFar = False,
    out: Out = None,
    report: Report = False,
    report_to: ReportTo = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the thesis's figures over many restarts; say which of its claims hold.

    Results of finished jobs are kept in the folder: the same command goes on where it was stopped. With
    --report and no names, only the report is written.
    """
    names = names or []
    if report or report_to:
        report_to = report_to or REPORT
    if show_list and (so_far or out or report_to or data_dir):
        raise UsageError("option '--list' shows what could be run; it goes with no folder and no report")
    if so_far and processes:
        raise UsageError("option '--so-far' runs nothing, so that '--processes' has no meaning")
    if not (names or show_list or report_to):
        raise UsageError("NAMES: which figures? `l2o reproduce --list` shows them, 'all' takes all")

    start(cores=0, cache=cache)
    from l2o_cli.plugin import Output

    try:
        from .reproduce import Request
        from .show import choose, list_figures, report_only, run_figures
    except ModuleNotFoundError as error:
        raise UsageError(f"there is no {error.name}; `pip install -e '.[reproduction]'` brings it") from None

    output, scale = Output(quiet, as_json), "quick" if quick else "full"
    folder = out or Path("reproduction", "results", f"{scale}-{source}")
    # For a list the digits only have to be there quickly.
    data = "embedded" if show_list else data
    request = Request(choose(names), folder, scale, source, seed, restarts, data, data_dir)
    if show_list:
        list_figures(request, processes, output)
    elif names:
        run_figures(request, output, processes=processes, so_far=so_far, report=report_to)
    else:
        assert report_to is not None
        report_only(request, output, report_to)
