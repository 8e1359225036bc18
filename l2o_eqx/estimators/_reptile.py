import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._engine._losses import scaled
from .._engine._replay import pull_back_start
from .._errors import ArgumentError
from .._types import State
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting
from ._base import AbstractEstimator
from ._window import Window, WindowResult


class Reptile(AbstractEstimator):
    """From the start towards where the runs end: (start − adapted params), the mean over objectives.

    Nothing is differentiated but `initial_params`, so that memory does not grow with the number of steps and
    any inner optimizer will do. What else could be learned, such as rates, has no gradient. The weighting has
    a say in the meta-loss that is reported, and in nothing else. Gradient descent at the rate ε as
    meta-optimizer moves the start by the share ε of the way; Adam works, too.

    It needs a learned start (`optimizers.LearnedStart`) and super epochs of one window
    (`strategies.OncePerSuperEpoch`).

    **Raises:** when training, `ValueError` for a window that does not begin at a learned start.

    Reference: Nichol et al. 2018, "On first-order meta-learning algorithms" (arXiv:1803.02999), algorithm 2.
    """

    def estimate(
        self,
        optimizer: AbstractOptimizer,
        window: Window,
        weighting: AbstractWeighting,
        state: State,
        *,
        key: PRNGKeyArray,
    ) -> tuple[WindowResult, State]:
        if not window.begins:
            raise ArgumentError(
                "`Reptile`: there is a window that does not begin at a learned start. Put `LearnedStart` "
                "around the optimizer, and take `OncePerSuperEpoch` as strategy.",
                argument="estimator",
                given=self,
            )
        params, end, record = window.run(optimizer)
        meta_loss, health = window.meta_loss(weighting, record)
        shares = window.shares(record.sound)

        def way(start, end):
            # A run that is not sound has the share zero, but may have ended at infinity.
            return scaled(shares, jnp.where(jnp.isfinite(end), start - end, 0))

        ways = jax.tree.map(way, window.first_params(optimizer), params)
        grads = pull_back_start(optimizer, window.params, ways)
        meta_loss, grads = window.objectives.mean_over_devices((meta_loss, grads))
        return WindowResult(record.losses, meta_loss, grads, params, end, health), state
