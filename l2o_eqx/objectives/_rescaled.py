import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._errors import check
from ._base import AbstractObjectiveFamily
from ._scaled import ScaledObjective
from ._wrapper import AbstractWrapper


class Rescaled(AbstractWrapper):
    """A family's own draws on another scale: c·f(θ/s), which begins at s·θ_1 where f begins at θ_1.

    The same key gives the objective, starting point and minibatches that it gives without.

    **Arguments:**

    - `family`: gives f.
    - `loss`: c.
    - `params`: s, one for all coordinates.

    **Raises:** `ValueError` for factors that are not above 0.
    """

    family: AbstractObjectiveFamily
    loss: float = eqx.field(static=True, default=1.0, converter=float)
    params: float = eqx.field(static=True, default=1.0, converter=float)

    def __check_init__(self):
        check(
            "`Rescaled(loss=..., params=...)` are factors and must be above 0. Got "
            f"loss={self.loss}, params={self.params}.",
            loss=(self.loss, 0 < self.loss < math.inf),
            params=(self.params, 0 < self.params < math.inf),
        )

    def sample(self, key: PRNGKeyArray) -> ScaledObjective:
        objective = self.family.sample(key)
        shapes = eqx.filter_eval_shape(objective.init, key)
        scales = jax.tree.map(lambda x: jnp.full(x.shape, 1 / self.params, x.dtype), shapes)
        factor = jnp.asarray(self.loss, jnp.result_type(float))
        return ScaledObjective(objective, factor, None if self.params == 1 else scales)
