import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PyTree

from .._types import Keys
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


def sample_objectives(family: AbstractObjectiveFamily, keys: Keys) -> ObjectiveBatch:
    """Draws one objective per key.

    Arrays that `family.sample` hands on untouched (a data set) are recognized and kept once, without an
    axis for the objectives; everything else gets that axis in front.
    """
    handed_on = {id(leaf) for leaf in jax.tree.leaves(family)}
    shared = None

    def sample(key):
        nonlocal shared
        objective = family.sample(key)
        own, shared = eqx.partition(objective, lambda x: eqx.is_array(x) and id(x) not in handed_on)
        return own

    own = jax.vmap(sample)(keys)
    return ObjectiveBatch(own, shared)


def params_shapes(family: AbstractObjectiveFamily) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the params that all objectives of a family have; nothing is computed."""
    return eqx.filter_eval_shape(lambda key: family.sample(key).init(key), jr.key(0))


def count_coordinates(family: AbstractObjectiveFamily) -> int:
    """How many coordinates the objectives of a family have."""
    return sum(leaf.size for leaf in jax.tree.leaves(params_shapes(family)))
