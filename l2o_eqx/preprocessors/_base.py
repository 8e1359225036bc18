import abc

import equinox as eqx

from .._types import Features, Params, State


class AbstractPreprocessor(eqx.Module):
    """Turns the gradient of the objective into what a network sees of it.

    Coordinates are treated alike and apart: the features of an entry depend on that entry's gradients
    alone. The arrays of a state carry the coordinates, raveled, on their last axis, so that a block of
    coordinates is a block of the state.
    """

    @property
    @abc.abstractmethod
    def num_features(self) -> int:
        """How many features one coordinate gets; a network sizes its input by it."""

    @abc.abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first gradient; `None` for a preprocessor that remembers nothing."""

    @abc.abstractmethod
    def __call__(self, grads: Params, state: State) -> tuple[Features, State]:
        """The features, one more axis of length `num_features` per leaf, and the next state.

        Gradients may be in half precision; features are float32 at least.
        """
