from typing import Any

import optax
from jaxtyping import PRNGKeyArray

from .._types import Params, Scalar, State
from ._base import AbstractOptimizer


class FromOptax(AbstractOptimizer):
    """An optax optimizer as one of ours, to be evaluated or compared beside learned ones.

    A transformation that takes extra arguments is handed `value`, the loss at the params, where it is known;
    Polyak's step, for one, cannot do without.

    **Arguments:**

    - `transformation`: e.g. `optax.adam(1e-3)`. What it closes over is no meta-parameter; the arrays of one
        that is itself a PyTree are, as those of `l2o_eqx.as_optax`.
    """

    transformation: optax.GradientTransformation

    def wants(self) -> frozenset[str]:
        takes_value = isinstance(self.transformation, optax.GradientTransformationExtraArgs)
        return frozenset({"value"} if takes_value else ())

    def needs(self) -> frozenset[str]:
        # Whether one in a chain needs it, only optax can tell, and does.
        return frozenset()

    def init(self, params: Params) -> State:
        return self.transformation.init(params)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        transformation: Any = self.transformation
        given = {} if value is None or not self.wants() else {"value": value}
        return transformation.update(grads, state, params, **given)


def as_optimizer(optimizer: AbstractOptimizer | optax.GradientTransformation) -> AbstractOptimizer:
    """The optimizer itself, or an optax transformation wrapped as one."""
    if isinstance(optimizer, AbstractOptimizer):
        return optimizer
    return FromOptax(optimizer)
