"""What a network's answers, one per coordinate or a few, make of a gradient: the update."""

from ._adam import AdamOutput as AdamOutput
from ._base import AbstractOutput as AbstractOutput
from ._momentum import MomentumOutput as MomentumOutput
