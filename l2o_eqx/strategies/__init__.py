"""Update strategies: when and on which losses the optimizer is trained."""

from ._base import AbstractUpdateStrategy as AbstractUpdateStrategy
from ._base import SuperEpoch as SuperEpoch
from ._every_step import EveryStep as EveryStep
from ._windows import EveryWindow as EveryWindow
from ._windows import OncePerSuperEpoch as OncePerSuperEpoch
