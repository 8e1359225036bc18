from typing import Any

import optax

from .._types import Params, State
from ._base import AbstractOptimizer


class FromOptax(AbstractOptimizer):
    """An optax optimizer as one of ours, to be evaluated or compared beside learned ones.

    **Arguments:**

    - `transformation`: e.g. `optax.adam(1e-3)`. What it closes over is not a meta-parameter.
    """

    transformation: optax.GradientTransformation

    def init(self, params: Params) -> State:
        return self.transformation.init(params)

    def update(self, grads: Params, state: State, params: Params | None) -> tuple[Params, State]:
        return self.transformation.update(grads, state, params)


def as_optax(optimizer: AbstractOptimizer) -> optax.GradientTransformation:
    """A (trained) optimizer as an `optax.GradientTransformation`, for any optax training loop.

    **Arguments:**

    - `optimizer`: any optimizer of this package. Its meta-parameters are constants of the
        transformation.

    **Returns:** the transformation; its updates are added to the params by `optax.apply_updates`, and it
    may be chained with others. `params` is needed in `update` only if the optimizer looks at it.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def as_optimizer(optimizer: AbstractOptimizer | optax.GradientTransformation) -> AbstractOptimizer:
    """The optimizer itself, or an optax transformation wrapped as one."""
    if isinstance(optimizer, AbstractOptimizer):
        return optimizer
    return FromOptax(optimizer)
