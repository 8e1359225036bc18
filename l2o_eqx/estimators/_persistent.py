"""Evolution strategies whose runs go on from window to window."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._types import State
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractEstimator
from ._particles import Noise, Particles, begin_particles, check_pairs, draw_noise, estimate_by_pairs
from ._window import Window, WindowResult


class Persistent(eqx.Module):
    """What `PES` and `NRES` remember within a super epoch.

    **Fields:**

    - `particles`: where the runs are.
    - `noise`: of `PES` the sum of what the windows so far were moved by; of `NRES` what all are moved by.
    """

    particles: Particles
    noise: Noise


class PES(AbstractEstimator):
    """Persistent evolution strategies: `ES` over a whole super epoch, in windows, and still without bias.

    Every pair has two inner runs of its own, which begin with the super epoch and go on from window to
    window. In window k they are moved by ±σε_k, drawn anew, and the mean of
    (L_k⁺ − L_k⁻)/(2σ)·(ε_1 + … + ε_k) is the estimate. A loss depends on all of ε_1 … ε_k, so that their sum
    brings in what the windows before have done to it: the estimates of all windows add up, in expectation, to
    the gradient of the whole run's smoothed meta-loss, where those of truncated backpropagation and of `ES`
    do not. Their variance grows with the number of windows so far.

    Meta-updates between windows move φ under the runs. The estimate is exact for a φ that stands still, and
    as good as φ is slow.

    Nothing is differentiated by φ, and memory does not grow with the horizon: per pair two sets of params and
    states of all objectives. The inner steps use ∇f as always, see `ES`. A pair of which one run of an
    objective has not been finite no longer counts for it until the super epoch ends.

    **Arguments:**

    - `std`: σ, in units of the meta-parameters.
    - `num_pairs`: how many pairs; the variance falls as their inverse.

    **Raises:** `ValueError` for a σ that is not positive, or for no pairs.

    Reference: Vicol, Metz, Sohl-Dickstein 2021, "Unbiased gradient estimation in unrolled computation graphs
    with persistent evolution strategies" (arXiv:2112.13835), algorithm 2.
    """

    std: float = eqx.field(static=True, default=0.01)
    num_pairs: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        check_pairs("PES", self.std, self.num_pairs)

    def consecutive(self) -> bool:
        return True

    def init(self, optimizer: AbstractOptimizer, window: Window, *, key: PRNGKeyArray) -> State:
        trained = eqx.filter(optimizer, eqx.is_inexact_array)
        none = jax.tree.map(lambda x: jnp.zeros((self.num_pairs, *x.shape), x.dtype), trained)
        return Persistent(begin_particles(window, self.num_pairs), none)

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
        total = jax.tree.map(jnp.add, state.noise, noise)
        return _go_on(optimizer, window, weighting, state.particles, self.std, noise, total)


class NRES(AbstractEstimator):
    """Noise-reuse evolution strategies: as `PES`, but moved by the same ±σε in all windows of a super epoch.

    The mean of (L_k⁺ − L_k⁻)/(2σ)·ε is the estimate of window k. It is without bias as `PES` is, for a loss
    that is smoothed by one ε instead of one for every window, and its variance does not grow with the number
    of windows. With few pairs, all windows of a super epoch look along the same few directions.

    All else, cost and memory included, is as in `PES`.

    **Arguments:**

    - `std`, `num_pairs`: as in `PES`.

    **Raises:** `ValueError` for a σ that is not positive, or for no pairs.

    Reference: Li et al. 2023, "Variance-reduced gradient estimation via noise-reuse in online evolution
    strategies" (arXiv:2304.12180).
    """

    std: float = eqx.field(static=True, default=0.01)
    num_pairs: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        check_pairs("NRES", self.std, self.num_pairs)

    def consecutive(self) -> bool:
        return True

    def init(self, optimizer: AbstractOptimizer, window: Window, *, key: PRNGKeyArray) -> State:
        noise = draw_noise(key, optimizer, self.num_pairs)
        return Persistent(begin_particles(window, self.num_pairs), noise)

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        return _go_on(optimizer, window, weighting, state.particles, self.std, state.noise, state.noise)


def _go_on(optimizer, window, weighting, particles, std, noise, directions):
    result, particles = estimate_by_pairs(
        optimizer, window, weighting, std=std, noise=noise, directions=directions, particles=particles
    )
    assert particles is not None
    return result, Persistent(particles, directions)
