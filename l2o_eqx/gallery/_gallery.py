"""What the gallery holds. Only `pretrained` of a name starts JAX."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .._errors import ArgumentError

if TYPE_CHECKING:
    from ..optimizers import AbstractOptimizer

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The names of the optimizers in the gallery, in the order of `notes.toml`."""
    return tuple(_notes())


@overload
def pretrained(name: None = None) -> dict[str, str]: ...


@overload
def pretrained(name: str) -> "AbstractOptimizer": ...


def pretrained(name: str | None = None) -> "AbstractOptimizer | dict[str, str]":
    """A trained optimizer of the gallery, ready for `as_optax`, `evaluate` and all other verbs.

    Read its `gallery.card`, or `l2o gallery show NAME`, for what it is good for and what not. Nothing is
    downloaded.

    **Arguments:**

    - `name`: which one. If not given, what there is.

    **Returns:** the optimizer, whose meta-parameters are float32 arrays; without a name, one line on each
    optimizer by name.

    **Raises:** `ArgumentError` for an unknown name, with those that there are.
    """
    if name is None:
        return {one: str(notes["summary"]) for one, notes in _notes().items()}
    path = file_of(name)
    from .._serialise import load

    return load(path)


def file_of(name: str) -> Path:
    """The file of the optimizer called `name`, for `load` and `load_metadata`.

    **Raises:** `ArgumentError` for an unknown name.
    """
    return _FOLDER / f"{_known(name)}.safetensors"


def recipe_of(name: str) -> Path:
    """The settings that the optimizer called `name` was trained with; `l2o train --config` takes them.

    **Raises:** `ArgumentError` for an unknown name.
    """
    return _FOLDER / f"{_known(name)}.toml"


def card(name: str) -> dict[str, Any]:
    """What is known of the optimizer called `name`, as it was measured when it was made.

    **Returns:** `summary`, `good_for`, `not_for` and `failures`, in words; `optimizer`, its class;
    `num_meta_parameters`; `command` and `seed`; `cost`, with seconds and the machine; `versions`; `training`,
    how that went; `comparison`, with all baselines tuned on the same family; `sha256` of the file.

    **Raises:** `ArgumentError` for an unknown name.
    """
    return json.loads((_FOLDER / f"{_known(name)}.json").read_text(encoding="utf-8"))


def notes_on(name: str) -> dict[str, Any]:
    """What people have written for a card: `summary`, and lists of `good_for`, `not_for` and `failures`.

    **Raises:** `ArgumentError` for an unknown name.
    """
    return _notes()[_known(name)]


def _notes() -> dict[str, dict[str, Any]]:
    return tomllib.loads((_FOLDER / "notes.toml").read_text(encoding="utf-8"))


def _known(name: str) -> str:
    known = names()
    if name not in known:
        raise ArgumentError(
            f"`pretrained({name!r})`: the gallery has {', '.join(map(repr, known))}.",
            argument="name",
            given=name,
            possible=known,
        )
    return name
