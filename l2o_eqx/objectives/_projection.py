from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import check
from .._types import Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._minibatch import minibatch_indices
from ._minimum import Minimum
from ._resized import resized


class ProjectionObjective(AbstractObjective):
    """f_t(θ) = mean of ⟨d_b, θ⟩² over the directions of step t. Drawn by `Projection`."""

    directions: Float[Array, "directions dim"]
    batch_size: int = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return jr.normal(key, self.directions.shape[1:], self.directions.dtype)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        count = len(self.directions)
        shown = minibatch_indices(step, key, num_examples=count, batch_size=self.batch_size)
        return jnp.mean((self.directions[shown] @ params) ** 2)

    def outer_loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return jnp.mean((self.directions @ params) ** 2)

    def minimum(self) -> Minimum:
        zeros = jnp.zeros(self.directions.shape[1], self.directions.dtype)
        return Minimum(jnp.zeros((), zeros.dtype), zeros)


class Projection(AbstractObjectiveFamily):
    """Each step probes some directions alone: f_t(θ) = mean over b in batch t of ⟨d_b, θ⟩².

    The directions are standard normal, drawn per objective, and shown in a new order every epoch; the outer
    loss is the mean over all. Its minimum is 0 at the origin. Starting points are standard normal.

    **Arguments:**

    - `dim`: the number of coordinates.
    - `num_directions`: how many there are; fewer than `dim` leave some of the space flat.
    - `batch_size`: directions per step.

    **Raises:** `ValueError` for sizes below 1, or a batch of more than all directions.

    Reference: the quadratic of projections of the code released with Wichrowska et al. 2017, "Learned
    optimizers that scale and generalize" (arXiv:1703.04813); its data are a setting there.
    """

    dim: int = eqx.field(static=True, default=10)
    num_directions: int = eqx.field(static=True, default=40)
    batch_size: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        count, batch = self.num_directions, self.batch_size
        check(
            "`Projection(...)` needs sizes of at least one, and no more directions per step than there are. "
            f"Got dim={self.dim}, num_directions={count}, batch_size={batch}.",
            dim=(self.dim, self.dim >= 1),
            num_directions=(count, count >= 1),
            batch_size=(batch, 1 <= batch <= count),
        )

    def sample(self, key: PRNGKeyArray) -> ProjectionObjective:
        return ProjectionObjective(jr.normal(key, (self.num_directions, self.dim)), self.batch_size)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        sizes = resized((self.dim,)).items()
        return {
            f"dimension × {name}": Projection(dim, self.num_directions, self.batch_size)
            for name, (dim,) in sizes
        }
