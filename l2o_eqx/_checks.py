"""Checks that several verbs share."""

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
