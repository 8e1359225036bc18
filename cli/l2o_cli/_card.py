"""The card of generalization of `l2o evaluate --card`: run it, keep it, show it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PRNGKeyArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

import l2o_eqx as l2o
from l2o_eqx import plots
from l2o_eqx.files import dumps, write_text

from ._build import Parts, asked_for
from ._interrupt import run_interruptibly
from ._output import Output, show_number
from ._pictures import draw

CARD_FILE = "card.json"


def run_card(
    optimizer: Any, parts: Parts, output: Output, *, restarts: int | None, key: PRNGKeyArray
) -> l2o.Card:
    """`l2o_eqx.generalization_card` with the settings of a run, and a bar that shows how far it is.

    **Arguments:**

    - `optimizer`: a batch of `restarts`, if there are several.
    - `parts`: with the family and the settings `evaluation`.
    - `output`: shows the progress.
    - `key`: picks the draws.

    **Returns:** the card; after Ctrl-C one with the rows that are done.
    """
    latest, given_up = l2o.Card((), ()), False
    with output.progress("card", 1.0, "", percent=True) as update:

        def show(progress: l2o.CardProgress) -> None:
            nonlocal latest
            if not given_up:
                latest = card = progress.card
                at_work = f"{progress.name} ({len(card.rows)} of {len(card.names)})"
                update(progress.share, "done" if card.complete else at_work)

        def work() -> l2o.Card:
            return l2o.generalization_card(
                optimizer,
                parts.family,
                **parts.comparing,
                # If none is named, for every variation those that fit it.
                baselines=asked_for(parts, l2o.BASELINES) or None
                if parts.config.evaluation.against
                else None,
                restarts=restarts,
                key=key,
                callbacks=[show],
            )

        try:
            return run_interruptibly(work)
        except KeyboardInterrupt:
            # The thread may still be at work; it has nothing more to say.
            given_up = True
            return latest


def write_card(folder: Path, card: l2o.Card, output: Output, facts: Mapping[str, Any]) -> None:
    """Writes `card.json` and `card.png`.

    **Arguments:**

    - `folder`: where to.
    - `card`: what; with at least one row.
    - `output`: is told if the picture cannot be drawn.
    - `facts`: to keep in `card.json` beside the numbers.
    """
    title = card_title(facts, card)
    content = {"format": 1, "title": title, **facts, **card.as_dict()}
    write_text(folder / CARD_FILE, dumps(content, indent=2) + "\n")
    rows = card.as_dict()["rows"]
    draw(folder / "card.png", lambda path: plots.plot_card(rows, path, title=title), output)


def keep_card(folder: Path | None, card: l2o.Card, output: Output, facts: Mapping[str, Any]) -> None:
    """Writes the card if there is a folder, and shows it.

    **Arguments:**

    - `folder`: where to, if anywhere.
    - `card`, `output`, `facts`: as in `show_card`.
    """
    if not card.rows:
        output.say("Interrupted before anything of the card was done.")
        return
    show_card(card, output, facts)
    if folder:
        write_card(folder, card, output, facts)
        output.say(f"The card is in {folder}, too: {CARD_FILE} and card.png.")


def card_title(facts: Mapping[str, Any], card: l2o.Card) -> str:
    """One line on what the optimizer comes from."""
    incomplete = "" if card.complete else f" (incomplete: {len(card.rows)} of {len(card.names)})"
    return f"{facts['optimizer']} beyond {facts['objective']}, {facts['num_steps']} steps{incomplete}"


def show_card(card: l2o.Card, output: Output, facts: Mapping[str, Any]) -> None:
    """The table, and what there is to say about it; within 80 columns.

    **Arguments:**

    - `card`: what.
    - `output`: where to.
    - `facts`: as in `write_card`.
    """
    title = card_title(facts, card)
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0))
    table.add_column("variation", no_wrap=True)
    several = any(len(row.restart_losses or ()) > 1 for row in card.rows)
    for name in ("learned", "best", "tuned there", "ratio", "wins", *(["restarts"] if several else [])):
        side = "left" if name == "tuned there" else "right"
        table.add_column(name, justify=side, no_wrap=True)
    for row in card.rows:
        table.add_row(row.name, *_cells(row, several), style="bold green" if row.won else None)
    output.show(table)
    for note in _notes(card, several):
        output.say(note)


def _cells(row: l2o.CardRow, several: bool) -> list[str]:
    if row.learned is None:
        return ["cannot"]
    if row.best is None:
        return [show_number(row.learned), "broken"]
    shares = [row.better, *([row.restarts_better] if several else [])]
    return [
        show_number(row.learned),
        show_number(_known(row.best_loss)),
        row.best,
        "" if row.ratio is None else show_number(row.ratio),
        *(f"{_known(share):.0%}" for share in shares),
    ]


def _known(x: float | None) -> float:
    return math.nan if x is None else x


def _notes(card: l2o.Card, several: bool) -> Iterator[str]:
    yield "Median losses at the end. Ratio: learned to the best baseline tuned there, below 1 it wins;"
    yield "none of negative losses. Wins: share of the objectives, equal losses counting half."
    if several:
        yield "Restarts: share below that baseline."
    for row in card.rows:
        if row.failure is not None:
            yield f"{row.name}: cannot be run: {row.failure}"
        elif row.diverged:
            yield f"{row.name}: {row.diverged:.0%} of the runs end above where they began, or diverge."
    edge = [row.name for row in card.rows if row.at_edge]
    if edge:
        yield f"The best learning rate is at the edge of those tried: {', '.join(edge)}."
    if not card.complete:
        missing = card.names[len(card.rows) :]
        yield f"Incomplete, interrupted: without {', '.join(missing)}."
