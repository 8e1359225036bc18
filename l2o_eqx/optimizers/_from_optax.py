import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from .._errors import ArgumentError
from .._misc import cast_like
from .._types import Params, Scalar, State
from ._base import AbstractOptimizer


class FromOptax(AbstractOptimizer):
    """An optax optimizer as one of ours, to be evaluated or compared beside learned ones.

    `value`, `grad` and `value_fn` are handed to transformations that take them, such as `optax.polyak_sgd`
    and `optax.lbfgs`; `value_fn`, for line searches, where optimizers are evaluated and compared, and not
    inside of a wrapper. Its state keeps the dtypes that it begins with.

    **Arguments:**

    - `transformation`: e.g. `optax.adam(1e-3)`. What it closes over is no meta-parameter; the arrays of one
        that is itself a PyTree are, as those of `l2o_eqx.as_optax`.
    """

    transformation: optax.GradientTransformation

    def init(self, params: Params) -> State:
        return self.transformation.init(params)

    def wants(self) -> frozenset[str]:
        return frozenset({"value"}) if _cannot_do_without_value(self.transformation) else frozenset()

    def takes_value_fn(self) -> bool:
        """Whether the transformation takes `value`, `grad` or `value_fn`."""
        return bool(_extra_arguments(self.transformation, frozenset({"value", "grad", "value_fn"})))

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
        value_fn: Callable[[Params], Scalar] | None = None,
    ) -> tuple[Params, State]:
        """As in `AbstractOptimizer`; `value_fn` is f, of the step at hand."""
        given = {"value": value, "grad": grads, "value_fn": value_fn}
        taken = _extra_arguments(self.transformation, frozenset(given))
        extra = {name: given[name] for name in taken if given[name] is not None}
        try:
            updates, new = self.transformation.update(grads, state, params, **extra)
        except TypeError as error:
            if "value_fn" not in str(error) or "value_fn" in extra:
                raise
            raise ArgumentError(
                "This transformation of optax searches the line and needs f itself, which only `evaluate` "
                "and `compare` have.",
                argument="optimizer",
            ) from error
        return updates, cast_like(new, state)


def _extra_arguments(transformation: optax.GradientTransformation, offered: frozenset[str]) -> frozenset[str]:
    # Which of the keywords its update takes.
    if not isinstance(transformation, optax.GradientTransformationExtraArgs):
        return frozenset()
    parameters = inspect.signature(transformation.update).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    return offered & {p.name for p in parameters}


def _cannot_do_without_value(transformation: optax.GradientTransformation) -> bool:
    # A chain hands on whatever it is given, so that its signature does not tell: a trial does.
    if "value" not in _extra_arguments(transformation, frozenset({"value"})):
        return False

    def update(**extra):
        x = jnp.zeros(())
        return transformation.update(x, transformation.init(x), x, **extra)

    try:
        jax.eval_shape(update)
    except TypeError:
        return True
    except ArgumentError as error:
        return error.argument == "value"
    except Exception:
        # For params of certain structures only; such as a label for each of them.
        return False
    return False


def as_optimizer(optimizer: AbstractOptimizer | optax.GradientTransformation) -> AbstractOptimizer:
    """The optimizer itself, or an optax transformation wrapped as one.

    **Raises:** `ArgumentError` for anything else.
    """
    if isinstance(optimizer, AbstractOptimizer):
        return optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ArgumentError(
            "An optimizer must be one of this package or an optax transformation, such as "
            f"`optax.adam(1e-3)`. Got {optimizer!r}.",
            argument="optimizer",
            given=optimizer,
        )
    return FromOptax(optimizer)
