import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import ArgumentError
from .._types import Scalar
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._functions import AbstractFunction
from ._wrapper import AbstractWrappedObjective, AbstractWrapper

Ranges = tuple[tuple[float, float], ...]


class InBoxObjective(AbstractWrappedObjective):
    """f on a box of its own, scaled to [−1, 1]^n. Drawn by `InBox`."""

    objective: AbstractObjective
    ranges: Ranges = eqx.field(static=True)

    def changed(self, loss: Scalar) -> Scalar:
        return loss

    def inner(self, params: Float[Array, " dim"]) -> Float[Array, " dim"]:
        low, high = jnp.asarray(self.ranges, params.dtype).T
        return low + (params + 1) / 2 * (high - low)

    def outer(self, params: Float[Array, " dim"]) -> Float[Array, " dim"]:
        low, high = jnp.asarray(self.ranges, params.dtype).T
        return 2 * (params - low) / (high - low) - 1


class InBox(AbstractWrapper):
    """A written-out function on the box [−1, 1]^n, whatever box it is searched in otherwise.

    That is where optimizers without gradients look. Starting points and the minimum are moved alike.

    **Arguments:**

    - `family`: one of the functions with a box, such as `Branin` or `Hartmann`.

    **Raises:** `ValueError` for a family that has no box.
    """

    family: AbstractObjectiveFamily

    def __check_init__(self):
        if not isinstance(self.family, AbstractFunction) or self.family.box() is None:
            raise ArgumentError(
                f"`InBox(family={type(self.family).__name__}(...))`: this family is searched in no box. "
                "Take a written-out function that has one, such as `Branin`.",
                argument="family",
                given=self.family,
            )

    def sample(self, key: PRNGKeyArray) -> InBoxObjective:
        family = self.family
        assert isinstance(family, AbstractFunction)
        ranges = family.box()
        assert ranges is not None
        return InBoxObjective(family.sample(key), ranges)
