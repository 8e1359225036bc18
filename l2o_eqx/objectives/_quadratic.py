from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import ArgumentError
from .._types import Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._minimum import Minimum
from ._resized import resized


class QuadraticObjective(AbstractObjective):
    """f(θ) = ‖Wθ − y‖², or its square root when `squared` is false. Drawn by `Quadratic`."""

    matrix: Float[Array, "dim dim"]
    target: Float[Array, " dim"]
    squared: bool = eqx.field(static=True, default=True)
    theta_std: float = eqx.field(static=True, default=1.0)

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return self.theta_std * jr.normal(key, self.target.shape, self.target.dtype)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        del step, key
        square = jnp.sum((self.matrix @ params - self.target) ** 2)
        if self.squared:
            return square
        # The norm has no gradient at its minimum; zero is the subgradient that stays there.
        positive = square > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)

    def minimum(self) -> Minimum:
        zero = jnp.zeros((), self.target.dtype)
        return Minimum(zero, jnp.linalg.solve(self.matrix, self.target))


class Quadratic(AbstractObjectiveFamily):
    """Random least-squares problems f(θ) = ‖Wθ − y‖²: W, y and the starting point are Gaussian.

    The minimum is 0 at W⁻¹y.

    **Arguments:**

    - `dim`: the number n of coordinates; W is n × n.
    - `squared`: the text of the thesis squares the norm (the default); its released code, and so its
        figures, do not.
    - `theta_std`: standard deviation of the starting point's entries: 1 in the text, 0.05 in the code.

    **Raises:** `ValueError` for a `dim` below 1 or a negative `theta_std`.

    Reference: thesis eq. 5.1; Andrychowicz et al. 2016, sec. 3.1 (arXiv:1606.04474).
    """

    dim: int = eqx.field(static=True, default=16)
    squared: bool = eqx.field(static=True, default=True)
    theta_std: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if self.dim < 1:
            raise ArgumentError(
                f"`Quadratic(dim=...)` needs at least one coordinate. Got dim={self.dim}.",
                argument="dim",
                given=self.dim,
            )
        if self.theta_std < 0:
            raise ArgumentError(
                "`Quadratic(theta_std=...)` is a standard deviation and cannot be negative. "
                f"Got theta_std={self.theta_std}.",
                argument="theta_std",
                given=self.theta_std,
            )

    def sample(self, key: PRNGKeyArray) -> QuadraticObjective:
        wkey, ykey = jr.split(key)
        matrix = jr.normal(wkey, (self.dim, self.dim))
        target = jr.normal(ykey, (self.dim,))
        return QuadraticObjective(matrix, target, self.squared, self.theta_std)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        return {
            f"dimension × {name}": Quadratic(dim, self.squared, self.theta_std)
            for name, (dim,) in resized((self.dim,)).items()
        }
