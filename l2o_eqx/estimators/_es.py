import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._types import State
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractEstimator
from ._particles import check_pairs, draw_noise, estimate_by_pairs
from ._window import Window, WindowResult


class ES(AbstractEstimator):
    """Evolution strategies: a gradient from nothing but the meta-losses of perturbed optimizers.

    The window is run by pairs of optimizers whose meta-parameters are moved by +σε and −σε, ε ~ N(0, 1), and
    the mean of (L(φ+σε) − L(φ−σε))/(2σ)·ε is the estimate: without bias for the gradient of E_ε[L(φ+σε)],
    which is that of L as σ goes to 0. Nothing is differentiated by φ, and memory does not grow with the
    window. The run itself goes on with φ.

    All runs begin where the window begins. What φ did in the windows before does not count, as with truncated
    backpropagation; `PES` and `NRES` count it.

    The inner steps are what they always are: the optimizer is shown ∇f, so that the estimate has the
    curvature in it that first-order estimators leave out. If ∇f is zero everywhere (a loss that is rounded)
    the optimizer must live on what else it `wants`, the value. A loss that JAX cannot differentiate is made
    such a one by `params = jax.lax.stop_gradient(params)` in its first line.

    Objectives that are not finite in all three runs do not count in a pair.

    **Arguments:**

    - `std`: σ, in units of the meta-parameters.
    - `num_pairs`: how many pairs; the variance falls as their inverse and grows with the number of
        meta-parameters.
    - `ranked`: puts ranks from −½ to ½ in the place of the meta-losses, for each objective among all 2·pairs
        runs; a run that is not finite is the last. Scales and outliers have no say then, and the
        gradient's length means nothing: give it to a meta-optimizer that normalizes, as the default does.

    **Raises:** `ValueError` for a σ that is not positive, or for no pairs.

    Reference: Salimans et al. 2017 (arXiv:1703.03864); Metz et al. 2019, "Understanding and correcting
    pathologies in the training of learned optimizers" (arXiv:1810.10180).
    """

    std: float = eqx.field(static=True, default=0.01)
    num_pairs: int = eqx.field(static=True, default=16)
    ranked: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_pairs("ES", self.std, self.num_pairs)

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        noise = draw_noise(key, optimizer, self.num_pairs)
        result, _ = estimate_by_pairs(
            optimizer, window, weighting, std=self.std, noise=noise, directions=noise, ranked=self.ranked
        )
        return result, state
