"""What an optimizer is tried on to see how far it generalizes."""

import math
from typing import NamedTuple

from .objectives import MNIST, AbstractObjectiveFamily, Quadratic, Rescaled, Scaled
from .objectives._wrapper import AbstractWrapper


class Variation(NamedTuple):
    """One thing that differs from what an optimizer was trained on.

    **Fields:**

    - `family`: what it is run on.
    - `horizon`: so many times the number of steps.
    - `rates`: baselines are tuned over the learning rates and, beside them, so many times these, where the
        scale asks for other ones.
    - `objectives`: so many times the number of objectives, for tuning too; fewer where each costs much.
    """

    family: AbstractObjectiveFamily
    horizon: float = 1.0
    rates: float = 1.0
    objectives: float = 1.0


AS_TRAINED = "as trained"


def variations(family: AbstractObjectiveFamily) -> dict[str, Variation]:
    """What `generalization_card` tries if it is not told otherwise.

    - the family itself, at its own horizon, 3 times and 10 times that;
    - what `family.variations()` offers: other dimensions of `Quadratic`; other widths, one layer more and
        the other activations of `MNIST`'s networks; nothing for a family that does not say;
    - scales: the loss times 1e-3 and 1e3; params that are 0.1 and 10 times as large, or each coordinate's
        by a factor of its own from e^(−3) to e^3;
    - another family, where the family itself offers something: quadratics for networks, and a small network
        on the digits of the package for quadratics.

    **Arguments:**

    - `family`: the one trained on. Yours may have a method `variations` of its own.

    **Returns:** variations by name.
    """
    related = family.variations()
    found = {
        AS_TRAINED: Variation(family),
        "horizon × 3": Variation(family, horizon=3),
        "horizon × 10": Variation(family, horizon=10),
        **{name: Variation(other) for name, other in related.items()},
        **_scales(family),
    }
    return found | _other_family(family) if related else found


def _scales(family: AbstractObjectiveFamily) -> dict[str, Variation]:
    # Rates of gradient descent grow with the square of the params and fall with the scale of the loss.
    return {
        "loss × 0.001": Variation(Rescaled(family, loss=1e-3), rates=1e3),
        "loss × 1000": Variation(Rescaled(family, loss=1e3), rates=1e-3),
        "params × 0.1": Variation(Rescaled(family, params=0.1), rates=1e-2),
        "params × 10": Variation(Rescaled(family, params=10), rates=1e2),
        "params × 0.05 to 20": Variation(Scaled(family, 1, 1, (math.exp(-3), math.exp(3)))),
    }


def _other_family(family: AbstractObjectiveFamily) -> dict[str, Variation]:
    while isinstance(family, AbstractWrapper):
        family = family.family
    if isinstance(family, Quadratic):
        # Small, since a card of quadratics takes seconds else.
        digits = MNIST((8,), batch_size=32, data="embedded")
        return {"other family: mnist": Variation(digits, objectives=0.25)}
    return {"other family: quadratic": Variation(Quadratic())}
