import equinox as eqx

from .._types import Params, Scalar


class Minimum(eqx.Module):
    """What is known of an objective's minimum.

    **Fields:**

    - `value`: the lowest value, or the infimum where none is lowest.
    - `params`: one point that has it; `None` if there is none, or none that is known.
    """

    value: Scalar
    params: Params | None = None
