"""Checks that several verbs share."""

from ._errors import ArgumentError


def check_sizes(verb: str, **sizes: int) -> None:
    """Raises a `ValueError` that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ArgumentError(
                f"`{verb}({name}=...)` must be at least 1. Got {name}={size}.", argument=name, given=size
            )
