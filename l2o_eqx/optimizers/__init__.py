"""Optimizers: learned ones, and optax's as one of them."""

from ._adam_mlp import AdamMLP as AdamMLP
from ._base import AbstractOptimizer as AbstractOptimizer
from ._blocks import Blocks as Blocks
from ._blocks import default_block_size as default_block_size
from ._blocks import own_coordinates as own_coordinates
from ._clipped import Clipped as Clipped
from ._coordinatewise_lstm import CoordinatewiseLSTM as CoordinatewiseLSTM
from ._from_optax import FromOptax as FromOptax
from ._from_optax import as_optimizer as as_optimizer
from ._groups import Groups as Groups
from ._hierarchical import Hierarchical as Hierarchical
from ._hierarchical_rnn import HierarchicalRNN as HierarchicalRNN
from ._layouts import AbstractLayout as AbstractLayout
from ._layouts import Cutting as Cutting
from ._layouts import Seen as Seen
from ._layouts import Whole as Whole
from ._layouts import take_step as take_step
from ._learned_momentum import LearnedMomentum as LearnedMomentum
from ._per_layer import PerLayer as PerLayer
from ._per_layer import by_kind as by_kind
from ._per_layer import by_layer as by_layer
from ._per_layer import by_leaf as by_leaf
from ._per_layer import by_rank as by_rank
from ._per_layer import by_shape as by_shape
from ._subspace_rnn import SubspaceRNN as SubspaceRNN
from ._unit_rms import UnitRMS as UnitRMS
