from jaxtyping import PRNGKeyArray

from .._errors import ArgumentError
from .._types import Scalar
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._wrapper import AbstractWrappedObjective, AbstractWrapper


class RegretObjective(AbstractWrappedObjective):
    """f − f*, with f* the minimum of f. Drawn by `Regret`."""

    objective: AbstractObjective
    lowest: Scalar

    def changed(self, loss: Scalar) -> Scalar:
        return loss - self.lowest.astype(loss.dtype)


class Regret(AbstractWrapper):
    """A family's objectives above their minimum: every loss is what one regrets to have evaluated there.

    Its gradients are f's own. Weightings of it are those of regret: `Constant` its sum, `LogMean` its
    logarithm, `ObservedImprovement` the simple regret of the best point.

    **Arguments:**

    - `family`: gives f, whose minimum must be known (`AbstractObjective.minimum`).

    **Raises:** `ValueError`, when an objective is drawn, if its minimum is not known.
    """

    family: AbstractObjectiveFamily

    def sample(self, key: PRNGKeyArray) -> RegretObjective:
        objective = self.family.sample(key)
        minimum = objective.minimum()
        if minimum is None:
            raise ArgumentError(
                f"`Regret(family={type(self.family).__name__}(...))`: the minimum of its objectives is not "
                "known. Take a family whose `minimum` says it, or weigh the losses themselves.",
                argument="family",
                given=self.family,
            )
        return RegretObjective(objective, minimum.value)
