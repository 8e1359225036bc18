from collections.abc import Mapping

import jax.random as jr
from jaxtyping import PRNGKeyArray

from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._minimum import Minimum


class SumObjective(AbstractObjective):
    """f(θ) + g(ϑ) of the params (θ, ϑ). Drawn by `Sum`."""

    first: AbstractObjective
    second: AbstractObjective

    def init(self, key: PRNGKeyArray) -> Params:
        one, two = jr.split(key)
        return (self.first.init(one), self.second.init(two))

    def loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        one, two = jr.split(key)
        return self.first.loss(params[0], step, one) + self.second.loss(params[1], step, two)

    def outer_loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        one, two = jr.split(key)
        return self.first.outer_loss(params[0], step, one) + self.second.outer_loss(params[1], step, two)

    def has_outer_loss(self) -> bool:
        return self.first.has_outer_loss() or self.second.has_outer_loss()

    def is_judged_by_outer_loss(self) -> bool:
        return self.first.is_judged_by_outer_loss() or self.second.is_judged_by_outer_loss()

    def init_state(self, key: PRNGKeyArray) -> State:
        one, two = jr.split(key)
        return _pair(self.first.init_state(one), self.second.init_state(two))

    def with_state(self, state: State) -> "SumObjective":
        first, second = (None, None) if state is None else state
        return SumObjective(self.first.with_state(first), self.second.with_state(second))

    def loss_and_state(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> tuple[Scalar, State]:
        one, two = jr.split(key)
        first, first_state = self.first.loss_and_state(params[0], step, one)
        second, second_state = self.second.loss_and_state(params[1], step, two)
        return first + second, _pair(first_state, second_state)

    def minimum(self) -> Minimum | None:
        one, two = self.first.minimum(), self.second.minimum()
        if one is None or two is None:
            return None
        unknown = one.params is None or two.params is None
        return Minimum(one.value + two.value, None if unknown else (one.params, two.params))


def _pair(first: State, second: State) -> State:
    return None if first is None and second is None else (first, second)


class Sum(AbstractObjectiveFamily):
    """Sums of two independent objectives, f(θ) + g(ϑ), each with params of its own: one loss, several scales.

    The params are those of f and of g as a pair, and so is the minimum. A sum of sums has more of them.

    **Arguments:**

    - `family`: gives f.
    - `other`: gives g.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813).
    """

    family: AbstractObjectiveFamily
    other: AbstractObjectiveFamily

    def sample(self, key: PRNGKeyArray) -> SumObjective:
        one, two = jr.split(key)
        return SumObjective(self.family.sample(one), self.other.sample(two))

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        """Those of both, at the same time where they have the same name."""
        one, two = self.family.variations(), self.other.variations()
        names = dict.fromkeys([*one, *two])
        return {name: Sum(one.get(name, self.family), two.get(name, self.other)) for name in names}
