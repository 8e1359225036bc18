"""What `l2o reproduce` does once its options are read."""

import multiprocessing
import threading
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
from rich.text import Text

from l2o_eqx import recipes
from l2o_eqx.data import DataError

from ._errors import UsageError, suggestion
from ._interrupt import interrupted, run_interruptibly
from ._output import Output

ALL = "all"
_STYLES = {"holds": "green", "does not hold": "red", "undecided": "yellow"}


def choose(names: Sequence[str]) -> dict[str, Any]:
    """The figures of that name, each once; all of them for `all` and for no names.

    **Raises:** `UsageError` for an unknown one.
    """
    for name in names:
        if name != ALL and name not in recipes.FIGURES:
            possible = suggestion(name, [ALL, *recipes.FIGURES])
            raise UsageError(f"NAMES: there is no figure {name!r}; {possible}")
    everything = ALL in names or not names
    return {name: make for name, make in recipes.FIGURES.items() if everything or name in names}


def run_figures(
    request: recipes.Request, output: Output, *, processes: int | None, so_far: bool, report: Path | None
) -> None:
    """Runs what is missing, writes everything into the folder, and shows the verdicts.

    **Arguments:**

    - `request`: which figures, and how.
    - `output`: what the user sees.
    - `processes`: to work in; `None` for one per core.
    - `so_far`: takes what is finished and runs nothing.
    - `report`: where to write the page on all figures of the folder, if anywhere.

    **Raises:** `UsageError` before anything is written; `typer.Exit(130)` after Ctrl-C.
    """
    folder = Path(request.folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"option '--out': {folder} is no folder")
    try:
        processes = recipes.num_processes(processes)
    except ValueError as error:
        raise UsageError(f"option '--processes': {error}") from None
    try:
        outlook = _outlook(request)
        finished = f"{outlook.kept} of {outlook.restarts} restarts are finished in {folder}"
        output.say(f"{finished}{'' if so_far else _expectation(outlook, processes)}.")
        found = _run(request, output, processes, so_far, waits=outlook.kept < outlook.restarts)
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
    output.result(
        {
            "folder": str(folder),
            "result": "completed",
            "figures": {name: _facts(reproduction) for name, reproduction in found.items()},
            "left_out": left_out,
            "report": page and str(page),
        }
    )


def report_only(request: recipes.Request, output: Output, report: Path) -> None:
    """Writes the page on the figures that are in the folder.

    **Arguments:**

    - `request`: says the folder.
    - `output`: what the user sees.
    - `report`: where to.

    **Raises:** `UsageError` if there are none.
    """
    page = _write_page(request, report, output)
    output.result({"folder": str(request.folder), "result": "completed", "report": str(page)})


def _outlook(request: recipes.Request) -> recipes.Outlook:
    try:
        return request.outlook(request.make_figures())
    except DataError as error:
        raise UsageError(f"option '--data': {error}") from None


def _expectation(outlook: recipes.Outlook, processes: int) -> str:
    # The time is that of a CPU.
    if outlook.kept == outlook.restarts or jax.default_backend() != "cpu":
        return ""
    minutes = outlook.seconds_left / processes / 60
    plural = "es" if processes > 1 else ""
    return f"; expect about {minutes:.0f} minutes in {processes} process{plural}" if minutes >= 1 else ""


def _run(
    request: recipes.Request, output: Output, processes: int | None, so_far: bool, *, waits: bool
) -> dict[str, recipes.Reproduction]:
    if so_far:
        return run_interruptibly(lambda: recipes.reproduce(request, partial=True))
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

        def show(done: float, total: float, text: str) -> None:
            update(done / total, text)

        def work() -> dict[str, recipes.Reproduction]:
            return recipes.reproduce(request, processes=processes, progress=show)

        try:
            return run_interruptibly(work, on_first=stop)
        except BrokenProcessPool:
            if stopped.is_set():
                raise KeyboardInterrupt from None
            raise UsageError(
                f"a process was killed, perhaps for want of memory; what is finished is kept in "
                f"{request.folder}, and with fewer '--processes' the same command goes on from there"
            ) from None


def _show(name: str, reproduction: recipes.Reproduction, output: Output) -> None:
    picture = reproduction.files.get("picture", reproduction.files["facts"])
    output.say(f"{name}: {reproduction.figure.title}: {picture}", style="bold")
    for verdict in reproduction.verdicts:
        status = (verdict.status, _STYLES[verdict.status])
        output.console.print(Text.assemble(f"  claim {verdict.claim}: ", status, f" — {verdict.statement}"))


def _facts(reproduction: recipes.Reproduction) -> dict[str, Any]:
    return {
        "files": {kind: str(path) for kind, path in reproduction.files.items()},
        "verdicts": [verdict.to_json() for verdict in reproduction.verdicts],
    }


def _write_page(request: recipes.Request, path: Path, output: Output) -> Path:
    try:
        page = recipes.write_report(request.folder, path)
    except ValueError:
        raise UsageError(f"option '--report': there are no figures in {request.folder}") from None
    output.say(f"The report is {page}.")
    return page
