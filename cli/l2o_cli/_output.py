"""What the user sees: lines, progress and tables, or one JSON object for scripts."""

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from ._errors import Failure, drop_output

# (number done, what to say about it)
Update = Callable[[float, str], None]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would end the process here.
        raise BrokenPipeError


class Output:
    """Writes for people unless asked to be quiet; `result` writes for scripts if asked to.

    **Arguments:**

    - `quiet`: nothing but errors.
    - `as_json`: one JSON object on stdout; what people read goes to stderr.
    """

    def __init__(self, quiet: bool, as_json: bool):
        self.as_json = as_json
        self.console = _Console(stderr=as_json, quiet=quiet, highlight=False, soft_wrap=True)
        # What cannot be shown, because nobody reads on or the disk is full, is no reason to lose work.
        self.failed: OSError | None = None

    def say(self, text: str, style: str | None = None) -> None:
        """One line of text, wrapped by the terminal alone."""
        self._print(text, style=style, markup=False)

    def show(self, table: Table) -> None:
        """A table."""
        self._print(table)

    def _print(self, *content: Any, **settings: Any) -> None:
        if self.failed is not None:
            return
        try:
            self.console.print(*content, **settings)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failed, self.console.quiet = error, True
        drop_output(self.console.file)
        if not isinstance(error, BrokenPipeError) and not self.as_json:
            print(f"l2o: output cannot be written: {error.strerror}; the work goes on", file=sys.stderr)

    def result(self, content: Mapping[str, Any]) -> None:
        """The JSON object, if asked for."""
        if self.as_json:
            from l2o_eqx.files import dumps

            try:
                typer.echo(dumps(content, indent=2))
                sys.stdout.flush()
            except BrokenPipeError:
                drop_output(sys.stdout)
            except OSError as error:
                drop_output(sys.stdout)
                raise Failure(f"the result cannot be written: {error.strerror}") from None

    @contextmanager
    def progress(self, name: str, total: float, waiting: str, *, percent: bool = False) -> Iterator[Update]:
        """A bar on a terminal, and a line at every tenth elsewhere.

        **Arguments:**

        - `name`: of what is going on.
        - `total`: how many there are to do.
        - `waiting`: shown until the first one is done; may be empty.
        - `percent`: shows the share that is done and not the numbers.
        """
        if self.console.is_terminal and self.failed is None:
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
            share = f"{done / total:.0%}" if percent else f"{int(done)}/{total}"
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
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0))
        table.add_column("optimizer")
        for name in ("median", "mean", "25 %", "75 %"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("setting", no_wrap=True)
        table.add_column("beaten", justify="right", no_wrap=True)
        for row in rows:
            several = "*" if row["evaluations_per_step"] > 1 else ""
            table.add_row(
                row["name"] + several,
                *(show_number(row[k]) for k in ("median", "mean", "q25", "q75")),
                _setting(row["settings"]),
                "broken" if row["broken"] else "" if row["beaten"] is None else f"{row['beaten']:.0%}",
                style="bold green" if row["name"] == highlighted else None,
            )
        self.show(table)
        for note in [*_remarks(rows, highlighted), *notes]:
            self.say(note)

    def families(
        self,
        title: str,
        rows: Sequence[tuple[str, float, float, float, str, float, bool]],
        notes: Sequence[str],
        by: str = "learned",
    ) -> None:
        """The table of several families.

        **Arguments:**

        - `title`: above it.
        - `rows`: the family's name, the medians of the learned optimizer, of the untrained one and of the
            best baseline, its name, the share of objectives won against it, and whether it is beaten. Where
            there is none, its median is NaN and its name says why.
        - `notes`: lines below it.
        - `by`: the learned optimizer's name.
        """
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0))
        table.add_column("family", no_wrap=True)
        known = not all(math.isnan(row[2]) for row in rows)
        for name in (by, *(["untrained"] if known else []), "best", "tuned there", "wins"):
            side = "left" if name == "tuned there" else "right"
            table.add_column(name, justify=side, no_wrap=True)
        for name, learned, untrained, best, of, wins, ahead in rows:
            table.add_row(
                name,
                show_number(learned),
                *(["" if math.isnan(untrained) else show_number(untrained)] if known else []),
                of if math.isnan(best) else show_number(best),
                "" if math.isnan(best) else of,
                "" if math.isnan(wins) else f"{wins:.0%}",
                style="bold green" if ahead else None,
            )
        self.show(table)
        for note in notes:
            self.say(note)


def _remarks(rows: Sequence[Mapping[str, Any]], highlighted: str) -> Iterator[str]:
    yield "Losses at the end. Setting: learning rate, momentum or betas, schedule (cos: cosine to zero;"
    yield f"warm: warm-up, then that). Beaten: objectives on which {highlighted} ends lower; equal: half."
    for row in rows:
        if row["evaluations_per_step"] > 1:
            yield (
                f"* {row['name']} evaluates f {row['evaluations_per_step']:.3g} times a step; after as many "
                f"evaluations as others have steps its median is {show_number(row['median_per_evaluation'])}."
            )
    for row in rows:
        if row["diverged"]:
            yield f"{row['name']}: {row['diverged']:.0%} of the runs diverged."
    edge = [f"{row['name']} ({row['learning_rate']:g})" for row in rows if row["at_edge"]]
    if edge:
        yield (
            f"At the edge of the learning rates tried: {', '.join(edge)}; others may be better "
            "(--learning-rates)."
        )


_SCHEDULES = {"constant": "", "cosine": "cos", "warm-up cosine": "warm"}


def _setting(settings: Mapping[str, Any] | None) -> str:
    if settings is None:
        return ""
    numbers = [f"{x:g}" for name, x in settings.items() if name not in ("learning_rate", "schedule")]
    schedule = _SCHEDULES.get(str(settings["schedule"]), str(settings["schedule"]))
    return " ".join([f"{settings['learning_rate']:g}", "/".join(numbers), schedule]).rstrip()


def show_number(x: float) -> str:
    """Three digits, in few characters."""
    if not math.isfinite(x):
        return "inf"
    # 2.6e-4, not 2.6e-04.
    return re.sub(r"e([+-])0", r"e\1", f"{x:.3g}")


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
