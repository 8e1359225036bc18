"""What makes the update of a network's answers and the gradient."""

from ._adam import AdamOutput as AdamOutput
from ._base import AbstractOutput as AbstractOutput
from ._curvature import CurvatureOutput as CurvatureOutput
from ._momentum import MomentumOutput as MomentumOutput
