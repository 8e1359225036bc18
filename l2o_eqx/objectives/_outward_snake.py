from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import check
from .._types import Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._minimum import Minimum
from ._resized import resized


class OutwardSnakeObjective(AbstractObjective):
    """f(x) = a/(‖x‖ + ε) + Σ_i b_i·(x_{i+1} − π·cos x_i)². Drawn by `OutwardSnake`."""

    pull: Float[Array, ""]
    walls: Float[Array, " gaps"]

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return jr.normal(key, (self.walls.size + 1,), self.walls.dtype)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        square = jnp.sum(params**2)
        positive = square > 0
        radius = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
        distances = params[1:] - jnp.pi * jnp.cos(params[:-1])
        return self.pull / (radius + 1e-6) + jnp.sum(self.walls * distances**2)

    def minimum(self) -> Minimum:
        return Minimum(jnp.zeros((), self.pull.dtype))


class OutwardSnake(AbstractObjectiveFamily):
    """A winding path that falls without an end: f(x) = a/(‖x‖ + 1e-6) + Σ_i b_i·(x_{i+1} − π·cos x_i)².

    There is no minimum: f tends to its infimum 0 along the path's floor as x_1 → ±∞. a and the b_i are drawn
    per objective, uniform in [0.5, 1.5]. Starting points are standard normal.

    **Arguments:**

    - `dim`: the number of coordinates, 2 or more.

    **Raises:** `ValueError` for a smaller `dim`.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813), and
    its released code, where a and b_i are a data set's.
    """

    dim: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check(
            f"`OutwardSnake(dim=...)` needs at least two coordinates. Got dim={self.dim}.",
            dim=(self.dim, self.dim >= 2),
        )

    def sample(self, key: PRNGKeyArray) -> OutwardSnakeObjective:
        factors = jr.uniform(key, (self.dim,), minval=0.5, maxval=1.5)
        return OutwardSnakeObjective(factors[0], factors[1:])

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        sizes = resized((self.dim,)).items()
        return {f"dimension × {name}": OutwardSnake(dim) for name, (dim,) in sizes if dim >= 2}
