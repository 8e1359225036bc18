"""What objectives and families that wrap others have in common: all that is handed on, in one place."""

import abc
import dataclasses
from collections.abc import Callable, Mapping

import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._minimum import Minimum


class AbstractWrappedObjective(AbstractObjective):
    """Another objective with its loss changed, its params, or both: h(f(g(θ))).

    Whatever is not overridden is the inner objective's: its outer loss and its minimum, changed alike, and
    its state.
    """

    objective: eqx.AbstractVar[AbstractObjective]

    @abc.abstractmethod
    def changed(self, loss: Scalar) -> Scalar:
        """h: what becomes of a value of the inner objective; it must increase."""

    def inner(self, params: Params) -> Params:
        """g: the params of the inner objective that `params` stand for; the same by default."""
        return params

    def outer(self, params: Params) -> Params:
        """The inverse of `inner`."""
        return params

    def init(self, key: PRNGKeyArray) -> Params:
        return self.outer(self.objective.init(key))

    def at_step(
        self,
        evaluate: Callable[[Params], tuple[Scalar, State]],
        params: Params,
        step: StepNumber,
        key: PRNGKeyArray,
    ) -> tuple[Scalar, State]:
        """What a step sees of h(f(g(θ))) and the next state, which `evaluate` gives; by default all."""
        del step, key
        return evaluate(params)

    def loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        def evaluate(params):
            return self.changed(self.objective.loss(self.inner(params), step, key)), None

        return self.at_step(evaluate, params, step, key)[0]

    def init_state(self, key: PRNGKeyArray) -> State:
        return self.objective.init_state(key)

    def with_state(self, state: State) -> "AbstractWrappedObjective":
        return dataclasses.replace(self, objective=self.objective.with_state(state))

    def loss_and_state(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> tuple[Scalar, State]:
        def evaluate(params):
            loss, state = self.objective.loss_and_state(self.inner(params), step, key)
            return self.changed(loss), state

        return self.at_step(evaluate, params, step, key)

    def outer_loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return self.changed(self.objective.outer_loss(self.inner(params), step, key))

    def has_outer_loss(self) -> bool:
        return self.objective.has_outer_loss()

    def is_judged_by_outer_loss(self) -> bool:
        return self.objective.is_judged_by_outer_loss()

    def minimum(self) -> Minimum | None:
        found = self.objective.minimum()
        if found is None:
            return None
        params = None if found.params is None else self.outer(found.params)
        return Minimum(self.changed(found.value), params)


class AbstractWrapper(AbstractObjectiveFamily):
    """A family of wrapped objectives, which varies as the family inside does."""

    family: eqx.AbstractVar[AbstractObjectiveFamily]

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        varied = self.family.variations().items()
        return {name: dataclasses.replace(self, family=family) for name, family in varied}
