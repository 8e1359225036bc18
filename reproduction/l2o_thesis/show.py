"""What `l2o reproduce` does once its options are read."""

import collections
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
from l2o_cli.plugin import Output, UsageError, interrupted, run_interruptibly, suggestion
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from l2o_eqx.data import DataError

from .facts import CLAIMS
from .figures import FIGURES, Figure
from .jobs import num_processes
from .report import LostError, write_report
from .reproduce import Outlook, Reproduction, Request, reproduce

_STYLES = {"holds": "green", "does not hold": "red", "undecided": "yellow"}


def choose(names: Sequence[str]) -> list[str]:
    """The figures of that name, each once; all of them for `all` and for no names.

    **Raises:** `UsageError` for an unknown one.
    """
    for name in names:
        if name not in ("all", *FIGURES):
            raise UsageError(f"NAMES: there is no figure {name!r}; {suggestion(name, ['all', *FIGURES])}")
    return [name for name in FIGURES if name in names or "all" in names or not names]


def run_figures(
    request: Request, output: Output, *, processes: int | None, so_far: bool, report: Path | None
) -> None:
    """Runs what is missing, or with `so_far` nothing; writes figures and report; shows the verdicts.

    **Raises:** `UsageError` before anything is written; `typer.Exit(130)` after Ctrl-C.
    """
    folder = Path(request.folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"option '--out': {folder} is no folder")
    try:
        processes = num_processes(processes)
    except ValueError as error:
        raise UsageError(f"option '--processes': {error}") from None
    try:
        request.digits  # noqa: B018 (loads them)
    except DataError as error:
        raise UsageError(f"option '--data': {error}") from None
    try:
        outlook = request.outlook()
        finished = f"{outlook.kept} of {outlook.restarts} restarts are finished in {folder}"
        output.say(f"{finished}{'' if so_far else expectation(outlook, processes)}.")
        if so_far:
            found = run_interruptibly(lambda: reproduce(request, partial=True))
        else:
            found = _run(request, output, processes, waits=outlook.kept < outlook.restarts)
    except KeyboardInterrupt:
        output.say(f"Interrupted. What is finished is kept in {folder}; the same command goes on from there.")
        output.result({"folder": str(folder), "result": "stopped"})
        interrupted()
    for name, reproduction in found.items():
        _show(name, reproduction, output)
    left_out = [name for name in request.figures if name not in found]
    if left_out:
        output.say(f"Left out, there is nothing of them yet: {', '.join(left_out)}.")
    page = _write_page(request, report, output) if report else None
    output.say(f"Everything is in {folder}.")
    figures = {
        name: {
            "files": {kind: str(path) for kind, path in one.files.items()},
            "verdicts": [verdict.to_json() for verdict in one.verdicts],
        }
        for name, one in found.items()
    }
    result = {"folder": str(folder), "result": "completed", "figures": figures, "left_out": left_out}
    output.result({**result, "report": page and str(page)})


def report_only(request: Request, output: Output, report: Path) -> None:
    """Writes the page on the figures that are in the folder; a `UsageError` if there are none."""
    page = _write_page(request, report, output)
    output.result({"folder": str(request.folder), "result": "completed", "report": str(page)})


def expectation(outlook: Outlook, processes: int) -> str:
    """What to say of the time that is left, if it is worth saying."""
    # The time is that of a CPU.
    if outlook.kept == outlook.restarts or jax.default_backend() != "cpu":
        return ""
    minutes = outlook.seconds_left / processes / 60
    plural = "es" if processes > 1 else ""
    return f"; expect about {minutes:.0f} minutes in {processes} process{plural}" if minutes >= 1 else ""


