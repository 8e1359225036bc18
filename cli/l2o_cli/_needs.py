"""Settings that mean something only next to others; alone they would be ignored without a word."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ._config import RunConfig
from ._errors import UsageError, label
from ._fields import Path, leaves, show
from ._resolve import Layer

_SWITCH = ("pretraining", "enabled")
_VALIDATE = ("validation", "every")
_ANY = range(1, 2**31)
# What a setting needs: another setting, and the values it may have. What comes first is asked first.
_NEEDS: list[tuple[Path, Path, Sequence[Any]]] = [
    *((path, _SWITCH, (True,)) for path in leaves() if path[0] == _SWITCH[0] and path != _SWITCH),
    *((path, _VALIDATE, _ANY) for path in leaves() if path[0] == _VALIDATE[0] and path != _VALIDATE),
    (("pretraining", "omega"), ("pretraining", "loss"), ("sign-weighted",)),
    (("meta", "norm_floor"), ("meta", "normalization"), ("tensor", "block", "global")),
    (("meta", "clip_norm"), ("meta", "normalization"), ("clip",)),
    (("meta", "final_share"), ("meta", "decay"), ("cosine",)),
]


def refuse_ignored(config: RunConfig, given: Iterable[Layer]) -> None:
    """Refuses options that the rest of the configuration leaves without a meaning.

    **Arguments:**

    - `config`: the whole configuration.
    - `given`: the layers of `--set` and of the options. A file may have such settings: that of every run has
        all there are.

    **Raises:** `UsageError` for the first such option.
    """
    layers = list(given)
    for path, other, values in _NEEDS:
        found = _at(config.model_dump(), other)
        for value in _values(layers, path):
            if found not in values:
                raise UsageError(f"{label(path)}: got {show(value)!r}, but {_missing(other, found, values)}")


def _missing(other: Path, found: Any, values: Sequence[Any]) -> str:
    if not found:
        return f"without {label(other)} there is no {other[0]}"
    possible = " or ".join(map(repr, values))
    return f"{label(other)} is {found!r}; it has a meaning with {possible} only"


def _values(layers: Iterable[Layer], path: Path) -> Iterator[Any]:
    for layer in layers:
        value = _at(layer, path)
        if value is not None:
            yield value


def _at(table: Any, path: Path) -> Any:
    for name in path:
        table = table.get(name) if isinstance(table, dict) else None
    return table
