import equinox as eqx
import jax
from jaxtyping import Key, Array, PyTree

from ._base import AbstractObjective, AbstractObjectiveFamily


class ObjectiveBatch(eqx.Module):
    """Many objectives of one family side by side; what they share is held once.

    Made by `sample_objectives`. Inside a function batched over `own`, call `select(own)` to get one
    objective.
    """

    own: PyTree
    shared: PyTree

    def select(self, own: PyTree) -> AbstractObjective:
        return eqx.combine(own, self.shared)


def sample_objectives(
    family: AbstractObjectiveFamily, keys: Key[Array, " objectives"]
) -> ObjectiveBatch:
    """Draws one objective per key.

    Arrays that `family.sample` hands on untouched (a data set) are recognized and kept once, without an
    axis for the objectives; everything else gets that axis in front.
    """
    handed_on = {id(leaf) for leaf in jax.tree.leaves(family)}
    shared = None

    def sample(key):
        nonlocal shared
        objective = family.sample(key)
        own, shared = eqx.partition(
            objective, lambda x: eqx.is_array(x) and id(x) not in handed_on
        )
        return own

    own = jax.vmap(sample)(keys)
    return ObjectiveBatch(own, shared)
