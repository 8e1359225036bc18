"""The metrics of a training as JSON lines, and back."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from ..files import dumps, write_text
from ._base import AbstractCallback


class MetricsWriter(AbstractCallback):
    """Writes the metrics of `meta_train` as JSON lines, one per super epoch.

    Each has `super_epoch`, the `seconds` since the training began, and the metrics; null stands for what is
    not finite. With restarts, a metric's value is their median, and `restarts` has all of their values. A
    killed training leaves whole lines only. One that goes on from a state goes on in the file, too: lines
    up to there stay, those after it are dropped.

    **Arguments:**

    - `path`: the file; its folder must exist. `read_metrics` reads it.
    """

    path: Path = eqx.field(converter=Path)
    _open: dict[str, Any] = eqx.field(init=False, default_factory=dict)

    def on_start(self, progress: Any) -> None:
        kept = _lines_up_to(self.path, progress.super_epoch)
        write_text(self.path, "".join(kept))
        before = json.loads(kept[-1])["seconds"] if kept else 0.0
        self._open["start"] = time.monotonic() - before
        self._open["file"] = open(self.path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def on_step(self, progress: Any) -> None:
        lists = {name: x for name, x in progress.metrics.items() if np.ndim(x)}
        row = {
            "super_epoch": progress.super_epoch,
            "seconds": round(time.monotonic() - self._open["start"], 3),
            **(median_over_restarts(progress.metrics) if lists else progress.metrics),
        }
        self._open["file"].write(dumps({**row, "restarts": lists} if lists else row) + "\n")

    def on_end(self, solution: Any) -> None:
        del solution
        self._open.pop("file").close()


def _lines_up_to(path: Path, super_epoch: int) -> list[str]:
    if not super_epoch or not path.exists():
        return []
    kept = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                whole = line.endswith("\n") and _row_of(line)["super_epoch"] <= super_epoch
            except ValueError:
                whole = False
            if not whole:
                break  # What follows a line that is damaged, or later, is no part of this training.
            kept.append(line)
    return kept


def _row_of(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    numbers = {name: x for name, x in row.items() if name != "restarts"} if isinstance(row, dict) else {}
    alike = all(x is None or isinstance(x, int | float) for x in numbers.values())
    if not alike or numbers.get("super_epoch") is None:
        raise ValueError("it is no row of metrics")
    return row


def median_over_restarts(metrics: Mapping[str, Any]) -> dict[str, float]:
    """One number per metric.

    **Arguments:**

    - `metrics`: of `Progress`.
    """
    return {name: float(np.median(x)) for name, x in metrics.items()}


def read_metrics(path: str | Path) -> dict[str, np.ndarray]:
    """Reads what `MetricsWriter` wrote, e.g. a run's `metrics.jsonl`; without a last line that was cut off.

    **Arguments:**

    - `path`: the file.

    **Returns:** the metrics by name, one row per super epoch, NaN for what was not finite; with restarts, one
    column for each.

    **Raises:** `ValueError` if it is another file, or damaged.
    """
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows += [_row_of(line)] if line.endswith("\n") else []
            except ValueError as error:
                raise ValueError(f"{path} is damaged in line {number}: {error}.") from None
    names = [name for name in rows[0] if name != "restarts"] if rows else []
    try:
        values = {name: [row.get("restarts", {}).get(name, row[name]) for row in rows] for name in names}
        return {name: np.array(column, float) for name, column in values.items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its rows are not alike: {error!r}.") from None
