"""What optimizers around another one have in common: all that is handed on, in one place."""

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import Params, Scalar, State, StepNumber
from ._answers import Answers
from ._base import AbstractOptimizer
from ._layouts import Seen, ask


class AbstractWrapper(AbstractOptimizer):
    """An optimizer around another one, `inner`, which it asks by `take_step`.

    Whatever is not overridden is the inner optimizer's, but for the layout, which is `Whole` by default: a
    wrapper that sees every entry alone forwards `layout` and `for_group`, too. One whose state is not the
    inner optimizer's says in `inner_state` where that is.
    """

    inner: eqx.AbstractVar[AbstractOptimizer]

    def __check_init__(self):
        if not isinstance(self.inner, AbstractOptimizer):
            raise ArgumentError(
                f"`{type(self).__name__}(inner=...)` must be an optimizer of this package, such as "
                f"`pretrained(name)` and `load(path)` return. Got {self.inner!r}.",
                argument="inner",
                given=self.inner,
            )

    def inner_state(self, state: State) -> State:
        """The inner optimizer's state in that of this one; by default all of it."""
        return state

    def answers(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Answers | None:
        return ask(self.inner, Seen(grads, value, key), self.inner_state(state), params)

    def wants(self) -> frozenset[str]:
        return self.inner.wants()

    def needs(self) -> frozenset[str]:
        return self.inner.needs()

    def is_black_box(self) -> bool:
        return self.inner.is_black_box()

    def initial_params(self, params: Params) -> Params:
        return self.inner.initial_params(params)

    def parts(self) -> dict[str, PyTree]:
        return self.inner.parts()

    def init(self, params: Params) -> State:
        return self.inner.init(params)

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        return self.inner.init_for(params, num_steps)
