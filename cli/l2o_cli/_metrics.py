"""The metrics of a training as events for TensorBoard."""

import contextlib
import functools
import json
import math
import struct
import time
from collections.abc import Iterator, Mapping
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
    - `output`: is told if it cannot be written. That does not end the training; what there is of it is
        removed, for the disk may have no room for what cannot be made again.
    """

    folder: Path
    output: Output
    _broken: list[OSError] = eqx.field(init=False, default_factory=list)

    @functools.cached_property
    def _file(self) -> "_EventFile":
        self.folder.mkdir(exist_ok=True)
        return _EventFile(self.folder / f"events.out.tfevents.{time.time_ns()}.l2o")

    def on_start(self, progress: l2o.Progress) -> None:
        with self._telling():
            self._remove()
            if progress.super_epoch:
                self._write_again(self.folder.with_name(FILE))

    def _write_again(self, path: Path) -> None:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        for row in rows:
            own = {name: x for name, x in row.items() if name not in ("super_epoch", "seconds", "restarts")}
            self._file.write({name: x for name, x in own.items() if x is not None}, row["super_epoch"])

    def on_step(self, progress: l2o.Progress) -> None:
        with self._telling():
            if not self._broken:
                self._file.write(median_over_restarts(progress.metrics), progress.super_epoch)

    def on_end(self, solution: l2o.MetaSolution | None) -> None:
        if "_file" in vars(self):
            self._file.close()

    def _remove(self) -> None:
        for path in self.folder.glob("events.*"):
            path.unlink()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._broken.append(error)
            reason = error.strerror or error
            self.output.say(f"{self.folder}: no events for TensorBoard any more: {reason}.", "yellow")
            with contextlib.suppress(OSError):
                self._remove()


class _EventFile:
    """A file of events, each written at once.

    What `tensorboardX` holds back in a thread of its own, it cannot be stopped from writing.
    """

    def __init__(self, path: Path):
        # Imported when there is something to write: it takes longer than a super epoch of a small problem.
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._event: Any = vars(event_pb2)["Event"]
        self._summary: Any = vars(summary_pb2)["Summary"]
        self._checksum = masked_crc32c
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        self._append(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, metrics: Mapping[str, float], super_epoch: int) -> None:
        """The finite metrics of a super epoch."""
        finite = [(name, value) for name, value in metrics.items() if math.isfinite(value)]
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in finite]
        summary = self._summary(value=values)
        self._append(self._event(wall_time=time.time(), step=super_epoch, summary=summary))

    def _append(self, event: Any) -> None:
        # A record is its length, a checksum of that, the event, and a checksum of it.
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", self._checksum(x)) for x in (length, data))
        self._file.write(length + next(sums) + data + next(sums))

    def close(self) -> None:
        """Once, at the end."""
        self._file.close()
