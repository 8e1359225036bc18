import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractObjective
from ._model_loss import ModelLoss, clone, differentiated, without_states

# What a loss draws with is folded out of an objective's key with a number that no step or epoch has.
_LOSS = 2**31 - 7


class AbstractModelObjective(AbstractObjective):
    """A loss of one Equinox model as a function of its weights.

    **Fields:**

    - `make_model`: `key -> model`, with the model's state if the loss takes one.
    - `static`: the leaves of the model that are no params.
    - `loss_fn`: how the loss is called.
    - `trainable`: which leaves are the params, as a tree of truth values.
    - `state`: the model's, if it has any: the initial one, or the one that the objective was put in by
        `with_state`, such as that of the end of a run for `evaluate(measure=...)`.
    """

    make_model: eqx.AbstractVar[Callable[[PRNGKeyArray], Any]]
    static: eqx.AbstractVar[PyTree]
    loss_fn: eqx.AbstractVar[ModelLoss]
    trainable: eqx.AbstractVar[PyTree]
    state: eqx.AbstractVar[State]

    @abc.abstractmethod
    def batch(self, step: StepNumber, key: PRNGKeyArray) -> PyTree:
        """What the loss of a step is taken on; arguments as in `loss`."""

    def init(self, key: PRNGKeyArray) -> Params:
        return eqx.filter(self.loss_fn.make(self.make_model, key)[0], self.trainable)

    def init_state(self, key: PRNGKeyArray) -> State:
        return self.loss_fn.make(self.make_model, key)[1] if self.loss_fn.takes_state else None

    def with_state(self, state: State) -> "AbstractModelObjective":
        return dataclasses.replace(self, state=clone(state))

    def loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return self._call(params, step, key)[0]

    def loss_and_state(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> tuple[Scalar, State]:
        loss, state, _ = self._call(params, step, key)
        return loss, state

    def loss_and_aux(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> tuple[Scalar, PyTree]:
        """`loss`, and the auxiliary output of the loss; `None` without `has_aux`."""
        loss, _, aux = self._call(params, step, key)
        return loss, aux

    def model(self, params: Params) -> Any:
        """The whole model with the weights `params`."""
        return eqx.combine(params, self.static)

    def call(
        self, model: Any, batch: PyTree, step: StepNumber, key: PRNGKeyArray, number: int = _LOSS
    ) -> tuple[Scalar, State, PyTree]:
        """The loss of a model on a batch, the next state and the auxiliary output.

        **Arguments:**

        - `step`, `key`: as in `loss`.
        - `number`: another one for every loss of a step, so that they draw differently.
        """
        drawn = jr.fold_in(jr.fold_in(key, number), step) if self.loss_fn.takes_key else None
        return self.loss_fn(model, batch, self.state, drawn)

    def _call(self, params, step, key):
        return self.call(self.model(params), self.batch(step, key), step, key)


def draw_model(
    loss: ModelLoss,
    make_model: Callable[[PRNGKeyArray], Any],
    trainable: PyTree | None,
    batch: Callable[[], PyTree],
    key: PRNGKeyArray,
) -> tuple[PyTree, PyTree, State]:
    """What an objective keeps of a model that it draws: the fields `static`, `trainable` and `state`.

    **Arguments:**

    - `trainable`: as a family is given it; `None` for all that the loss can be differentiated by.
    - `batch`: makes a batch like those of the loss, to find that out.
    """
    model, state = loss.make(make_model, key)
    if trainable is None:
        spec = differentiated(loss, model, state, batch())
    else:
        spec = without_states(model, trainable)
    return eqx.filter(model, spec, inverse=True), spec, state
