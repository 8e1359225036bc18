import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._errors import ArgumentError
from .._types import Scalar, StepNumber
from ._base import AbstractWeighting


class ObservedImprovement(AbstractWeighting):
    """L = Σ_t min(f(θ_t) − min_{j<t} f(θ_j), 0) + c·mean of f(θ_t): the best point counts, not all of them.

    It is for optimizers that search, whose bad points do no harm: those without gradients. Improvements add
    up to those of the best point, min_t f(θ_t) − f(θ_1), so that it alone has a weight; with c above 0 the
    others have one, too, without which training is slow to find where to look. f(θ_1) is that of the super
    epoch and a constant to derivatives: else a learned first point would be moved to where f is high.

    A window knows nothing of those before but f(θ_1), so that windows should be whole super epochs.

    **Arguments:**

    - `mean_weight`: c ≥ 0.

    **Raises:** `ValueError` for a negative `mean_weight`.

    Reference: Chen et al. 2017, "Learning to learn without gradient descent by gradient descent"
    (arXiv:1611.03824), sec. 2.2.
    """

    mean_weight: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        if not self.mean_weight >= 0:
            raise ArgumentError(
                "`ObservedImprovement(mean_weight=...)` cannot be negative. Got "
                f"mean_weight={self.mean_weight}.",
                argument="mean_weight",
                given=self.mean_weight,
            )

    def __call__(self, losses: Float[Array, " window"], start: StepNumber, num_steps: StepNumber) -> Scalar:
        return self.of(losses, start, num_steps, losses[0])

    def of(
        self,
        losses: Float[Array, " window"],
        start: StepNumber,
        num_steps: StepNumber,
        first_loss: Scalar,
    ) -> Scalar:
        first = lax.stop_gradient(first_loss).astype(losses.dtype)
        # The sum of improvements telescopes. The first point, if it is the best, keeps its weight.
        gain = jnp.min(losses) - first
        return jnp.where(gain > 0, 0, gain) + self.mean_weight * jnp.mean(losses)
