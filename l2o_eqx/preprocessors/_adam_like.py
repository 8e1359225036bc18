import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import check
from .._misc import at_least_float32, ravel_wide, unravel_like
from .._types import Features, Params
from ._base import AbstractPreprocessor

Moments = tuple[Float[Array, " coordinates"], Float[Array, " coordinates"], Float[Array, " coordinates"]]


class AdamLike(AbstractPreprocessor):
    """The gradient and its running mean, each over the root of the running mean square: two features.

    Use it when the scale of the gradients differs between objectives: rescaling an objective leaves the
    features (nearly) unchanged.

    **Arguments:**

    - `b1`, `b2`: decay rates of the two means, which are corrected for their start at zero as in Adam.
    - `eps`: added to the root.

    **Raises:** `ValueError` for decay rates outside [0, 1) or an `eps` that is not positive.

    Reference: Lv, Jiang & Li 2017, "Learning gradient descent: better generalization and longer
    horizons", eq. 5 (arXiv:1703.03633); Kingma & Ba 2015 (arXiv:1412.6980).
    """

    b1: float = eqx.field(static=True, default=0.9)
    b2: float = eqx.field(static=True, default=0.999)
    eps: float = eqx.field(static=True, default=1e-8)

    def __check_init__(self):
        check(
            "`AdamLike(b1, b2, eps)`: the decay rates must lie in [0, 1) and `eps` above 0. "
            f"Got b1={self.b1}, b2={self.b2}, eps={self.eps}.",
            b1=(self.b1, 0 <= self.b1 < 1),
            b2=(self.b2, 0 <= self.b2 < 1),
            eps=(self.eps, self.eps > 0),
        )

    @property
    def num_features(self) -> int:
        return 2

    def init(self, params: Params) -> Moments:
        flat = ravel_wide(params)
        return jnp.zeros_like(flat), jnp.zeros_like(flat), jnp.zeros_like(flat)

    def __call__(self, grads: Params, state: Moments) -> tuple[Features, Moments]:
        # The number of steps is kept per coordinate, so that a block of coordinates takes its part of the
        # state along without knowing of the others.
        mean, square, steps = state
        grad = ravel_wide(grads)
        mean = self.b1 * mean + (1 - self.b1) * grad
        square = self.b2 * square + (1 - self.b2) * grad**2
        steps = steps + 1
        # The root has no derivative at 0, where pixels that are always black have their weights.
        positive = square > 0
        corrected = jnp.where(positive, square, 1.0) / (1 - self.b2**steps)
        root = jnp.where(positive, jnp.sqrt(corrected), 0.0) + self.eps
        features = (grad / root, mean / (1 - self.b1**steps) / root)
        wide = jax.tree.map(at_least_float32, grads)
        stacked = jax.tree.map(lambda *f: jnp.stack(f, axis=-1), *(unravel_like(f, wide) for f in features))
        return stacked, (mean, square, steps)
