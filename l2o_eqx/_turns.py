"""What each super epoch of a training is of: which family, which strategy, how many steps."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ._devices import Placement, Restarts
from ._meta_step import MetaState, placed
from .objectives import AbstractObjectiveFamily, Mixture
from .objectives._mixture import families_of
from .strategies import AbstractUpdateStrategy

# Far from the numbers of super epochs, and not those of the other draws.
_LENGTHS = 2**31 - 3
_FAMILIES = 2**31 - 8
_STRATEGIES = 2**31 - 9


class Turn(NamedTuple):
    """One super epoch: the name of its family, empty if there is one alone, its strategy and its steps.

    `updates` is how many it makes, if the strategy does not say.
    """

    family: str
    strategy: AbstractUpdateStrategy
    num_steps: int
    updates: int | None = None

    @property
    def num_updates(self) -> int:
        """How many meta-updates it makes."""
        return self.strategy.num_updates(self.num_steps) if self.updates is None else self.updates

    def is_like(self, other: "Turn") -> bool:
        """Whether both are the same program."""
        same = (self.family, self.num_steps) == (other.family, other.num_steps)
        return same and self.strategy is other.strategy


def turns_of(
    family: AbstractObjectiveFamily,
    strategy: AbstractUpdateStrategy,
    lengths: Sequence[int],
    super_epochs: int,
    key: PRNGKeyArray,
) -> list[Turn]:
    """Those of a whole training; the same for the same key.

    **Arguments:**

    - `family`: one, or a `Mixture`.
    - `strategy`: has a say in how it and the length differ from super epoch to super epoch.
    - `lengths`: of super epochs, from which each draws its own.
    """
    drawn = super_epoch_lengths(lengths, super_epochs, key)
    names = [""] * super_epochs
    if isinstance(family, Mixture):
        names = family.turns(super_epochs, jr.fold_in(key, _FAMILIES))
    chosen = strategy.chosen(drawn, key=jr.fold_in(key, _STRATEGIES))
    return [Turn(name, *one) for name, one in zip(names, chosen, strict=True)]


def super_epoch_lengths(lengths: Sequence[int], super_epochs: int, key: PRNGKeyArray) -> list[int]:
    """The length of each super epoch of a training, drawn from `lengths`; the same for the same key."""
    if len(lengths) == 1:
        return [lengths[0]] * super_epochs
    # Not out of the super epochs' own keys, which their starting points come from.
    key = jr.fold_in(key, _LENGTHS)

    def draw(super_epoch):
        return jr.randint(jr.fold_in(key, super_epoch), (), 0, len(lengths))

    return [lengths[i] for i in jax.vmap(draw)(np.arange(super_epochs)).tolist()]


class PlacedFamilies:
    """The families of a training, each on the devices once, with the state wherever the next one wants it.

    **Arguments:**

    - `family`: one, or a `Mixture`.
    - `strategy`, `num_objectives`, `runs`: as of `placed`.
    """

    def __init__(
        self,
        family: AbstractObjectiveFamily,
        strategy: AbstractUpdateStrategy,
        num_objectives: int,
        runs: Restarts,
    ):
        self.families = families_of(family)
        self._place = functools.partial(placed, strategy=strategy, num_objectives=num_objectives, runs=runs)
        self._placed: dict[str, tuple[AbstractObjectiveFamily, Placement]] = {}
        self._last: Placement | None = None

    def at(self, name: str, state: MetaState) -> tuple[MetaState, AbstractObjectiveFamily, Placement]:
        """The first arguments of `compiled_step`, for a super epoch of the family of this name."""
        if name not in self._placed:
            state, family, placement = self._place(state, self.families[name])
            self._placed[name] = family, placement
        elif self._last != self._placed[name][1]:
            state, *_ = self._place(state, self._placed[name][0])
        family, placement = self._placed[name]
        self._last = placement
        return state, family, placement

    def fetch(self, state: MetaState) -> MetaState:
        """The last state back from the devices."""
        return state if self._last is None else self._last.fetch(state)
