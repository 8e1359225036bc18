"""What `l2o reproduce --list` shows."""

import collections
import os
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from l2o_eqx import recipes

from ._output import Output


def list_figures(request: recipes.Request, processes: int | None, output: Output) -> None:
    """A table of what there is and how long it takes, and the claims that it is about.

    **Arguments:**

    - `request`: which figures, at which scale; no digits but the embedded ones are loaded.
    - `processes`: that the time is for; `None` for one per core.
    - `output`: what the user sees.
    """
    processes = processes or os.cpu_count() or 1
    figures = request.make_figures()
    facts = {name: _facts(request, name, figure, processes) for name, figure in figures.items()}
    measuring = sum(one["measuring_minutes"] for one in facts.values())
    total = request.outlook(figures).seconds / processes / 60 + measuring
    table = Table(title=f"Figures of the thesis, {request.scale} scale", box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("title")
    table.add_column("series x restarts", justify="right")
    table.add_column("minutes", justify="right", no_wrap=True)
    for name, one in facts.items():
        runs = ", ".join(f"{some['series']} x {some['restarts']}" for some in one["series"])
        table.add_row(name, one["title"], runs or "-", f"{one['expected_minutes']:.1f}")
    output.console.print(table, soft_wrap=False)
    _show_claims(facts, output)
    output.say(
        f"All of these together: {total:.0f} minutes. That is less than the sum of the rows: figures share "
        "experiments, which are run once, and each row has the time of the figure alone. Times are for "
        f"{processes} process{'es' * (processes > 1)} on cores like those that were measured, with "
        f"compiling; {measuring:.1f} minutes are measurements beside the experiments, in one process."
    )
    output.result(
        {
            "figures": facts,
            "expected_minutes": total,
            "measuring_minutes": measuring,
            "processes": processes,
        }
    )


def _facts(request: recipes.Request, name: str, figure: recipes.Figure, processes: int) -> dict[str, Any]:
    runs = collections.Counter(request.restarts or n for _, n in figure.experiments().values())
    measuring = figure.extra_seconds / 60
    return {
        "title": figure.title,
        "section": figure.section,
        "claims": {number: recipes.CLAIMS[number].statement for number in figure.claims},
        "series": [{"restarts": n, "series": count} for n, count in runs.items()],
        "measures": figure.extra is not None,
        "measuring_minutes": measuring,
        "expected_minutes": request.outlook({name: figure}).seconds / processes / 60 + measuring,
    }


def _show_claims(facts: Mapping[str, Mapping[str, Any]], output: Output) -> None:
    # Several figures may be about a claim.
    claims: dict[int, str] = {}
    where: dict[int, list[str]] = {}
    for name, one in facts.items():
        for number, text in one["claims"].items():
            claims[number] = text
            where.setdefault(number, []).append(name)
    if claims:
        output.say("Claims, and the figures that decide them:", style="bold")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right")
    grid.add_column()
    for number, text in sorted(claims.items()):
        grid.add_row(f"{number}:", f"{text} ({', '.join(where[number])})")
    output.console.print(grid, soft_wrap=False)
