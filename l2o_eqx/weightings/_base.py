import abc

import equinox as eqx
from jaxtyping import Array, Float

from .._types import Scalar, StepNumber


class AbstractWeighting(eqx.Module):
    """The meta-loss of a window as a function of the losses in it.

    Any differentiable function will do: the engine uses its gradient, w_t = ∂L/∂f(θ_t), nothing else.
    """

    @abc.abstractmethod
    def __call__(self, losses: Float[Array, " window"], start: StepNumber, num_steps: StepNumber) -> Scalar:
        """The meta-loss of a window.

        **Arguments:**

        - `losses`: f(θ_t) at the window's steps, each before its update.
        - `start`: number of the window's first step, counted from 0 in the super epoch.
        - `num_steps`: length of the super epoch, up to the end of its last window.
        """

    def of(
        self,
        losses: Float[Array, " window"],
        start: StepNumber,
        num_steps: StepNumber,
        first_loss: Scalar,
    ) -> Scalar:
        """The meta-loss, given also f(θ_1) of the super epoch; how the engine calls a weighting.

        By default `__call__`, without `first_loss`. A weighting of relative losses overrides it.
        """
        del first_loss
        return self(losses, start, num_steps)
