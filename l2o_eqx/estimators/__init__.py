"""Estimators: how the meta-gradient of a window is got."""

from .._engine._inner import FIRST_ORDER as FIRST_ORDER
from .._engine._inner import Record as Record
from ._backprop import Auto as Auto
from ._backprop import Backprop as Backprop
from ._base import AbstractEstimator as AbstractEstimator
from ._clipped import ClippedPerObjective as ClippedPerObjective
from ._es import ES as ES
from ._forward import Forward as Forward
from ._persistent import NRES as NRES
from ._persistent import PES as PES
from ._replayed import Recorded as Recorded
from ._replayed import Replay as Replay
from ._reptile import Reptile as Reptile
from ._rtrl import RTRL as RTRL
from ._window import Health as Health
from ._window import Taken as Taken
from ._window import Window as Window
from ._window import WindowResult as WindowResult
from ._window import first_window as first_window
