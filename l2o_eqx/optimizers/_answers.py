"""What the networks of an optimizer saw and answered in one step."""

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

# One number for every group of leaves.
_PerGroup = Float[Array, " groups"]


class Answers(eqx.Module):
    """What the networks of an optimizer saw and answered in one step, group by group.

    A group is what a network runs once for: a tensor, a layer or the whole tree. A number that there is not,
    such as a curvature before any was measured, is NaN.

    **Fields:**

    - `groups`: their names, e.g. `"layers.0.weight"`.
    - `seen_names`, `answered_names`: of the features and of the answers.
    - `seen`, `answered`: the numbers; axes in front are of steps or objectives.
    - `symbols`: what the letters in the names stand for, for people who look at a picture.
    """

    groups: tuple[str, ...] = eqx.field(static=True)
    seen_names: tuple[str, ...] = eqx.field(static=True)
    answered_names: tuple[str, ...] = eqx.field(static=True)
    seen: Float[Array, "*leading features groups"]
    answered: Float[Array, "*leading answers groups"]
    symbols: str = eqx.field(static=True, default="")

    @classmethod
    def of(
        cls,
        groups: Sequence[str],
        seen: Mapping[str, _PerGroup],
        answered: Mapping[str, _PerGroup],
        symbols: str = "",
    ) -> "Answers":
        """Those of one step from its features and answers by name, at least one of each."""
        return cls(
            tuple(groups),
            tuple(seen),
            tuple(answered),
            jnp.stack([*seen.values()]),
            jnp.stack([*answered.values()]),
            symbols,
        )


def joined(parts: Mapping[str, Answers | None]) -> Answers | None:
    """Those of optimizers that each have a part of the params, by the name of that part; `None` if all are.

    What one of them has and another has not is NaN for the other.
    """
    told = {name: part for name, part in parts.items() if part is not None}
    if not told:
        return None

    def all_names(field: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in told.values() for name in getattr(part, field)))

    def rows(field: str, names: tuple[str, ...]) -> Float[Array, "names groups"]:
        columns = []
        for part in told.values():
            own = dict(zip(getattr(part, f"{field}_names"), getattr(part, field), strict=True))
            nothing = jnp.full(len(part.groups), jnp.nan, getattr(part, field).dtype)
            columns.append(jnp.stack([own.get(name, nothing) for name in names]))
        return jnp.concatenate(columns, axis=1)

    # Paths of leaves are those in the whole tree; a group of all leaves is that of the part.
    groups = [name if group == "all" else group for name, part in told.items() for group in part.groups]
    seen, answered = all_names("seen_names"), all_names("answered_names")
    symbols = " ".join(dict.fromkeys(part.symbols for part in told.values() if part.symbols))
    return Answers(tuple(groups), seen, answered, rows("seen", seen), rows("answered", answered), symbols)
