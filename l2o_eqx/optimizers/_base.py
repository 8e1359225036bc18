import abc
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from .._types import Params, Scalar, State, StepNumber
from ._answers import Answers
from ._layouts import AbstractLayout, Whole


class AbstractOptimizer(eqx.Module):
    """Something that proposes updates from gradients. Its floating-point arrays are its meta-parameters.

    To write your own, implement `init` and `update`. If every coordinate is treated alike and apart (the
    update of an entry depends on that entry's gradients alone), also answer `Blocks()` to `layout`, and keep
    what is said there; in return the meta-gradient runs block by block over coordinates, in little memory,
    and a batch of objectives is simply more coordinates. A wrapper answers to `layout`, `for_group`, `wants`,
    `needs`, `is_black_box`, `parts` and `answers` with what its inner optimizer does.

    If a network of yours answers with numbers that people can read, such as a rate and a momentum for every
    tensor, also tell them in `answers`: `l2o_eqx.record_answers` and `l2o plot --updates` then show them.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "coordinatewise" in cls.__dict__:
            raise TypeError(
                f"`{cls.__name__}.coordinatewise` is of an older version: give it "
                "`def layout(self, shapes): return l2o_eqx.optimizers.Blocks()` instead."
            )

    @abc.abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first step."""

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        """The state before the first of `num_steps` steps; how the verbs begin an inner run.

        By default `init(params)`. An optimizer whose steps depend on how many there are going to be
        overrides it, and takes `num_steps` in its own `init`, too.
        """
        del num_steps
        return self.init(params)

    @abc.abstractmethod
    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        """One inner step.

        **Arguments:**

        - `grads`: ∇f at `params`.
        - `state`: from `init` or the previous call.
        - `params`: the point itself, which most optimizers ignore. The verbs always hand it over; an optax
            loop may leave it out.
        - `value`: f at `params`, for those that `want` it. With a layout of `Blocks` it is an array with the
            coordinates on its last axis, each of which has the value of its objective.
        - `key`: to draw with, another one at every step, for those that `want` it. With a layout of `Blocks`
            it is that of a block, so that draws depend on how coordinates are cut.

        **Returns:** the updates, which are added to the params, and the next state, of the same
        structure, shapes and dtypes as before.
        """

    def answers(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Answers | None:
        """What its networks see and answer in the step that `update` takes with the same arguments.

        Numbers must come from the code that `update` runs. The state is that of one objective, as `init`
        makes it. By default there is nothing to tell: `None`.
        """
        del grads, state, params, value, key
        return None

    def wants(self) -> frozenset[str]:
        """Which of `"value"` and `"key"` its `update` is called with; by default it needs neither."""
        return frozenset()

    def needs(self) -> frozenset[str]:
        """Which of these its `update` cannot do without; by default all that it wants.

        The verbs hand over all that is wanted; an optax loop may leave out what is not needed.
        """
        return self.wants()

    def takes_value_fn(self) -> bool:
        """Whether its `update` takes a keyword more, `value_fn`: f of the step at hand, to evaluate anywhere.

        Line searches need it. It is handed over where optimizers are evaluated and compared, not where they
        are trained; wrappers do not pass it on. By default no.
        """
        return False

    def is_black_box(self) -> bool:
        """Whether it lives on values and never looks at a gradient; by default not.

        Then a meta-gradient flows through nothing but params and value, and estimators that take these for
        constants refuse it; so does `as_optax`, where gradients are what there is.
        """
        return False

    def initial_params(self, params: Params) -> Params:
        """Where an inner run begins that was drawn to begin at `params`; by default there.

        A learned starting point answers with its own, and is trained: first windows of super epochs are
        differentiated through it, too.
        """
        return params

    def layout(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> AbstractLayout:
        """How it wants to be shown objectives whose params have these shapes; by default whole."""
        del shapes
        return Whole()

    def for_group(self, name: str) -> "AbstractOptimizer":
        """The optimizer that runs a group alone, if the layout is of `Groups`."""
        raise NotImplementedError(
            f"`{type(self).__name__}.for_group({name!r})`: an optimizer whose layout is of `Groups` must "
            "say which optimizer runs a group."
        )

    def parts(self) -> dict[str, PyTree]:
        """Its pieces that have meta-parameters of their own, by name; here a single one, the whole.

        Meta-training reports the norm of the meta-gradient for each, and
        `l2o_eqx.meta_optimizers.unit_norm("part")` scales each to norm one.
        """
        return {"optimizer": self}
