import equinox as eqx
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._classifiers import ACTIVATIONS


class MixedActivation(eqx.Module):
    """One of several activations, picked by a number: networks that differ in it are still one program.

    **Arguments:**

    - `names`: of `ACTIVATIONS`.
    - `index`: which of them; no floating-point number, and so no coordinate of a network.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    index: Int[Array, ""]

    @classmethod
    def draw(cls, names: tuple[str, ...], *, key: PRNGKeyArray) -> "MixedActivation":
        """All of `names` equally likely."""
        return cls(names, jr.randint(key, (), 0, len(names)))

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return lax.switch(self.index, [ACTIVATIONS[name] for name in self.names], x)
