"""Update strategies: when and on which losses the optimizer is trained."""

from .._grad_metrics import grad_metrics as grad_metrics
from ._base import AbstractUpdateStrategy as AbstractUpdateStrategy
from ._base import MetaUpdate as MetaUpdate
from ._base import SuperEpoch as SuperEpoch
from ._loop import run_windows as run_windows
from ._random_windows import RandomWindows as RandomWindows
from ._windows import AbstractWindowStrategy as AbstractWindowStrategy
from ._windows import EveryStep as EveryStep
from ._windows import EveryWindow as EveryWindow
from ._windows import OncePerSuperEpoch as OncePerSuperEpoch
