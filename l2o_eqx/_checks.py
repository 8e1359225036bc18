"""Checks that several verbs share."""

from typing import Any

import numpy as np

from ._errors import ArgumentError

LARGEST = 2**31 - 1


def check_sizes(verb: str, **sizes: int) -> None:
    """Raises a `ValueError` that names the first size below 1, or above what compiled programs count to."""
    for name, size in sizes.items():
        if size > LARGEST:
            raise ArgumentError(
                f"`{verb}({name}=...)` must be at most {LARGEST:,}. Got {name}={size}.",
                argument=name,
                given=size,
            )
        if size < 1:
            raise ArgumentError(
                f"`{verb}({name}=...)` must be at least 1. Got {name}={size}.", argument=name, given=size
            )


def check_count(where: str, **counts: Any) -> None:
    """Raises a `ValueError` that names the first count that is no integer above 0."""
    for name, count in counts.items():
        number = np.asarray(count)
        if not (np.issubdtype(number.dtype, np.integer) and number.ndim == 0 and number >= 1):
            raise ArgumentError(
                f"`{where}({name}=...)` must be an integer, at least 1. Got {count!r}.",
                argument=name,
                given=count,
            )
