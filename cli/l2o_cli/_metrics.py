"""The metrics of a training as events for TensorBoard."""

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx

import l2o_eqx as l2o
from l2o_eqx.callbacks import AbstractCallback, median_over_restarts

from ._output import Output

FILE = "metrics.jsonl"


class Events(AbstractCallback):
    """Writes each finite metric, with restarts its median, once per super epoch.

    **Arguments:**

    - `folder`: where to. What is in it of a training that goes on is written again, out of the metrics beside
        it, for there to be neither gaps nor doubles.
    - `output`: is told if it cannot be written, which does not end the training.
    """

    folder: Path
    output: Output
    _broken: list[OSError] = eqx.field(init=False, default_factory=list)

    @functools.cached_property
    def _writer(self) -> Any:
        # Imported when there is something to write: it takes longer than a super epoch of a small problem.
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.folder))

    def on_start(self, progress: l2o.Progress) -> None:
        with self._telling():
            for path in self.folder.glob("events.*"):
                path.unlink()
            if progress.super_epoch:
                self._write_again(self.folder.with_name(FILE))

    def _write_again(self, path: Path) -> None:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        for row in rows:
            own = {name: x for name, x in row.items() if name not in ("super_epoch", "seconds", "restarts")}
            self._write({name: x for name, x in own.items() if x is not None}, row["super_epoch"])

    def _write(self, metrics: dict[str, float], super_epoch: int) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, super_epoch)

    def on_step(self, progress: l2o.Progress) -> None:
        with self._telling():
            if not self._broken:
                self._write(median_over_restarts(progress.metrics), progress.super_epoch)
                self._writer.flush()

    def on_end(self, solution: l2o.MetaSolution | None) -> None:
        with self._telling():
            if "_writer" in vars(self):
                self._writer.close()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._broken:
                self.output.say(
                    f"{self.folder}: no more events for TensorBoard: {error.strerror or error}.", "yellow"
                )
            self._broken.append(error)