def _run(request: Request, output: Output, processes: int, *, waits: bool) -> dict[str, Reproduction]:
    stopped = threading.Event()

    def stop() -> None:
        # The processes leave Ctrl-C to us. Once they are gone, the pool ends in good order.
        children = multiprocessing.active_children()
        if not children:
            raise KeyboardInterrupt
        stopped.set()
        for child in children:
            child.terminate()

    with output.progress("reproducing", 1.0, "compiling" if waits else "", percent=True) as update:

        def work() -> dict[str, Reproduction]:
            return reproduce(
                request, processes=processes, progress=lambda done, total, text: update(done / total, text)
            )

        try:
            return run_interruptibly(work, on_first=stop)
        except BrokenProcessPool:
            if stopped.is_set():
                raise KeyboardInterrupt from None
            raise UsageError(
                f"a process was killed, perhaps for want of memory; what is finished is kept in "
                f"{request.folder}, and with fewer '--processes' the same command goes on from there"
            ) from None


def _show(name: str, reproduction: Reproduction, output: Output) -> None:
    picture = reproduction.files.get("picture", reproduction.files["facts"])
    output.say(f"{name}: {reproduction.figure.title}: {picture}", style="bold")
    for verdict in reproduction.verdicts:
        status = (verdict.status, _STYLES[verdict.status])
        output.console.print(Text.assemble(f"  claim {verdict.claim}: ", status, f" — {verdict.statement}"))


def _write_page(request: Request, path: Path, output: Output) -> Path:
    try:
        page = write_report(request.folder, path)
    except LostError as error:
        some = ", ".join(error.lost[:3]) + (f" and {len(error.lost) - 3} more" if len(error.lost) > 3 else "")
        raise UsageError(
            f"option '--report': {path} has what is not in {request.folder} ({some}); run these, or write "
            "the page elsewhere with '--report-to'"
        ) from None
    except ValueError as error:
        raise UsageError(f"option '--report': {error}") from None
    output.say(f"The report is {page}.")
    return page


def list_figures(request: Request, processes: int | None, output: Output) -> None:
    """A table of what there is and how long it takes in some processes, and the claims that it is about."""
    processes = processes or os.cpu_count() or 1
    facts = {name: _listed(request, figure, processes) for name, figure in request.figures.items()}
    measuring = sum(one["measuring_minutes"] for one in facts.values())
    total = request.outlook().seconds / processes / 60 + measuring
    table = Table(title=f"Figures of the thesis, {request.scale} scale", box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("title")
    table.add_column("series x restarts", justify="right")
    table.add_column("minutes", justify="right", no_wrap=True)
    for name, one in facts.items():
        runs = ", ".join(f"{some['series']} x {some['restarts']}" for some in one["series"])
        table.add_row(name, one["title"], runs or "-", f"{one['expected_minutes']:.1f}")
    output.console.print(table, soft_wrap=False)
    output.say("Claims, and the figures that decide them:", style="bold")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right")
    grid.add_column()
    for number, claim in CLAIMS.items():
        where = ", ".join(name for name, figure in request.figures.items() if number in figure.claims)
        if where:
            grid.add_row(f"{number}:", f"{claim.says} ({where})")
    output.console.print(grid, soft_wrap=False)
    output.say(
        f"All of these together: {total:.0f} minutes. That is less than the sum of the rows: figures share "
        "experiments, which are run once, and each row has the time of the figure alone. Times are for "
        f"{processes} process{'es' * (processes > 1)} on cores like those that were measured, with "
        f"compiling; {measuring:.1f} minutes are measurements beside the experiments, in one process."
    )
    times = {"expected_minutes": total, "measuring_minutes": measuring, "processes": processes}
    output.result({"figures": facts, **times})


def _listed(request: Request, figure: Figure, processes: int) -> dict[str, Any]:
    runs = collections.Counter(request.restarts or panel.restarts for panel, _, _ in figure.experiments())
    measuring = figure.seconds / 60
    return {
        "title": figure.title,
        "section": figure.section,
        "claims": {number: CLAIMS[number].says for number in figure.claims},
        "series": [{"restarts": n, "series": count} for n, count in runs.items()],
        "measures": figure.measurement is not None,
        "measuring_minutes": measuring,
        "expected_minutes": request.outlook(figure.name).seconds / processes / 60 + measuring,
    }
