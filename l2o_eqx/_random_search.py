import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from ._errors import ArgumentError
from ._types import Params, Scalar, State
from .optimizers import AbstractOptimizer


class RandomSearch(AbstractOptimizer):
    """Points drawn uniformly in a box, whatever their values: what every search without gradients must beat.

    It has no meta-parameters. The first point is where the run begins.

    **Arguments:**

    - `low`, `high`: the range of every coordinate.

    **Raises:** `ValueError` for a range that is none.

    Reference: Bergstra & Bengio 2012, "Random search for hyper-parameter optimization".
    """

    low: float = eqx.field(static=True, default=-1.0)
    high: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not self.low < self.high:
            raise ArgumentError(
                f"`RandomSearch(low=..., high=...)` is a range. Got low={self.low}, high={self.high}.",
                argument="high",
                given=self.high,
            )

    def wants(self) -> frozenset[str]:
        return frozenset({"key"})

    def is_black_box(self) -> bool:
        return True

    def init(self, params: Params) -> State:
        return ()

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        if params is None or key is None:
            name = "params" if params is None else "key"
            raise ArgumentError(f"`RandomSearch` needs it: hand `{name}` to `update`.", argument=name)
        leaves, treedef = jax.tree.flatten(params)
        keys = jr.split(key, max(1, len(leaves)))
        drawn = [
            jr.uniform(k, x.shape, jnp.float32, self.low, self.high)
            for k, x in zip(keys, leaves, strict=False)
        ]
        return treedef.unflatten([(d - x).astype(x.dtype) for d, x in zip(drawn, leaves, strict=True)]), state
