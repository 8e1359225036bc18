"""Callbacks: what is done on the host between two steps of a training, a comparison or an evaluation."""

from ._base import AbstractCallback as AbstractCallback
from ._base import StopTraining as StopTraining
from ._best_snapshot import BestSnapshot as BestSnapshot
from ._checkpoint import Checkpoint as Checkpoint
from ._checkpoint import load_checkpoint as load_checkpoint
from ._checkpoint import newest_checkpoint as newest_checkpoint
from ._metrics import MetricsWriter as MetricsWriter
from ._metrics import median_over_restarts as median_over_restarts
from ._metrics import read_metrics as read_metrics
