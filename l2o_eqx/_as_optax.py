from typing import Any

import optax

from ._layout import add_axis, batched_init, batched_update, drop_axis, lay_out
from .optimizers import AbstractOptimizer


def as_optax(optimizer: AbstractOptimizer, num_steps: int | None = None) -> optax.GradientTransformation:
    """A (trained) optimizer as an `optax.GradientTransformation`, for any optax training loop.

    Where coordinates are independent it runs block by block over them, so that its activations need little
    memory, whatever it optimizes.

    **Arguments:**

    - `optimizer`: any optimizer of this package. Its meta-parameters are constants of the
        transformation.
    - `num_steps`: how many steps the training is going to have, for optimizers that look at it.

    **Returns:** the transformation; its updates are added to the params by `optax.apply_updates`, and it
    may be chained with others. `params` is needed in `update` only if the optimizer looks at it.
    """

    def init(params: Any) -> Any:
        return batched_init(optimizer, add_axis(params), num_steps)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads = add_axis(updates)
        params = None if params is None else add_axis(params)
        shown = lay_out(optimizer, state, grads)
        updates, state = batched_update(optimizer, shown, state, params, like=grads)
        return drop_axis(updates), state

    return optax.GradientTransformation(init, update)
