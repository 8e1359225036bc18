"""What the thesis claims and shows, from the files beside this module."""

import csv
import dataclasses
import itertools
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BIN_EDGES: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, math.inf)
"""Edges of the thesis's six bins of final losses; a loss on an edge belongs to the bin above it."""

CHANCE_LOSS: float = math.log(10)
"""The cross-entropy of guessing one of ten digits, near 2.3."""

_FRACTIONS = {"start": 0.0, "eighth": 0.125, "quarter": 0.25, "half": 0.5, "three_quarters": 0.75, "end": 1.0}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim: the section it is made in, what it says, and what the thesis's own figures show."""

    section: str
    says: str
    shows: str = "no figure"


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve of a figure, to ±0.002: its length, the loss at some steps, the mean of the last 20.

    On the quadratic these are single steps. On MNIST, those between the start and the end are means over the
    10 steps on either side, because the loss of a minibatch is noisy.
    """

    steps: int
    points: dict[int, float]
    mean_of_last_20: float

    @property
    def final(self) -> float:
        """The loss at the last step."""
        return self.points[self.steps - 1]


def read_text(name: str) -> str:
    """A file beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def read_toml(name: str) -> dict[str, Any]:
    """A file beside this module."""
    return tomllib.loads(read_text(name))


def _panels(name: str) -> Iterator[tuple[str, Iterator[dict[str, str]]]]:
    return itertools.groupby(csv.DictReader(read_text(name).splitlines()), lambda row: row["panel"])


def _curve(row: dict[str, str]) -> Curve:
    steps = int(row["steps"])
    points = {min(round(f * steps), steps - 1): float(row[name]) for name, f in _FRACTIONS.items()}
    points |= {step: float(row[f"at_{step}"]) for step in (277, 320) if row[f"at_{step}"]}
    return Curve(steps, dict(sorted(points.items())), float(row["mean_of_last_20"]))


CLAIMS = {int(number): Claim(**one) for number, one in read_toml("claims.toml").items()}
"""The claims by number, in the order of the text."""

CURVES = {p: {row["series"]: _curve(row) for row in rows} for p, rows in _panels("curves.csv")}
"""The curves of figures 7 to 19 by panel and legend, recovered from the vector graphics of the figures."""

HISTOGRAMS = {
    panel: {row["series"]: tuple(map(int, list(row.values())[2:])) for row in rows}
    for panel, rows in _panels("histograms.csv")
}
"""How many of 100 runs ended in each bin, by panel and series. The first series of figures 15 and 17 are the
runs of figure 13 again."""
