import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._errors import check
from .._types import Scalar
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._wrapper import AbstractWrappedObjective, AbstractWrapper


class LogObjective(AbstractWrappedObjective):
    """log(f(θ) + ε) − log ε. Drawn by `Log`."""

    objective: AbstractObjective
    eps: float = eqx.field(static=True)

    def changed(self, loss: Scalar) -> Scalar:
        # Not the difference of two logarithms, which loses digits where f is small.
        return jnp.log1p(loss / self.eps)


class Log(AbstractWrapper):
    """Logarithms of a family's objectives, log(f(θ) + ε) − log ε: wide plains around a deep, narrow hole.

    The minimum is where f has it; it is 0 where f is 0. f must not be negative.

    **Arguments:**

    - `family`: gives f.
    - `log_floor`: ε, above 0.

    **Raises:** `ValueError` for an ε that is not above 0.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813); its
    released code has ε = 1e-6.
    """

    family: AbstractObjectiveFamily
    log_floor: float = eqx.field(static=True, default=1e-6, converter=float)

    def __check_init__(self):
        check(
            f"`Log(log_floor=...)` must be above 0. Got log_floor={self.log_floor}.",
            log_floor=(self.log_floor, self.log_floor > 0),
        )

    def sample(self, key: PRNGKeyArray) -> LogObjective:
        return LogObjective(self.family.sample(key), self.log_floor)
