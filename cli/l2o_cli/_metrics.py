"""The metrics of a training as it goes on: JSON lines, and events for TensorBoard."""

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import l2o_eqx as l2o
from l2o_eqx.files import dumps

FILE = "metrics.jsonl"


class MetricsLog:
    """A callback of `meta_train` that writes one row per super epoch.

    With restarts, a metric's value is their median, and `restarts` has all of their values.
    """

    def __init__(self, lines: Any, events_folder: Path):
        self._lines, self._folder = lines, events_folder
        self._start = time.monotonic()

    @functools.cached_property
    def _events(self) -> Any:
        # Imported when there is something to write: it takes longer than a super epoch of a small problem.
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._folder))

    def close(self) -> None:
        """Closes the events, if there are any."""
        if "_events" in vars(self):
            self._events.close()

    def __call__(self, progress: l2o.Progress) -> None:
        medians = median_over_restarts(progress.metrics)
        lists = {name: x for name, x in progress.metrics.items() if np.ndim(x)}
        row = {
            "super_epoch": progress.super_epoch,
            "seconds": round(time.monotonic() - self._start, 3),
            **(medians if lists else progress.metrics),
        }
        self._lines.write(dumps({**row, "restarts": lists} if lists else row) + "\n")
        for name, value in medians.items():
            if math.isfinite(value):
                self._events.add_scalar(name, value, progress.super_epoch)
        self._events.flush()


@contextlib.contextmanager
def open_log(folder: Path) -> Iterator[MetricsLog]:
    """The log of the run in `folder`; a killed run leaves whole lines only."""
    with open(folder / FILE, "w", buffering=1, encoding="utf-8") as lines:
        log = MetricsLog(lines, folder / "tensorboard")
        try:
            yield log
        finally:
            log.close()


def median_over_restarts(metrics: Mapping[str, Any]) -> dict[str, float]:
    """One number per metric."""
    return {name: float(np.median(x)) for name, x in metrics.items()}
