import contextlib
import sys
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax.core import Tracer
from jaxtyping import PyTree

from ._checks import check_count
from ._devices import is_spread, keep_spread, spread_out
from ._engine._layout import add_axis, batched_init, batched_update, drop_axis, of_one
from ._errors import ArgumentError
from ._misc import unit_rms
from ._optax_trees import as_arrays, as_value, check_same_shapes, wide, with_dtypes
from ._types import StepNumber
from .optimizers import AbstractOptimizer, Seen, by_entry, initial_state, take_step

Output = Literal["update", "rms"]


@jtu.register_pytree_with_keys_class
class LearnedTransformation(optax.GradientTransformationExtraArgs):
    """What `as_optax` returns: a transformation that is a PyTree itself.

    Its leaves are those of its optimizer (and `num_steps`). So it may be an argument of a compiled function,
    which another one of the same structure does not compile again, and of one that is differentiated.

    **Fields:** `optimizer`, `num_steps` and `output`, as `as_optax` was given them.
    """

    optimizer: AbstractOptimizer
    num_steps: StepNumber | None
    output: Output

    def __new__(
        cls, optimizer: Any, num_steps: Any = None, output: Any = "update"
    ) -> "LearnedTransformation":
        def init(params: Any) -> Any:
            return _init(optimizer, num_steps, params)

        def update(
            updates: Any, state: Any, params: Any = None, *, value: Any = None, key: Any = None, **extra: Any
        ) -> tuple[Any, Any]:
            del extra  # what others in a chain ask for
            return _update(optimizer, output, updates, state, params, {"value": value, "key": key})

        self = super().__new__(cls, init, update)
        self.optimizer, self.num_steps, self.output = optimizer, num_steps, output
        _tell_flax()
        return self

    def initial_params(self, params: PyTree) -> PyTree:
        """Where to begin a training that would begin at `params`: there, unless a starting point was learned.

        `init` cannot move the params, so that a loop that is to take a learned start says

            params = transformation.initial_params(params)
            state = transformation.init(params)
        """
        arrays = as_arrays(params, where=_where(self.optimizer), argument="params")
        return with_dtypes(self.optimizer.initial_params(arrays), arrays, jax.tree.structure(params))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        names = ("optimizer", "num_steps")
        return [(jtu.GetAttrKey(name), getattr(self, name)) for name in names], self.output

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> "LearnedTransformation":
        optimizer, num_steps = children
        return cls(optimizer, num_steps, aux)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.optimizer, self.num_steps, self.output


class TransformationState(eqx.Module):
    """The optimizer's state: laid out in blocks, or its own if the params are spread over devices."""

    inner: PyTree
    spread: bool = eqx.field(static=True)


def as_optax(
    optimizer: AbstractOptimizer, num_steps: StepNumber | None = None, *, output: Output = "update"
) -> LearnedTransformation:
    """A (trained) optimizer as an `optax.GradientTransformationExtraArgs`, for any optax training loop.

    Where coordinates are independent it runs block by block over them, so that its activations need little
    memory, whatever it optimizes. Params that are spread over the devices of a mesh stay where they are, and
    with them updates and state. It computes in float32 at least; updates come back in the dtype of the params
    or, where these are left out, of the gradients.

    **Arguments:**

    - `optimizer`: any optimizer of this package.
    - `num_steps`: how many steps the training is going to have, for optimizers that look at it.
    - `output`: `"update"`, the optimizer's own; or `"rms"`, which is `scale_by_learned`.

    **Returns:** the transformation. Its updates are added to the params by `optax.apply_updates`; it may be
    chained, masked, partitioned and accumulated. `params` is needed in `update` only if the optimizer looks
    at it, and so are `value=` (the loss, a scalar) and `key=`; other keywords are ignored. It is a PyTree,
    whose arrays are the meta-parameters. A learned starting point is taken by those who ask its
    `initial_params`. For Flax NNX, import `flax.nnx` before you make the transformation.

    **Raises:** `ValueError` for an unknown output, an optimizer that is a black box, or a number of steps
    that is no integer above 0. On `init` and `update`, if what the optimizer wants is not given, and for
    leaves that are no arrays of real numbers: of a model, hand over `eqx.filter(model,
    eqx.is_inexact_array)`; around complex params, put `optax.contrib.split_real_and_imaginary`.
    """
    if output not in ("update", "rms"):
        raise ArgumentError(
            f"`as_optax(output={output!r})`: the outputs are 'update' and 'rms'.",
            argument="output",
            given=output,
            possible=("update", "rms"),
        )
    if not isinstance(optimizer, AbstractOptimizer):
        raise ArgumentError(
            f"`as_optax({type(optimizer).__name__})` makes a transformation out of an optimizer of this "
            "package, or of your own `AbstractOptimizer`; optax's own are transformations already.",
            argument="optimizer",
            given=optimizer,
        )
    if not isinstance(num_steps, Tracer | None):
        check_count("as_optax", num_steps=num_steps)
    if optimizer.is_black_box():
        name = type(optimizer).__name__
        raise ArgumentError(
            f"`as_optax({name})`: it lives on values and proposes points, where optax has gradients and adds "
            "updates. Search with its `ask` and `tell`, or in the shell with `l2o minimize`; `unroll` and "
            "`compare` run it on objectives.",
            argument="optimizer",
            given=optimizer,
        )
    return LearnedTransformation(optimizer, num_steps, output)


