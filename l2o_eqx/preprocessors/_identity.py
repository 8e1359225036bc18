import jax

from .._misc import at_least_float32
from .._types import Features, Params
from ._base import AbstractPreprocessor


class Identity(AbstractPreprocessor):
    """Shows the gradient as it is: one feature. The thesis uses it for the quadratic (sec. 5.1.1)."""

    @property
    def num_features(self) -> int:
        return 1

    def init(self, params: Params) -> None:
        del params

    def __call__(self, grads: Params, state: None) -> tuple[Features, None]:
        return jax.tree.map(lambda g: at_least_float32(g)[..., None], grads), state
