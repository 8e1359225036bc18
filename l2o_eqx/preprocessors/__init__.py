"""What a network sees of a gradient."""

from typing import Any

from .._renamed import renamed as _renamed
from ._adam_like import AdamLike as AdamLike
from ._base import AbstractPreprocessor as AbstractPreprocessor
from ._identity import Identity as Identity
from ._logarithms import LogAndSign as LogAndSign
from ._logarithms import SignedLog as SignedLog


def __getattr__(name: str) -> Any:
    return _renamed(__name__, name)
