"""Trained optimizers without JAX: files of `l2o_eqx.save`, stepped on NumPy arrays.

    optimizer = numpy_runtime.load("optimizer.safetensors")
    state = optimizer.init(params)                    # a dict of arrays by name
    updates, state = optimizer.update(grads, state, params)
    params = {name: x + updates[name] for name, x in params.items()}

This folder imports NumPy 2 and safetensors alone, and nothing of the package that it is in: copy it to where
JAX is not. That is why it reads files by itself. It knows the optimizers below, `CoordinatewiseLSTM` where it
sees gradients, their signed logarithms, or logarithms and signs; their equations are in the docstrings of the
classes of the same names in `l2o_eqx.optimizers`. All is computed in float64, and rounded to the dtype of the
gradients at the end.

The equations call only what NumPy and PyTorch both have: `l2o_eqx.torch_runtime` runs them on tensors.
"""

import numpy as np

if np.lib.NumpyVersion(np.__version__) < "2.0.0":
    raise ImportError(f"this package needs NumPy 2.0 or later, and here is {np.__version__}")

from ._adam_mlp import AdamMLP as AdamMLP
from ._black_box_rnn import BlackBoxRNN as BlackBoxRNN
from ._coordinatewise_lstm import CoordinatewiseLSTM as CoordinatewiseLSTM
from ._equation import Equation as Equation
from ._file import load as load
from ._hierarchical_rnn import HierarchicalRNN as HierarchicalRNN
from ._learned_momentum import LearnedMomentum as LearnedMomentum
from ._learned_start import GradientDescent as GradientDescent
from ._learned_start import LearnedStart as LearnedStart
from ._per_layer import PerLayer as PerLayer
