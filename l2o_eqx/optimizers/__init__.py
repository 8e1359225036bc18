"""Optimizers: learned ones, and optax's as one of them."""

from typing import Any

from .._renamed import renamed as _renamed
from ._adam_mlp import AdamMLP as AdamMLP
from ._answers import Answers as Answers
from ._base import AbstractOptimizer as AbstractOptimizer
from ._black_box_rnn import BlackBoxRNN as BlackBoxRNN
from ._black_box_rnn import BlackBoxState as BlackBoxState
from ._blocks import Blocks as Blocks
from ._blocks import default_block_size as default_block_size
from ._blocks import own_coordinates as own_coordinates
from ._by_entry import by_entry as by_entry
from ._celo2 import Celo2 as Celo2
from ._clipped import Clipped as Clipped
from ._coordinatewise_lstm import CoordinatewiseLSTM as CoordinatewiseLSTM
from ._equation import Equation as Equation
from ._from_optax import FromOptax as FromOptax
from ._from_optax import as_optimizer as as_optimizer
from ._gradient_descent import GradientDescent as GradientDescent
from ._gradient_descent import moves_all as moves_all
from ._gradient_descent import moves_head as moves_head
from ._groups import Groups as Groups
from ._guard import Guard as Guard
from ._hierarchical_rnn import HierarchicalRNN as HierarchicalRNN
from ._layouts import AbstractLayout as AbstractLayout
from ._layouts import Cutting as Cutting
from ._layouts import Seen as Seen
from ._layouts import Whole as Whole
from ._layouts import ask as ask
from ._layouts import initial_state as initial_state
from ._layouts import take_step as take_step
from ._learned_momentum import LearnedMomentum as LearnedMomentum
from ._learned_start import MAML as MAML
from ._learned_start import LearnedStart as LearnedStart
from ._per_layer import PerLayer as PerLayer
from ._per_layer import by_kind as by_kind
from ._per_layer import by_layer as by_layer
from ._per_layer import by_leaf as by_leaf
from ._per_layer import by_rank as by_rank
from ._per_layer import by_shape as by_shape
from ._policy_optimizer import PolicyOptimizer as PolicyOptimizer
from ._safeguarded import Safeguarded as Safeguarded
from ._safeguarded import SafeguardedState as SafeguardedState
from ._search import Search as Search
from ._subspace_rnn import SubspaceRNN as SubspaceRNN
from ._unit_rms import UnitRMS as UnitRMS
from ._wrapper import AbstractWrapper as AbstractWrapper


def __getattr__(name: str) -> Any:
    return _renamed(__name__, name)
