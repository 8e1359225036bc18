"""How the losses of a window become one number, the meta-loss."""

from ._base import AbstractWeighting as AbstractWeighting
from ._log_mean import LogMean as LogMean
from ._observed_improvement import ObservedImprovement as ObservedImprovement
from ._per_step import PerStep as PerStep
from ._simple import Constant as Constant
from ._simple import Exponential as Exponential
from ._simple import FinalOnly as FinalOnly
from ._simple import Linear as Linear
