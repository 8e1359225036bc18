"""`l2o bench`, an entry point of the group `l2o.commands`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from l2o_cli.plugin import (
    AsJson,
    Cores,
    Output,
    Quiet,
    UsageError,
    check_free,
    folder_option,
    interrupted,
    make_folder,
    run_interruptibly,
    start,
    suggestion,
)

ALL = "all"


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Benchmarks, such as mlp-1, or all.", metavar="NAMES", show_default=False),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show what there is.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each side, in alternation.")] = 5,
    cores: Cores = None,
    out: Annotated[
        Path | None,
        folder_option("Folder to make; bench/<time> if not given."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure speed and memory next to what one would write otherwise.

    Both sides run in turn in one process; compare ratios, for the machine's speed may drift. The folder has
    the numbers (bench.json) and the cost over the number of coordinates (bench.png).
    """
    check_free(out)
    start(cores=cores, cache=False)

    from l2o_eqx.files import dumps, write_text

    from ._report import plot, tables
    from ._run import parts, run

    output = Output(quiet, as_json)
    possible = parts()
    if show_list:
        for name, title in possible.items():
            output.say(f"{name:28} {title}")
        return
    if not names:
        raise UsageError("NAMES: which benchmarks? `l2o bench --list` shows them, 'all' takes all")
    for name in names:
        if name != ALL and name not in possible:
            raise UsageError(f"NAMES: there is no benchmark {name!r}; {suggestion(name, [ALL, *possible])}")
    chosen = [name for name in possible if ALL in names or name in names]
    folder = make_folder(out, Path("bench"), "bench")

    def keep(found: dict[str, Any]) -> None:
        write_text(folder / "bench.json", dumps(found, indent=1))
        plot(found, folder / "bench.png")

    try:
        with output.progress("measuring", 1.0, "the machine's peak", percent=True) as update:
            found = run_interruptibly(lambda: run(chosen, repeats=repeats, progress=update, keep=keep))
    except KeyboardInterrupt:
        output.say(f"Interrupted. What was measured is in {folder}.")
        interrupted()
    for table in tables(found):
        output.console.print(table)
    output.say(f"The numbers are in {folder}.")
    output.result(found)
