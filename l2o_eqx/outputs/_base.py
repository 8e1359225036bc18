import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._misc import ravel_wide
from .._types import Params, State


class AbstractOutput(eqx.Module):
    """Turns what a network answers for each coordinate, and the gradient, into the update.

    It is the other end of the network from a preprocessor: the network sizes its last layer by
    `num_answers`, and sees `features` beside those of the preprocessor. Answers of zero must give a sensible
    update, because read-outs start at zero weights.

    Coordinates are treated alike and apart: the update of an entry depends on that entry's answers and
    gradients alone. The arrays of a state carry the coordinates, raveled, on their last axis, so that a block
    of coordinates is a block of the state. Floating-point arrays among the fields are meta-parameters.
    """

    @property
    @abc.abstractmethod
    def num_answers(self) -> int:
        """How many numbers the network answers per coordinate."""

    @property
    def num_features(self) -> int:
        """How many features the output shows the network itself; none by default."""
        return 0

    def features(self, grads: Params, state: State) -> Float[Array, "features coordinates"]:
        """What the network sees beside the preprocessor's features: how ∇f compares with past updates, say.

        `grads` and `state` are those that the call of this step will have.
        """
        del state
        return jnp.zeros((0, ravel_wide(grads).size))

    @abc.abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first step; `None` for an output that remembers nothing."""

    @abc.abstractmethod
    def __call__(
        self, answers: Float[Array, "answers coordinates"], grads: Params, state: State
    ) -> tuple[Params, State]:
        """The updates, which are added to the params, and the next state.

        **Arguments:**

        - `answers`: `num_answers` rows, with the coordinates in the order of the raveled gradients.
        - `grads`: ∇f.
        - `state`: from `init` or the previous call.
        """


def log_factor(answer: Float[Array, " coordinates"], bound: float = 6.0) -> Float[Array, " coordinates"]:
    """The answer between ±`bound`, as the logarithm of a factor. Smooth: a hard bound would end learning."""
    return bound * jnp.tanh(answer / bound)
