"""What a network sees of a gradient."""

from ._adam_like import AdamLike as AdamLike
from ._base import AbstractPreprocessor as AbstractPreprocessor
from ._identity import Identity as Identity
from ._log_sign import LogSign as LogSign
from ._log_sign import TwoFeature as TwoFeature
