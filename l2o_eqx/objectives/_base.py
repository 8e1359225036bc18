import abc
from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ArrayLike, PRNGKeyArray

from .._errors import ArgumentError
from .._types import Params, Scalar, State, StepNumber
from ._minimum import Minimum


class AbstractObjective(eqx.Module):
    """One function f to minimize, with its own data.

    To write your own, implement `init` and `loss`; everything that is an array (data, targets) goes
    into fields.

    **State.** An objective may have a state that moves along an inner run and is no coordinate, such as the
    running statistics of BatchNorm. It then also implements `init_state`, `with_state` and `loss_and_state`:

    - A run begins at θ_1 = `init(key)` and s_1 = `init_state(key)`.
    - Step t evaluates `with_state(s_t).loss_and_state(θ_t, t, key)`, which gives f(θ_t) and s_{t+1}.
    - `outer_loss` of step t is asked of `with_state(s_t)`, and `measure` of the state at the end.

    The state is carried beside the optimizer's state, one for each objective, from step to step and from
    window to window. It must follow from the arguments alone, because a step may be evaluated again.
    Gradients and meta-gradients, of whatever order, take it for a constant. A wrapper around an objective
    forwards all three. By default there is no state, and nothing is carried.
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

    def is_judged_by_outer_loss(self) -> bool:
        """Whether evaluations and comparisons show the outer loss in place of the one that is minimized.

        By default not. It is so where the one that is minimized tells little, as that of a few examples does;
        a wrapper answers with what it wraps.
        """
        return False

    def init_state(self, key: PRNGKeyArray) -> State:
        """The state before the first step, a tree of arrays; by default `None`, for none.

        **Arguments:**

        - `key`: the one that `init` draws the starting point with.
        """
        del key

    def with_state(self, state: State) -> "AbstractObjective":
        """The same objective in a state of its runs."""
        del state
        return self

    def loss_and_state(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> tuple[Scalar, State]:
        """`loss`, and the next state, of the same structure, shapes and dtypes as before."""
        return self.loss(params, step, key), None

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


def check_loss(what: str, loss: ArrayLike, *, argument: str | None = None) -> Scalar:
    """The loss, if it is one floating-point number.

    **Arguments:**

    - `what`: has returned it; begins the message.
    - `argument`: the one to blame.

    **Raises:** `ArgumentError` if it is not.
    """
    loss = jnp.asarray(loss)
    if loss.shape == () and jnp.issubdtype(loss.dtype, jnp.floating):
        return loss
    mean = "; take the mean of it" if loss.shape else ""
    raise ArgumentError(
        f"{what} must return one floating-point number. Got an array of shape {loss.shape} and dtype "
        f"{loss.dtype}{mean}.",
        argument=argument,
    )
