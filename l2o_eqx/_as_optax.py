from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ._errors import ArgumentError
from ._layout import add_axis, batched_init, batched_update, drop_axis
from ._misc import unit_rms
from .optimizers import AbstractOptimizer, Seen


def as_optax(
    optimizer: AbstractOptimizer,
    num_steps: int | None = None,
    *,
    output: Literal["update", "rms"] = "update",
) -> optax.GradientTransformation:
    """A (trained) optimizer as an `optax.GradientTransformation`, for any optax training loop.

    Where coordinates are independent it runs block by block over them, so that its activations need little
    memory, whatever it optimizes.

    **Arguments:**

    - `optimizer`: any optimizer of this package. Its meta-parameters are constants of the
        transformation.
    - `num_steps`: how many steps the training is going to have, for optimizers that look at it.
    - `output`: `"update"`, the optimizer's own; or `"rms"`, the *negative* of it scaled to a root mean square
        of one per tensor. That is what optax's own `scale_by_...` give: a direction that stands in for the
        gradient, to be followed by what says how far to go the other way,

            optax.chain(
                as_optax(optimizer, output="rms"),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(rate_or_schedule),
            )

        which takes the steps of `optimizers.UnitRMS(optimizer, rate_or_schedule, weight_decay)`.

    **Returns:** the transformation. With `"update"` its updates are added to the params by
    `optax.apply_updates`; it may be chained with others. `params` is needed in `update` only if the optimizer
    looks at it, and so are `value=` (the loss) and `key=`. A learned starting point is not taken.

    **Raises:** `ValueError` for an unknown output, and on `update` if what the optimizer wants is not given.
    """
    if output not in ("update", "rms"):
        raise ArgumentError(
            f"`as_optax(output={output!r})`: the outputs are 'update' and 'rms'.",
            argument="output",
            given=output,
            possible=("update", "rms"),
        )

    def init(params: Any) -> Any:
        return batched_init(optimizer, add_axis(params), num_steps)

    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any = None, key: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del extra  # what others in a chain ask for
        grads = add_axis(updates)
        params = None if params is None else add_axis(params)
        layout, given = state.layout, {"value": value, "key": key}
        if missing := sorted(name for name in optimizer.wants() if given[name] is None):
            raise ValueError(
                f"`as_optax({type(optimizer).__name__})`: hand `{missing[0]}` to `update`, "
                f"`update(grads, state, params, {missing[0]}=...)`."
            )
        wanted = {
            name: lay_out(add_axis(jnp.asarray(given[name])))
            for name, lay_out in (("value", layout.lay_out_values), ("key", layout.lay_out_keys))
            if name in optimizer.wants()
        }
        seen = Seen(layout.lay_out(grads), **wanted)
        updates, state = batched_update(optimizer, seen, state, params, like=grads)
        updates = drop_axis(updates)
        if output == "rms":
            updates = jax.tree.map(jnp.negative, unit_rms(updates))
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)
