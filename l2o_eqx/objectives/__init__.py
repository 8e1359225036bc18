"""What is minimized: objectives, and the families they are drawn from."""

from ._base import AbstractObjective as AbstractObjective
from ._base import AbstractObjectiveFamily as AbstractObjectiveFamily
from ._batch import ObjectiveBatch as ObjectiveBatch
from ._batch import count_coordinates as count_coordinates
from ._batch import params_shapes as params_shapes
from ._batch import sample_objectives as sample_objectives
from ._classifiers import ACTIVATIONS as ACTIVATIONS
from ._classifiers import HELD_OUT_ACTIVATIONS as HELD_OUT_ACTIVATIONS
from ._classifiers import MLP as MLP
from ._classifiers import OUTPUTS as OUTPUTS
from ._classifiers import ConvNet as ConvNet
from ._classifiers import digit_cross_entropy as digit_cross_entropy
from ._classifiers import digit_sigmoid_cross_entropy as digit_sigmoid_cross_entropy
from ._classifiers import leaky_relu as leaky_relu
from ._from_model import FromModel as FromModel
from ._from_model import ModelObjective as ModelObjective
from ._minibatch import minibatch_indices as minibatch_indices
from ._mixed_activation import MixedActivation as MixedActivation
from ._mnist import MNIST as MNIST
from ._quadratic import Quadratic as Quadratic
from ._quadratic import QuadraticObjective as QuadraticObjective
from ._rescaled import Rescaled as Rescaled
from ._scaled import Scaled as Scaled
from ._scaled import ScaledObjective as ScaledObjective
