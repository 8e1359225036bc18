import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import ArgumentError
from .._misc import at_least_float32
from .._types import Features, Params
from ._base import AbstractPreprocessor


class SignedLog(AbstractPreprocessor):
    """ρ(∇) = ln|∇|/p · sgn ∇ where |∇| ≥ e^(−p), else −e^p·∇: logarithm and sign in one feature.

    As the thesis prints it. The map is not one to one: e^(−p/2) and −e^(p/2) look alike, and so do 0 and ±1;
    around 0 it swings from 1 to −1. `LogAndSign` keeps them apart.

    **Arguments:**

    - `p`: entries smaller than e^(−p) are passed on linearly; 10 in the thesis.

    **Raises:** `ValueError` unless `p` is positive and e^p a float32.

    Reference: thesis eq. 5.2 and fig. 9.
    """

    p: float = eqx.field(static=True, default=10.0)

    def __check_init__(self):
        _check_p("SignedLog", self.p)

    @property
    def num_features(self) -> int:
        return 1

    def init(self, params: Params) -> None:
        del params

    def __call__(self, grads: Params, state: None) -> tuple[Features, None]:
        return jax.tree.map(lambda g: self._rho(at_least_float32(g))[..., None], grads), state

    def _rho(self, grad: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        magnitude = jnp.abs(grad)
        large = magnitude >= jnp.exp(-self.p)
        # The inner `where` keeps the logarithm's derivative finite at 0, where it is not used.
        log = jnp.log(jnp.where(large, magnitude, 1.0)) / self.p
        return jnp.where(large, log * jnp.sign(grad), -jnp.exp(self.p) * grad)


class LogAndSign(AbstractPreprocessor):
    """(ln|∇|/p, sgn ∇) where |∇| ≥ e^(−p), else (−1, e^p·∇): logarithm and sign as two features.

    Use it when gradients span many orders of magnitude.

    **Arguments:**

    - `p`: as in `SignedLog`.

    **Raises:** `ValueError` unless `p` is positive and e^p a float32.

    Reference: Andrychowicz et al. 2016, Appendix A (arXiv:1606.04474).
    """

    p: float = eqx.field(static=True, default=10.0)

    def __check_init__(self):
        _check_p("LogAndSign", self.p)

    @property
    def num_features(self) -> int:
        return 2

    def init(self, params: Params) -> None:
        del params

    def __call__(self, grads: Params, state: None) -> tuple[Features, None]:
        return jax.tree.map(lambda g: self._features(at_least_float32(g)), grads), state

    def _features(self, grad: Float[Array, "*shape"]) -> Float[Array, "*shape features"]:
        magnitude = jnp.abs(grad)
        large = magnitude >= jnp.exp(-self.p)
        log = jnp.where(large, jnp.log(jnp.where(large, magnitude, 1.0)) / self.p, -1.0)
        sign = jnp.where(large, jnp.sign(grad), jnp.exp(self.p) * grad)
        return jnp.stack([log, sign], axis=-1)


def _check_p(name: str, p: float) -> None:
    if not 0 < p < 88:
        raise ArgumentError(
            f"`{name}(p=...)` must lie between 0 and 88, so that e^p is finite. Got p={p}.",
            argument="p",
            given=p,
        )
