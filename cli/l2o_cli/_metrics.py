"""The metrics of a training as events for TensorBoard."""

import functools
import math
from pathlib import Path
from typing import Any

import l2o_eqx as l2o
from l2o_eqx.callbacks import AbstractCallback, median_over_restarts

FILE = "metrics.jsonl"


class Events(AbstractCallback):
    """Writes each finite metric, with restarts its median, once per super epoch.

    **Arguments:**

    - `folder`: where to.
    """

    folder: Path

    @functools.cached_property
    def _writer(self) -> Any:
        # Imported when there is something to write: it takes longer than a super epoch of a small problem.
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.folder))

    def on_step(self, progress: l2o.Progress) -> None:
        for name, value in median_over_restarts(progress.metrics).items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, progress.super_epoch)
        self._writer.flush()

    def on_end(self, solution: l2o.MetaSolution | None) -> None:
        if "_writer" in vars(self):
            self._writer.close()
