"""What is searched by values alone: ranges of numbers in a tree, and the box [−1, 1]^n behind them."""

import dataclasses
import math
from typing import Any

import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float

from ._errors import ArgumentError, check


@dataclasses.dataclass(frozen=True)
class Box:
    """The range of a number, or of all entries of an array.

    **Arguments:**

    - `low`, `high`: the ends, which belong to it.
    - `log`: whether it is searched on a logarithmic scale: as many points between 1 and 10 as between 10 and
        100.
    - `integer`: whether it has whole numbers alone. The search is among all numbers, which are rounded; each
        whole number has its equal share of them.
    - `shape`: of an array; `()` for a number.

    **Raises:** `ValueError` for ends that are not finite, in the wrong order, or not above 0 with `log`; or
        not whole with `integer`.
    """

    low: float | int
    high: float | int
    log: bool = False
    integer: bool = False
    shape: tuple[int, ...] = ()

    def __post_init__(self):
        given = f"Got low={self.low}, high={self.high}."
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        check(f"`Box(low=..., high=...)` must be finite. {given}", low=(self.low, finite))
        check(f"`Box(low=..., high=...)`: low must be below high. {given}", high=(self.high, self.low < self.high))
        check(f"`Box(log=True)` needs ends above 0. {given}", low=(self.low, self.low > 0 or not self.log))
        whole = float(self.low).is_integer() and float(self.high).is_integer()
        check(f"`Box(integer=True)` needs whole ends. {given}", low=(self.low, whole or not self.integer))

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return math.prod(self.shape)

    def decode(self, unit: Float[np.ndarray, " size"]) -> Any:
        """The number, a Python one, or the NumPy array that coordinates in [−1, 1] stand for."""
        low, high = self._scaled_ends()
        values = low + (np.asarray(unit, np.float64) + 1) / 2 * (high - low)
        values = np.exp(values) if self.log else values
        values = np.clip(np.rint(values) if self.integer else values, self.low, self.high)
        values = values.astype(np.int64 if self.integer else np.float64).reshape(self.shape)
        return values if self.shape else values.item()

    def encode(self, value: Any) -> Float[np.ndarray, " size"]:
        """The inverse of `decode`; of a whole number, the middle of what is rounded to it."""
        values = np.asarray(value, np.float64).reshape(-1)
        low, high = self._scaled_ends()
        scaled = np.log(values) if self.log else values
        return np.clip(2 * (scaled - low) / (high - low) - 1, -1, 1)

    def has(self, value: Any) -> bool:
        """Whether all entries lie in the range, up to rounding."""
        values = np.asarray(value, np.float64)
        slack = 1e-9 * max(abs(self.low), abs(self.high))
        return bool(np.all((values >= self.low - slack) & (values <= self.high + slack)))

    def _scaled_ends(self) -> tuple[float, float]:
        # Half a step more on both sides, so that the ends are rounded to from as wide a range as others.
        more = 0.5 if self.integer else 0.0
        ends = self.low - more, self.high + more
        return (math.log(ends[0]), math.log(ends[1])) if self.log else ends


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched: any tree of dictionaries, lists, tuples or modules with a `Box` for every number.

        Space({"learning_rate": Box(1e-5, 1.0, log=True), "width": Box(8, 256, log=True, integer=True)})

    Behind it is the box [−1, 1]^n, in which optimizers without gradients search.

    **Arguments:**

    - `tree`: of boxes.

    **Raises:** `ValueError` for a leaf that is no `Box`, or none at all.
    """

    tree: Any

    def __post_init__(self):
        leaves = jtu.tree_leaves_with_path(self.tree, is_leaf=_is_box)
        check("`Space(tree=...)` needs at least one `Box`.", tree=(self.tree, bool(leaves)))
        for path, leaf in leaves:
            if not _is_box(leaf):
                where = jtu.keystr(path, simple=True, separator=".") or "the tree"
                raise ArgumentError(
                    f"`Space(tree=...)`: every leaf must be a `Box`, but {where} is {leaf!r:.60}.",
                    argument="tree",
                    given=leaf,
                )

    @property
    def boxes(self) -> list[Box]:
        """The boxes in order."""
        return jtu.tree_leaves(self.tree, is_leaf=_is_box)

    @property
    def dim(self) -> int:
        """n, how many numbers there are to choose."""
        return sum(box.size for box in self.boxes)

    def decode(self, unit: Float[np.ndarray, " dim"]) -> Any:
        """The point that coordinates in [−1, 1] stand for: a tree of Python numbers and NumPy arrays.

        **Arguments:**

        - `unit`: the coordinates.
        """
        treedef = jtu.tree_structure(self.tree, is_leaf=_is_box)
        parts = np.split(np.asarray(unit), np.cumsum([box.size for box in self.boxes])[:-1])
        return treedef.unflatten([box.decode(part) for box, part in zip(self.boxes, parts, strict=True)])

    def encode(self, point: Any) -> Float[np.ndarray, " dim"]:
        """The inverse of `decode`.

        **Arguments:**

        - `point`: a tree like the space's, of numbers and arrays.

        **Raises:** `ValueError` for a tree of another structure, arrays of other shapes, or values outside of
        their box.
        """
        treedef = jtu.tree_structure(self.tree, is_leaf=_is_box)
        try:
            values = treedef.flatten_up_to(point)
        except ValueError as error:
            message = f"`Space.encode(point=...)`: not the tree of this space: {error}"
            raise ArgumentError(message, argument="point", given=point) from None
        for box, value in zip(self.boxes, values, strict=True):
            fits = np.shape(value) == box.shape and box.has(value)
            check(
                f"`Space.encode(point=...)`: {value!r:.60} is not in {box}.",
                point=(point, fits),
            )
        return np.concatenate([box.encode(value) for box, value in zip(self.boxes, values, strict=True)])


def _is_box(x: Any) -> bool:
    return isinstance(x, Box)
