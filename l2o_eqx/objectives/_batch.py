from typing import Any

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PyTree

from .._devices import Placement
from .._errors import ArgumentError
from .._types import Keys, State
from ._base import AbstractObjective, AbstractObjectiveFamily


class ObjectiveBatch(eqx.Module):
    """Many objectives of one family in parallel; what they share is held once.

    Made by `sample_objectives`. Inside a function batched over `own`, call `select(own)` to get one
    objective. `placement` says what of the batch is on this device, if several share it: these objectives, or
    some coordinates of all of them.
    """

    own: PyTree
    shared: PyTree
    placement: Placement | None = None

    @property
    def coordinate_axis(self) -> str | None:
        """The name of what the coordinates are shared out over, if they are."""
        return None if self.placement is None else self.placement.coordinate_axis

    def mean_over_devices(self, tree: PyTree) -> PyTree:
        """Means over the objectives of this device as means over those of all."""
        return tree if self.placement is None else self.placement.mean(tree)

    @property
    def has_outer_loss(self) -> bool:
        """Whether its objectives have an outer loss other than their loss."""
        return self.shared is not None and self.select(self.own).has_outer_loss()

    @property
    def is_judged_by_outer_loss(self) -> bool:
        """Whether evaluations show that of its objectives in place of their loss."""
        return self.shared is not None and self.select(self.own).is_judged_by_outer_loss()

    def select(self, own: PyTree, state: State = None) -> AbstractObjective:
        """One objective; in a state of its run, if it has any."""
        objective = eqx.combine(own, self.shared)
        return objective if state is None else objective.with_state(state)


def sample_objectives(
    family: AbstractObjectiveFamily, keys: Keys, *, placement: Placement | None = None
) -> ObjectiveBatch:
    """Draws one objective per key; `placement` as in `ObjectiveBatch`.

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
    return ObjectiveBatch(own, shared, placement)


def params_shapes(family: AbstractObjectiveFamily) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the params that all objectives of a family have; nothing is computed.

    **Raises:** `ArgumentError` for what is no family, or draws what is no objective.
    """
    _check(family, AbstractObjectiveFamily, "A family")
    what = f"What `{type(family).__name__}.sample` returns"

    def first_params(key):
        objective = family.sample(key)
        _check(objective, AbstractObjective, what)
        return objective.init(key)

    return eqx.filter_eval_shape(first_params, jr.key(0))


def _check(given: Any, kind: type, what: str) -> None:
    if not isinstance(given, kind):
        raise ArgumentError(
            f"{what} must be an `{kind.__name__}`. Got {type(given).__name__}.",
            argument="family",
            given=given,
        )


def count_coordinates(family: AbstractObjectiveFamily) -> int:
    """How many coordinates the objectives of a family have."""
    return sum(leaf.size for leaf in jax.tree.leaves(params_shapes(family)))
