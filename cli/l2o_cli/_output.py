"""What the user sees: lines, progress and tables, or one JSON object for scripts."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

# (number done, what to say about it)
Update = Callable[[float, str], None]


class Output:
    """Writes for people unless asked to be quiet; `result` writes for scripts if asked to.

    **Arguments:**

    - `quiet`: nothing but errors.
    - `as_json`: one JSON object on stdout; what people read goes to stderr.
    """

    def __init__(self, quiet: bool, as_json: bool):
        self.as_json = as_json
        self.console = Console(stderr=as_json, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str, style: str | None = None) -> None:
        """One line of text, wrapped by the terminal alone."""
        self.console.print(text, style=style, markup=False)

    def result(self, content: Mapping[str, Any]) -> None:
        """The JSON object, if asked for."""
        if self.as_json:
            typer.echo(dumps(content, indent=2))

    @contextmanager
    def progress(self, name: str, total: float, waiting: str, *, percent: bool = False) -> Iterator[Update]:
        """A bar on a terminal, and a line at every tenth elsewhere.

        **Arguments:**

        - `name`: of what is going on.
        - `total`: how many there are to do.
        - `waiting`: shown until the first one is done; may be empty.
        - `percent`: shows the share that is done and not the numbers.
        """
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn() if percent else MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
            )
            with Progress(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task(name, total=total, status=waiting)
                eta = _remaining(total)

                def update(done: float, status: str) -> None:
                    bar.update(task, completed=done, status=f"{status}{eta(done)}")

                yield update
        else:
            if waiting:
                self.say(f"{name}: {waiting}")
            yield self._plain_update(name, total, percent)

    def _plain_update(self, name: str, total: float, percent: bool) -> Update:
        eta = _remaining(total)
        tenth = -1

        def update(done: float, status: str) -> None:
            nonlocal tenth
            share = f"{done / total:.0%}" if percent else f"{done}/{total}"
            text = f"{name} {share}: {status}{eta(done)}"
            if (10 * done) // total > tenth:
                tenth = (10 * done) // total
                self.say(text)

        return update

    def summary(
        self, title: str, rows: Sequence[Mapping[str, Any]], highlighted: str, notes: Sequence[str]
    ) -> None:
        """The table of final losses.

        **Arguments:**

        - `title`: above it.
        - `rows`: of `Comparison.summary`.
        - `highlighted`: the name of the learned optimizer.
        - `notes`: lines below it.
        """
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("optimizer")
        for name in ("median final loss", "25 %", "75 %", "learning rate"):
            table.add_column(name, justify="right")
        for row in rows:
            rate = row["learning_rate"]
            cells = [_number(row[k]) for k in ("median", "q25", "q75")]
            table.add_row(
                row["name"],
                *cells,
                "" if rate is None else f"{rate:g}",
                style="bold green" if row["name"] == highlighted else None,
            )
        self.console.print(table)
        for note in [*_remarks(rows), *notes]:
            self.say(note)


def dumps(content: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null, arrays become lists."""
    return json.dumps(_plain(content), indent=indent, allow_nan=False)


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if hasattr(x, "tolist"):
        x = x.tolist()
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _remarks(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["diverged"]:
            yield f"{row['name']}: {row['diverged']:.0%} of the runs diverged."
    edge = [f"{row['name']} ({row['learning_rate']:g})" for row in rows if row["at_edge"]]
    if edge:
        yield (
            f"At the edge of the learning rates tried: {', '.join(edge)}; others may be better "
            "(--learning-rates)."
        )


def _number(x: float) -> str:
    return f"{x:.4g}" if math.isfinite(x) else "diverged"


def _remaining(total: float) -> Callable[[float], str]:
    # The first one includes the compilation and says nothing about the others.
    begin: tuple[float, float] | None = None

    def remaining(done: float) -> str:
        nonlocal begin
        now = time.monotonic()
        if begin is None and done > 0:
            begin = (done, now)
        if begin is None or done <= begin[0] or done >= total:
            return ""
        seconds = round((now - begin[1]) / (done - begin[0]) * (total - done))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f", {clock} left"

    return remaining
