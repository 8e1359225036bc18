"""What optimizers around another one have in common: all that is handed on, in one place."""

import equinox as eqx
from jaxtyping import PyTree

from .._types import Params, State, StepNumber
from ._base import AbstractOptimizer


class AbstractWrapper(AbstractOptimizer):
    """An optimizer around another one, `inner`, which it asks by `take_step`.

    Whatever is not overridden is the inner optimizer's, but for the layout, which is `Whole` by default: a
    wrapper that sees every entry alone forwards `layout` and `for_group`, too.
    """

    inner: eqx.AbstractVar[AbstractOptimizer]

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
