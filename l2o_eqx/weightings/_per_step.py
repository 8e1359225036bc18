import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._errors import ArgumentError
from .._types import Scalar, StepNumber
from ._base import AbstractWeighting


class PerStep(AbstractWeighting):
    """L = Σ w_t·f(θ_t) with weights given one by one; losses beyond the last one have the weight 0.

    With the loss after the last update (`include_final_loss`) a super epoch of K steps has K + 1 losses, the
    first of them before any step. `PerStep((0.0, 0.2, 0.2, 0.2, 0.2, 0.2))` is the multi-step loss of MAML++
    for 5 steps. Its weights move to the last step as the training goes on: train on these first, then go on
    from the `state` with others, or with `FinalOnly`.

    **Arguments:**

    - `weights`: w_t, by the number of the step in the super epoch.

    **Raises:** `ValueError` for no weights.

    Reference: Antoniou et al. 2019, "How to train your MAML" (arXiv:1810.09502), eq. 4.
    """

    weights: tuple[float, ...] = eqx.field(static=True, default=(0.0, 1.0))

    def __check_init__(self):
        if not self.weights:
            raise ArgumentError(
                "`PerStep(weights=...)` needs a weight at least. Got none.", argument="weights", given=()
            )

    def __call__(self, losses: Float[Array, " window"], start: StepNumber, num_steps: StepNumber) -> Scalar:
        del num_steps
        # Zeros for as many steps as the window can reach beyond the last weight.
        weights = jnp.asarray((*self.weights, *[0.0] * len(losses)), losses.dtype)
        own = lax.dynamic_slice_in_dim(weights, jnp.minimum(start, len(self.weights)), len(losses))
        return jnp.sum(own * losses)
