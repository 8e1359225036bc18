from typing import Literal

import equinox as eqx
import jax
import jax.random as jr
from jax import lax
from jaxtyping import PyTree

from .._types import Keys
from ._base import AbstractObjective, AbstractObjectiveFamily

# What the devices of a mesh share out: objectives to each, or the coordinates of all of them.
Spread = Literal["objectives", "coordinates"]

DEVICES = "devices"
"""Name of the mesh's axis."""


class ObjectiveBatch(eqx.Module):
    """Many objectives of one family side by side; what they share is held once.

    Made by `sample_objectives`. Inside a function batched over `own`, call `select(own)` to get one
    objective. With `spread` the batch is used inside `shard_map` over the axis `DEVICES`: its
    `"objectives"` are those of one device, or it is the same on all and each device updates its own
    `"coordinates"`.
    """

    own: PyTree
    shared: PyTree
    spread: Spread | None = eqx.field(static=True, default=None)

    @property
    def coordinate_axis(self) -> str | None:
        """The mesh axis that the coordinates are spread over, if they are."""
        return DEVICES if self.spread == "coordinates" else None

    def mean_over_devices(self, tree: PyTree) -> PyTree:
        """Means over the objectives of this device as means over those of all."""
        return lax.pmean(tree, DEVICES) if self.spread == "objectives" else tree

    @property
    def has_outer_loss(self) -> bool:
        """Whether its objectives have an outer loss other than their loss."""
        return self.shared is not None and self.select(self.own).has_outer_loss()

    def select(self, own: PyTree) -> AbstractObjective:
        return eqx.combine(own, self.shared)


def sample_objectives(
    family: AbstractObjectiveFamily, keys: Keys, *, spread: Spread | None = None
) -> ObjectiveBatch:
    """Draws one objective per key; `spread` as in `ObjectiveBatch`.

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
    return ObjectiveBatch(own, shared, spread)


def params_shapes(family: AbstractObjectiveFamily) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the params that all objectives of a family have; nothing is computed."""
    return eqx.filter_eval_shape(lambda key: family.sample(key).init(key), jr.key(0))


def count_coordinates(family: AbstractObjectiveFamily) -> int:
    """How many coordinates the objectives of a family have."""
    return sum(leaf.size for leaf in jax.tree.leaves(params_shapes(family)))
