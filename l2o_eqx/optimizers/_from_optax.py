import optax
from jaxtyping import PRNGKeyArray

from .._types import Params, Scalar, State
from ._base import AbstractOptimizer


class FromOptax(AbstractOptimizer):
    """An optax optimizer as one of ours, to be evaluated or compared beside learned ones.

    **Arguments:**

    - `transformation`: e.g. `optax.adam(1e-3)`. What it closes over is not a meta-parameter.
    """

    transformation: optax.GradientTransformation

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
        return self.transformation.update(grads, state, params)


def as_optimizer(optimizer: AbstractOptimizer | optax.GradientTransformation) -> AbstractOptimizer:
    """The optimizer itself, or an optax transformation wrapped as one."""
    if isinstance(optimizer, AbstractOptimizer):
        return optimizer
    return FromOptax(optimizer)
