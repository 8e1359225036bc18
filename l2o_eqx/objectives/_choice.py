from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray

from .._errors import ArgumentError
from .._types import Params, Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._batch import params_shapes
from ._minimum import Minimum

T = TypeVar("T")


class ChoiceObjective(AbstractObjective):
    """One of several objectives, picked by a number: what differs in it is still one program. By `Choice`.

    `index` is the number of the one among `objectives` that it is.
    """

    objectives: tuple[AbstractObjective, ...]
    index: Int[Array, ""]

    def init(self, key: PRNGKeyArray) -> Params:
        return self._pick(lambda f: f.init(key))

    def loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return self._pick(lambda f: f.loss(params, step, key))

    def outer_loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return self._pick(lambda f: f.outer_loss(params, step, key))

    def has_outer_loss(self) -> bool:
        return any(f.has_outer_loss() for f in self.objectives)

    def minimum(self) -> Minimum | None:
        """Its value, if those of all are known; where it is, only if that is known of all, too."""
        found = [f.minimum() for f in self.objectives]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return None
        value = lax.select_n(self.index, *(one.value for one in known))
        if any(one.params is None for one in known):
            return Minimum(value)
        params = jax.tree.map(lambda *x: lax.select_n(self.index, *x), *(one.params for one in known))
        return Minimum(value, params)

    def _pick(self, function: Callable[[AbstractObjective], T]) -> T:
        return lax.switch(self.index, [lambda f=f: function(f) for f in self.objectives])


class Choice(AbstractObjectiveFamily):
    """Objectives of several families whose params have the same shapes, mixed at random in one batch.

    One program runs them all; families with params of other shapes are for a `Mixture`, which may hold
    choices. In a batch every objective is computed as if it were of each family, so that a choice is for
    functions that cost less than the optimizer's own arithmetic.

    **Arguments:**

    - `families`: by name; each is equally probable. None with a state of its objectives.

    **Raises:** `ValueError` for no families, or params of different shapes or dtypes.
    """

    families: dict[str, AbstractObjectiveFamily]

    def __init__(self, families: Mapping[str, AbstractObjectiveFamily]):
        self.families = dict(families)

    def __check_init__(self):
        if not self.families:
            raise ArgumentError("`Choice(families=...)` needs at least one family.", argument="families")
        first, *others = self.families
        expected = _described(self.families[first])
        for name in others:
            found = _described(self.families[name])
            if found != expected:
                raise ArgumentError(
                    "`Choice(families=...)`: all must have params of the same shapes and dtypes. Those of "
                    f"{first!r} are {expected[1]}, those of {name!r} {found[1]}; `Mixture` takes both.",
                    argument="families",
                )

    def sample(self, key: PRNGKeyArray) -> ChoiceObjective:
        index = jr.randint(jr.fold_in(key, 0), (), 0, len(self.families))
        objectives = tuple(family.sample(key) for family in self.families.values())
        if any(jax.tree.leaves(eqx.filter_eval_shape(lambda f: f.init_state(key), f)) for f in objectives):
            raise ArgumentError(
                "`Choice(families=...)`: objectives with a state of their own cannot be chosen among.",
                argument="families",
            )
        return ChoiceObjective(objectives, index)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        """Each of the families by itself."""
        return self.families


def _described(family: AbstractObjectiveFamily) -> tuple[Any, list[str]]:
    shapes = params_shapes(family)
    leaves = [f"{jnp.dtype(x.dtype).name}{list(x.shape)}" for x in jax.tree.leaves(shapes)]
    return jax.tree.structure(shapes), leaves
