"""What is searched by values alone: ranges of numbers in a tree, and the box [−1, 1]^n behind them."""

import dataclasses
import functools
import math
from typing import Any

import jax.tree_util as jtu
import numpy as np
from jaxtyping import Bool, Float

from ._errors import ArgumentError, check

# Twice that is still a number.
_LARGEST = 1e300


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

    **Raises:** `ValueError` for ends that are not finite, in the wrong order, not above 0 with `log`, or not
        whole with `integer`.
    """

    low: float | int
    high: float | int
    log: bool = False
    integer: bool = False
    shape: tuple[int, ...] = ()

    def __post_init__(self):
        low, high = self.low, self.high
        given = f"Got low={low!s:.40}, high={high!s:.40}."
        finite = abs(low) <= _LARGEST and abs(high) <= _LARGEST
        check(f"`Box(low=..., high=...)` must be finite, and at most {_LARGEST}. {given}", low=(low, finite))
        check(f"`Box(low=..., high=...)`: low must be below high. {given}", high=(high, low < high))
        check(f"`Box(log=True, low=...)` needs ends above 0. {given}", low=(low, low > 0 or not self.log))
        whole = float(low).is_integer() and float(high).is_integer()
        check(f"`Box(integer=True, low=...)` needs whole ends. {given}", low=(low, whole or not self.integer))

    def scaled_ends(self) -> tuple[float, float]:
        """The ends on the scale that is searched."""
        # Half a step more on both sides, so that the ends are rounded to from as wide a range as others.
        more = 0.5 if self.integer else 0.0
        ends = float(self.low - more), float(self.high + more)
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

    @functools.cached_property
    def boxes(self) -> list[Box]:
        """The boxes in order."""
        return jtu.tree_leaves(self.tree, is_leaf=_is_box)

    @property
    def dim(self) -> int:
        """n, how many numbers there are to choose."""
        return len(self._numbers.low)

    @functools.cached_property
    def _treedef(self):
        return jtu.tree_structure(self.tree, is_leaf=_is_box)

    @functools.cached_property
    def _numbers(self):
        return _Numbers.of(self.boxes)

    def decode(self, unit: Float[np.ndarray, " dim"]) -> Any:
        """The point that coordinates in [−1, 1] stand for: a tree of Python numbers and NumPy arrays.

        **Arguments:**

        - `unit`: the coordinates.
        """
        values, leaves, end = self._numbers.decode(unit), [], 0
        for box in self.boxes:
            begin, end = end, end + math.prod(box.shape)
            own = values[begin:end].reshape(box.shape).astype(np.int64 if box.integer else np.float64)
            leaves.append(own if box.shape else own.item())
        return self._treedef.unflatten(leaves)

    def encode(self, point: Any) -> Float[np.ndarray, " dim"]:
        """The inverse of `decode`; of a whole number, the middle of what is rounded to it.

        **Arguments:**

        - `point`: a tree like the space's, of numbers and arrays.

        **Raises:** `ValueError` for a tree of another structure, arrays of other shapes, or values outside of
            their box.
        """
        try:
            leaves = self._treedef.flatten_up_to(point)
        except ValueError as error:
            message = f"`Space.encode(point=...)`: not a tree like that of the space: {error}"
            raise ArgumentError(message, argument="point", given=point) from None
        for box, leaf in zip(self.boxes, leaves, strict=True):
            fits = np.shape(leaf) == box.shape
            message = f"`Space.encode(point=...)`: {leaf!r:.60} must have the shape of {box}."
            check(message, point=(point, fits))
        values = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
        inside = self._numbers.contain(values)
        if not np.all(inside):
            raise ArgumentError(
                f"`Space.encode(point=...)`: {point!r:.120} is not in the space: coordinate "
                f"{int(np.argmin(inside))} is {values[np.argmin(inside)]}.",
                argument="point",
                given=point,
            )
        return self._numbers.encode(values)


@dataclasses.dataclass(frozen=True)
class _Numbers:
    # Of all numbers of a space, as arrays: one by one in Python, they take longer than the network.
    low: Float[np.ndarray, " dim"]
    high: Float[np.ndarray, " dim"]
    scaled_low: Float[np.ndarray, " dim"]
    scaled_high: Float[np.ndarray, " dim"]
    log: Bool[np.ndarray, " dim"]
    integer: Bool[np.ndarray, " dim"]

    @classmethod
    def of(cls, boxes: list[Box]) -> "_Numbers":
        rows = [
            (box.low, box.high, *box.scaled_ends(), box.log, box.integer)
            for box in boxes
            for _ in range(math.prod(box.shape))
        ]
        low, high, scaled_low, scaled_high, log, integer = np.asarray(rows, np.float64).reshape(-1, 6).T
        return cls(low, high, scaled_low, scaled_high, log > 0, integer > 0)

    def decode(self, unit):
        values = self.scaled_low + (np.asarray(unit, np.float64) + 1) / 2 * (
            self.scaled_high - self.scaled_low
        )
        np.exp(values, out=values, where=self.log)
        np.rint(values, out=values, where=self.integer)
        return np.clip(values, self.low, self.high)

    def encode(self, values):
        scaled = np.clip(values, self.low, self.high)
        np.log(scaled, out=scaled, where=self.log)
        unit = 2 * (scaled - self.scaled_low) / (self.scaled_high - self.scaled_low) - 1
        return np.clip(unit, -1, 1)

    def contain(self, values):
        slack = 1e-9 * np.maximum(np.abs(self.low), np.abs(self.high))
        return (values >= self.low - slack) & (values <= self.high + slack)


def _is_box(x: Any) -> bool:
    return isinstance(x, Box)
