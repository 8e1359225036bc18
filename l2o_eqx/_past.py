"""What a training remembers of its way, beside where it stands, so that one that goes on tells the same."""

import equinox as eqx
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Int, PRNGKeyArray

from ._errors import ArgumentError


class Watched(eqx.Module):
    """What a `GradientWatch` has seen.

    **Fields:**

    - `reached`: which meta-parameters had a gradient that was not zero.
    - `num_updates`: meta-updates seen; `to_come`: families without a turn yet.
    - `judged`: whether it has told already; `found`: the paths that it told of.
    """

    reached: Bool[np.ndarray, " leaves"]
    num_updates: int
    to_come: tuple[str, ...]
    judged: bool = False
    found: tuple[str, ...] = ()


class Past(eqx.Module):
    """The way of a training up to a state.

    **Fields:**

    - `key`: of the training.
    - `failed`: of each objective that was not finite its super epoch, its restart, −1 without restarts, and
        its number in the super epoch.
    - `watched`: whose gradients are zero; `None` where nobody looks.
    - `stage`: the number of the horizon of a curriculum, of which the state is.
    """

    key: PRNGKeyArray
    failed: Int[np.ndarray, "failed 3"]
    watched: Watched | None = None
    stage: int = 0

    @classmethod
    def none_yet(cls, key: PRNGKeyArray) -> "Past":
        """That of a training before its first super epoch."""
        return cls(key, np.zeros((0, 3), np.int64))

    def check_key(self, verb: str, key: PRNGKeyArray) -> None:
        """Raises an `ArgumentError` unless `key` is the training's own."""
        if not np.array_equal(_numbers(self.key), _numbers(key)):
            raise ArgumentError(
                f"`{verb}(state=...)` does not fit: it is of a training with another `key`. Give that "
                "one, to go on where it ended, or begin anew with `optimizer=state.optimizer`.",
                argument="key",
                given=key,
            )


def _numbers(key):
    return np.asarray(jr.key_data(key))
