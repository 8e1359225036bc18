"""The error that says which argument is to blame."""

from collections.abc import Iterable
from typing import Any


class ArgumentError(ValueError):
    """An argument that cannot be what it is; the message says so in one line, without this class's help.

    **Arguments:**

    - `message`: for people.

    **Fields:**

    - `argument`: the name of the one to blame, as in the signature; `None` if there is no single one.
    - `given`: its value.
    - `possible`: the values it may have, if they can be counted; `None` otherwise.
    """

    argument: str | None
    given: Any
    possible: tuple[Any, ...] | None

    # Defaults, because an error that travels between processes is made again from its message alone.
    def __init__(
        self,
        message: str,
        argument: str | None = None,
        given: Any = None,
        possible: Iterable[Any] | None = None,
    ):
        super().__init__(message)
        self.argument, self.given = argument, given
        self.possible = None if possible is None else tuple(possible)


class ZeroGradientWarning(UserWarning):
    """Meta-parameters whose meta-gradient is always zero, which `meta_train` cannot train."""


class UntrainedNumberWarning(UserWarning):
    """Python numbers in an optimizer, which `meta_train` leaves as they are: it trains arrays."""


class NanWarning(UserWarning):
    """Where the first NaN of a training arose, with `debug_nans`."""


class SkippedUpdatesWarning(UserWarning):
    """All meta-updates of the first super epoch were left out, because no meta-gradient was finite."""


def check(message: str, **arguments: tuple[Any, bool]) -> None:
    """Raises an `ArgumentError` for the first argument that is not as it must be.

    **Arguments:**

    - `message`: of the error, for all of them.
    - `arguments`: by name, the value and whether it may be.
    """
    for name, (value, fits) in arguments.items():
        if not fits:
            raise ArgumentError(message, argument=name, given=value)
