import math
from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import check
from .._types import Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._minimum import Minimum
from ._resized import resized


class NormObjective(AbstractObjective):
    """f(θ) = ‖Wθ − y‖_p. Drawn by `Norm`."""

    matrix: Float[Array, "dim dim"]
    target: Float[Array, " dim"]
    norm_power: float = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return jr.normal(key, self.target.shape, self.target.dtype)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        sizes = jnp.abs(self.matrix @ params - self.target)
        largest = lax.stop_gradient(jnp.max(sizes))
        # Relative to the largest: powers could overflow, and the root of zero has no derivative.
        positive = largest > 0
        total = jnp.sum((sizes / jnp.where(positive, largest, 1.0)) ** self.norm_power)
        return jnp.where(positive, largest * jnp.where(positive, total, 1.0) ** (1 / self.norm_power), 0.0)

    def minimum(self) -> Minimum:
        return Minimum(jnp.zeros((), self.target.dtype), jnp.linalg.solve(self.matrix, self.target))


class Norm(AbstractObjectiveFamily):
    """Random linear equations in another norm: f(θ) = ‖Wθ − y‖_p; W and y are standard normal.

    The minimum is 0 at W⁻¹y, where there is no gradient; it is taken to be zero there. With p = 2 these are
    the square roots of `Quadratic`'s objectives. Starting points are standard normal.

    **Arguments:**

    - `dim`: the number n of coordinates; W is n × n.
    - `norm_power`: p, at least 1; the smaller, the sharper.

    **Raises:** `ValueError` for a `dim` or a `norm_power` below 1.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813).
    """

    dim: int = eqx.field(static=True, default=16)
    norm_power: float = eqx.field(static=True, default=1.5, converter=float)

    def __check_init__(self):
        power = self.norm_power
        check(
            f"`Norm(dim=..., norm_power=...)` must be at least 1. Got dim={self.dim}, norm_power={power}.",
            dim=(self.dim, self.dim >= 1),
            norm_power=(power, 1 <= power < math.inf),
        )

    def sample(self, key: PRNGKeyArray) -> NormObjective:
        wkey, ykey = jr.split(key)
        matrix, target = jr.normal(wkey, (self.dim, self.dim)), jr.normal(ykey, (self.dim,))
        return NormObjective(matrix, target, self.norm_power)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        sizes = resized((self.dim,)).items()
        return {f"dimension × {name}": Norm(dim, self.norm_power) for name, (dim,) in sizes}