def scale_by_learned(
    optimizer: AbstractOptimizer, num_steps: StepNumber | None = None
) -> LearnedTransformation:
    """The direction of a (trained) optimizer alone, as optax's own `scale_by_...` give theirs.

    It is the *negative* of the optimizer's update, scaled to a root mean square of one per tensor, and stands
    in for the gradient. How far to go the other way, and what decays, are left to what follows:

        optax.chain(
            scale_by_learned(optimizer),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(rate_or_schedule),
        )

    which takes the steps of `optimizers.UnitRMS(optimizer, rate_or_schedule, weight_decay)`. A tensor whose
    update is zero stays zero.

    **Arguments:**

    - `optimizer`, `num_steps`: as in `as_optax`.

    **Returns:** what `as_optax(optimizer, num_steps, output="rms")` returns.
    """
    return as_optax(optimizer, num_steps, output="rms")


def _init(optimizer, num_steps, params):
    if _is_placeholder(params):
        # One leaf that is none of the params': `optax.tree.map_params` leaves our states alone.
        return 0.0
    params = wide(as_arrays(params, where=_where(optimizer), argument="params"))
    spread = is_spread(params)
    init = _init_by_entry if spread else _init_in_blocks
    with _explaining(optimizer):
        return TransformationState(spread_out(init, params, optimizer, params, num_steps), spread)


def _update(optimizer, output, updates, state, params, given):
    where = _where(optimizer)
    grads = like = as_arrays(updates, where=where, argument="updates")
    treedef = jax.tree.structure(updates)
    if params is not None:
        like = as_arrays(params, where=where, argument="params")
        check_same_shapes(grads, like, where=where)
        params = wide(like)
        # In the dtype of the params, so that states keep theirs.
        grads = with_dtypes(grads, params, jax.tree.structure(grads))
    grads = wide(grads)
    if missing := sorted(name for name in optimizer.needs() if given[name] is None):
        raise ArgumentError(
            f"{where}: hand `{missing[0]}` to `update`, `update(grads, state, params, {missing[0]}=...)`.",
            argument=missing[0],
        )
    wanted = {name: given[name] for name in optimizer.wants() if given[name] is not None}
    if "value" in wanted:
        wanted["value"] = as_value(wanted["value"], grads)
    with _explaining(optimizer):
        _check_same_as_in_init(optimizer, grads, state, where)
    step = _update_by_entry if state.spread else _update_in_blocks
    where_to = (grads if params is None else params, state.inner)
    with _explaining(optimizer):
        changes, inner = keep_spread(step, where_to, optimizer, Seen(grads, **wanted), state.inner, params)
    if output == "rms":
        changes = jax.tree.map(jnp.negative, unit_rms(changes))
    return with_dtypes(changes, like, treedef), TransformationState(inner, state.spread)


@contextlib.contextmanager
def _explaining(optimizer):
    # What goes wrong with shapes says little of its cause, which is hardly ever the optimizer's own.
    try:
        yield
    except ArgumentError:
        raise
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{_where(optimizer)} cannot run on these arrays: {str(error).partition(chr(10))[0]} Of a batch "
            "of restarts, take one by `select_restart(optimizer, i)`.",
            argument="optimizer",
            given=optimizer,
        ) from error


def _check_same_as_in_init(optimizer, grads, state, where):
    if not isinstance(state, TransformationState):
        raise ArgumentError(
            f"{where}: `update` is given a {type(state).__name__} for the state that `init` returns.",
            argument="state",
            given=state,
        )
    if state.spread:
        return
    # A state may have the number of steps in it, if that is told.
    begun = (eqx.filter_eval_shape(_init_in_blocks, optimizer, grads, told) for told in (None, 1))
    if all(_shapes(one) != _shapes(state.inner) for one in begun):
        raise ArgumentError(
            f"{where}: `update` is given gradients of another structure or other shapes than the params that "
            "`init` was given.",
            argument="updates",
        )


def _shapes(tree):
    return [x.shape for x in jax.tree.leaves(tree) if hasattr(x, "shape")]


def _init_in_blocks(optimizer, params, num_steps):
    return batched_init(optimizer, add_axis(params), num_steps)


def _update_in_blocks(optimizer, seen, state, params):
    grads, value, key = (add_axis(x) for x in (seen.grads, seen.value, seen.key))
    layout = state.layout
    shown = Seen(
        layout.lay_out(grads),
        None if value is None else layout.lay_out_values(value),
        None if key is None else layout.lay_out_keys(key),
    )
    params = None if params is None else add_axis(params)
    updates, state = batched_update(optimizer, shown, state, params, like=grads)
    return drop_axis(updates), state


def _init_by_entry(optimizer, params, num_steps):
    return initial_state(by_entry(optimizer, of_one(add_axis(params))), params, num_steps)


def _update_by_entry(optimizer, seen, state, params):
    return take_step(by_entry(optimizer, of_one(add_axis(seen.grads))), seen, state, params)


def _where(optimizer):
    return f"`as_optax({type(optimizer).__name__})`"


def _is_placeholder(params):
    # What optax asks `init` with where it wants to know which parts of a state are like the params.
    of_optax = type(params).__module__.startswith("optax.") and not isinstance(params, tuple)
    return of_optax and not jax.tree.leaves(params)


def _tell_flax():
    # An attribute of a Flax NNX module may hold arrays only if its type is known there.
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is not None:
        nnx.register_data_type(LearnedTransformation)
