import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ..._errors import check
from ..._types import Scalar, StepNumber
from .._base import AbstractObjective, AbstractObjectiveFamily
from .._minimum import Minimum
from .._resized import resized


class AbstractFunction(AbstractObjectiveFamily):
    """One function of a vector that is written out; what is drawn is where an optimizer starts.

    With a field `dim`, it varies in its dimension.
    """

    @abc.abstractmethod
    def value(self, x: Float[Array, " dim"]) -> Scalar:
        """f(x)."""

    def box(self) -> tuple[tuple[float, float], ...] | None:
        """The range of every coordinate in which it is searched; `None` if there is no usual one."""
        return None

    def start(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """Draws a starting point, anywhere in the box; without one this is overridden."""
        box = self.box()
        assert box is not None
        low, high = jnp.asarray(box).T
        return low + (high - low) * jr.uniform(key, low.shape, low.dtype)

    @abc.abstractmethod
    def minimum(self) -> Minimum:
        """The lowest value and a point that has it."""

    def sample(self, key: PRNGKeyArray) -> "FunctionObjective":
        return FunctionObjective(self)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        if not any(field.name == "dim" for field in dataclasses.fields(self)):
            return {}
        myself: Any = self
        least = self.least_dim()
        return {
            f"dimension × {name}": dataclasses.replace(myself, dim=dim)
            for name, (dim,) in resized((myself.dim,)).items()
            if dim >= least
        }

    def least_dim(self) -> int:
        """The smallest dimension that makes sense."""
        return 1

    def __check_init__(self):
        dim = getattr(self, "dim", None)
        if dim is not None:
            name, least = type(self).__name__, self.least_dim()
            coordinates = "one coordinate" if least == 1 else "two coordinates"
            message = f"`{name}(dim=...)` needs at least {coordinates}. Got dim={dim}."
            check(message, dim=(dim, dim >= least))


class FunctionObjective(AbstractObjective):
    """One of the functions that are written out, e.g. `Rosenbrock`, to be minimized."""

    function: AbstractFunction

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return self.function.start(key)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return self.function.value(params)

    def minimum(self) -> Minimum:
        return self.function.minimum()


def known(value: float, *point: float) -> Minimum:
    """A minimum from numbers."""
    return Minimum(jnp.asarray(value, jnp.result_type(float)), jnp.asarray(point, jnp.result_type(float)))
