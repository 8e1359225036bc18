"""How a trained optimizer does on what it was not trained on: rows, and a file of them."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class CardRow:
    """One variation of a `Card`. Losses are medians of final losses, infinite if half of the runs diverge.

    **Fields:**

    - `name`, `num_steps`, `num_coordinates`: what was run.
    - `failure`: why the optimizer could not be run, else `None`; without a run all that follows is `None`.
    - `learned`: its loss; with restarts, the median over them.
    - `restart_losses`: the loss of each restart, one without restarts.
    - `best`: the name of the best baseline tuned there, `None` if all are broken, as are what follows here.
    - `best_loss`, `settings`, `at_edge`: its loss, what tuning chose, and whether the learning rate is the
        first or the last of those tried.
    - `ratio`: `learned / best_loss`; below 1, the learned optimizer wins. `None` if one of them is negative.
    - `better`, `better_low`, `better_high`: the share of objectives on which it ends lower than the best
        baseline, equal losses counting half, with the 95 % interval.
    - `restarts_better`: the share of restarts with a loss below the best baseline's; equal ones count half.
    - `diverged`: the share of runs that end above where they began, or not at a number.
    """

    name: str
    num_steps: int
    num_coordinates: int
    failure: str | None = None
    learned: float | None = None
    restart_losses: tuple[float, ...] | None = None
    best: str | None = None
    best_loss: float | None = None
    settings: dict[str, Any] | None = None
    at_edge: bool | None = None
    ratio: float | None = None
    better: float | None = None
    better_low: float | None = None
    better_high: float | None = None
    restarts_better: float | None = None
    diverged: float | None = None

    @property
    def won(self) -> bool:
        """Whether its median is not above that of the best baseline."""
        return self.learned is not None and self.best_loss is not None and self.learned <= self.best_loss


def ratio_of(loss: float, bar: float) -> float | None:
    """`loss / bar`, which says nothing of negative numbers."""
    if loss == bar:
        return 1.0
    if min(loss, bar) < 0:
        return None
    return loss / bar if bar else math.inf


@dataclasses.dataclass(frozen=True)
class Card:
    """The result of `generalization_card`.

    **Fields:**

    - `rows`: one per variation that is done.
    - `names`: those of all variations; more than there are rows if the card is incomplete.
    """

    rows: tuple[CardRow, ...]
    names: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(self.names)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `complete`, `names`, and `rows` with the fields of `CardRow`; infinite is `None`."""
        rows = [{k: _finite(v) for k, v in dataclasses.asdict(row).items()} for row in self.rows]
        return {"complete": self.complete, "names": list(self.names), "rows": rows}

    def write(self, path: str | Path) -> None:
        """Writes `as_dict()` as JSON."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "Card":
        """What `write` wrote, or a file that has more beside it.

        **Raises:** `ValueError` if the file is another one.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(tuple(_row(row) for row in content["rows"]), tuple(content["names"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is no card: {type(error).__name__}: {error}") from None


def _finite(x: Any) -> Any:
    if isinstance(x, tuple):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _row(content: Mapping[str, Any]) -> CardRow:
    # Of a run, the losses are numbers: null is infinite.
    def loss(x: float | None) -> float:
        return math.inf if x is None else x

    found = dict(content)
    if found["failure"] is None:
        found["learned"] = loss(found["learned"])
        found["restart_losses"] = tuple(map(loss, found["restart_losses"]))
        if found["best"] is not None and found["ratio"] is None:
            found["ratio"] = ratio_of(found["learned"], found["best_loss"])
    return CardRow(**found)
