import heapq
import itertools
from collections.abc import Iterator, Mapping
from typing import NoReturn

import equinox as eqx
import jax.random as jr
from jaxtyping import PRNGKeyArray

from .._errors import ArgumentError
from ._base import AbstractObjectiveFamily


class Mixture(AbstractObjectiveFamily):
    """Several families to train one optimizer on, with params of different shapes.

    Every super epoch is of one family, which the host chooses; each family is one compiled program, or one
    for each length of a super epoch. In any stretch of a training every family has had its share of the super
    epochs to within two, in an order that is drawn.

    Only `meta_train` and `Validation` take a mixture: there is no objective of it, and no comparison. Ask one
    of its `families` for these.

    **Arguments:**

    - `families`: by name.
    - `weights`: how often each is chosen, by name, relative to the others; by default all alike. To a
        `Validation` they say how much each counts.

    **Raises:** `ValueError` for no families, a mixture among them, and weights that are of others or not
    above zero.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813),
    sec. 4.
    """

    families: dict[str, AbstractObjectiveFamily]
    shares: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self, families: Mapping[str, AbstractObjectiveFamily], weights: Mapping[str, float] | None = None
    ):
        self.families = dict(families)
        known = dict.fromkeys(self.families, 1.0) if weights is None else weights
        if not self.families or any(isinstance(family, Mixture) for family in self.families.values()):
            raise ArgumentError(
                "`Mixture(families=...)` needs at least one family, and none that is a mixture itself. "
                f"Got {', '.join(self.families) or 'none'}.",
                argument="families",
            )
        if known.keys() != self.families.keys() or not all(weight > 0 for weight in known.values()):
            raise ArgumentError(
                f"`Mixture(weights=...)` needs a number above zero for each of {', '.join(self.families)}. "
                f"Got {dict(known)}.",
                argument="weights",
                given=known,
                possible=self.families,
            )
        total = sum(known.values())
        self.shares = tuple(float(known[name] / total) for name in self.families)

    def sample(self, key: PRNGKeyArray) -> NoReturn:
        del key
        raise ArgumentError(
            "`Mixture`: its objectives have params of different shapes; take one of its `families`, "
            f"{', '.join(self.families)}.",
            argument="family",
            given=self,
            possible=self.families,
        )

    def turns(self, count: int, key: PRNGKeyArray) -> list[str]:
        """Which family each of `count` super epochs is of; the first ones are the same for a larger count.

        Every family has its turns at times 1/share apart, each moved by a part of that which is drawn.
        """
        names = list(self.families)
        times = [self._times(number, jr.fold_in(key, number), count) for number in range(len(names))]
        return [names[number] for _, number in itertools.islice(heapq.merge(*times), count)]

    def _times(self, number: int, key: PRNGKeyArray, count: int) -> Iterator[tuple[float, int]]:
        # In blocks of one size: the first turns must not depend on how many there are.
        period, size = 1 / self.shares[number], 64
        for block in range(1 + count // size):
            offsets = jr.uniform(jr.fold_in(key, block), (size,)).tolist()
            for place, offset in enumerate(offsets):
                yield (block * size + place + offset) * period, number


def families_of(family: AbstractObjectiveFamily) -> dict[str, AbstractObjectiveFamily]:
    """Those of a mixture by name; a family by itself under the empty name."""
    return family.families if isinstance(family, Mixture) else {"": family}
