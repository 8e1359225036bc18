import abc
from collections.abc import Mapping

import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._types import Params, Scalar, StepNumber
from ._minimum import Minimum


class AbstractObjective(eqx.Module):
    """One function f to minimize, with its own data.

    To write your own, implement `init` and `loss`; everything that is an array (data, targets) goes
    into fields.
    """

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> Params:
        """Draws the starting point of an inner optimization."""

    @abc.abstractmethod
    def loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        """The value f(params) that inner step number `step` sees.

        **Arguments:**

        - `params`: the point, as returned by `init`.
        - `step`: the number of the inner step, counted from 0 in the super epoch.
        - `key`: one key for the whole super epoch; together with `step` it picks the minibatch, so the
            same pair always gives the same function.
        """

    def outer_loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        """What a weighting weighs in place of `loss` when an optimizer is trained, e.g. on held-out data.

        By default the loss itself. A wrapper around an objective overrides this and `has_outer_loss`.
        """
        return self.loss(params, step, key)

    def has_outer_loss(self) -> bool:
        """Whether the outer loss is another than the loss; a wrapper answers with what it wraps."""
        return type(self).outer_loss is not AbstractObjective.outer_loss

    def minimum(self) -> Minimum | None:
        """The lowest outer loss, if it is known: what tests and pictures compare with. `None` by default."""
        return None


class AbstractObjectiveFamily(eqx.Module):
    """A distribution that objectives are drawn from: the expectation E_f of the thesis, eq. 3.5.

    All objectives of a family have params of the same shapes, so that a batch of them is one program.
    """

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> AbstractObjective:
        """Draws one objective; the same key always gives the same one.

        Arrays that all objectives share (a data set) should be handed on as they are, not computed
        anew: `sample_objectives` recognizes them and never copies them per objective.
        """

    def variations(self) -> Mapping[str, "AbstractObjectiveFamily"]:
        """Families like this one of other sizes and kinds, by name, for a card of generalization.

        None by default; horizons and scales are varied for any family.
        """
        return {}
