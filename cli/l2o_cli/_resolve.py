"""From presets, a file, `--set` and options to one checked configuration, and back to TOML."""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from ._config import RunConfig
from ._errors import UsageError, describe, first_of, label
from ._fields import members_at
from ._presets import DEFAULT_OBJECTIVE, DEFAULT_PRESET, FORMER_PRESET, PRESETS

Layer = dict[str, Any]

# Two ways to say how long a super epoch is: a layer that has one takes the other out of those below.
LENGTHS = ("num_steps", "num_epochs")

# Settings of files of earlier versions, by table, and what they are called today.
OLD_NAMES = {"strategy": {"lookahead": "include_final_loss"}}


def resolve(layers: Iterable[Layer]) -> RunConfig:
    """One configuration out of several layers, later ones over earlier ones, all over the presets.

    **Arguments:**

    - `layers`: nested tables, each with some of the settings.

    **Raises:** `UsageError` for what the models do not allow.
    """
    data: Layer = {}
    for layer in map(_with_names_of_today, layers):
        _refuse_other_preset(data, layer)
        data = merge(_without_other_length(data, layer), layer)
    if all(name in _meta(data) for name in LENGTHS):
        steps, epochs = (label(("meta", name)) for name in LENGTHS)
        raise UsageError(f"{epochs} and {steps} cannot both be given: each is the length of a super epoch")
    given = _meta(data)
    data = _with_presets(data)
    try:
        config = RunConfig.model_validate(data)
        return config if "warmup_updates" in given else _with_short_warmup(config)
    except ValidationError as error:
        errors: list[Any] = error.errors(include_url=False)
        raise UsageError(describe(first_of(errors), data)) from None


def _refuse_other_preset(below: Layer, above: Layer) -> None:
    # A run's config.toml has all settings: another preset would change none of them.
    preset = above.get("preset")
    if "format" in below and preset is not None and preset != below["preset"]:
        raise UsageError(
            f"{label(('preset',))}: got {preset!r}, but the file has all settings already, those of the "
            f"preset {below['preset']!r}; leave one of the two out"
        )


def _with_names_of_today(layer: Layer) -> Layer:
    if "format" in layer and "preset" not in layer:
        layer = {"preset": FORMER_PRESET, **layer}

    def renamed(name, table):
        names = OLD_NAMES.get(name)
        return {names.get(k, k): v for k, v in table.items()} if names and isinstance(table, dict) else table

    return {name: renamed(name, table) for name, table in layer.items()}


def merge(below: Layer, above: Layer) -> Layer:
    """`above` over `below`, table by table; a table whose `kind` changes is replaced, not mixed.

    **Arguments:**

    - `below`, `above`: nested tables.
    """
    kind = above.get("kind")
    if kind is not None and kind != below.get("kind", kind):
        return above
    merged = dict(below)
    if above.keys() & {"data", "data_dir"}:
        # Other digits than those whose checksum a run's config.toml has.
        merged.pop("data_sha256", None)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            value = merge(old, value)
        merged[name] = value
    return merged


def read_toml(path: Path) -> Layer:
    """The layer that a `--config` file holds.

    **Raises:** `UsageError` if it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"option '--config': {path} cannot be read: {_reason(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"option '--config': {path} is not TOML: {error}") from None


def read_assignments(texts: Iterable[str]) -> list[Layer]:
    """The layers that `--set a.b=v` options hold; an unquoted word counts as a string.

    **Arguments:**

    - `texts`: such as `"meta.num_steps=100"`.

    **Raises:** `UsageError` for anything else.
    """
    return [_read_assignment(text) for text in texts]


def _read_assignment(text: str) -> Layer:
    name, equals, value = text.partition("=")
    for written in (value, json.dumps(value)):
        try:
            layer = tomllib.loads(f"{name} = {written}")
        except tomllib.TOMLDecodeError:
            continue
        if equals and value.strip():
            return layer
    raise UsageError(f"option '--set': got {text!r}, must look like 'meta.num_steps=100'")


def nested(path: tuple[str, ...], value: Any) -> Layer:
    """The layer with one value."""
    for name in reversed(path):
        value = {name: value}
    return value


def to_toml(config: RunConfig) -> str:
    """The file that `--config` reads back as the same configuration.

    **Arguments:**

    - `config`: fields that are `None` are left out, as TOML has no null.
    """
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _meta(data: Layer) -> Layer:
    meta = data.get("meta")
    return meta if isinstance(meta, dict) else {}


def _without_other_length(below: Layer, above: Layer) -> Layer:
    if not _meta(above).keys() & {*LENGTHS}:
        return below
    return {**below, "meta": {name: v for name, v in _meta(below).items() if name not in LENGTHS}}


def _with_short_warmup(config: RunConfig) -> RunConfig:
    # A preset's is for its own number of super epochs, each of which has one meta-update at least.
    meta = config.meta
    shortest = min(meta.warmup_updates, meta.super_epochs // 5)
    return config.model_copy(update={"meta": meta.model_copy(update={"warmup_updates": shortest})})


def _with_presets(data: Layer) -> Layer:
    objective = data.get("objective", {})
    kind = objective.get("kind") if isinstance(objective, dict) else None
    kind = DEFAULT_OBJECTIVE if kind is None else kind
    preset = data.get("preset", DEFAULT_PRESET)
    data = merge({**nested(("objective", "kind"), kind), "preset": preset}, data)
    # What is unknown gets some preset, so that it is the one thing to complain about.
    presets = PRESETS[preset if isinstance(preset, str) and preset in PRESETS else DEFAULT_PRESET]
    known = kind if isinstance(kind, str) and kind in presets else DEFAULT_OBJECTIVE
    # Kinds first, the outer before the inner: they decide which of the other lines count.
    for name, value in sorted(presets[known].items(), key=_order_of_line):
        path = tuple(name.split("."))
        if _applies(path, data):
            data = merge(nested(path, value), data)
    return data


def _order_of_line(line: tuple[str, Any]) -> tuple[bool, int]:
    name, _ = line
    return not name.endswith(".kind"), name.count(".")


def _applies(path: tuple[str, ...], data: Layer) -> bool:
    # Whether the kinds chosen so far have this field.
    table: Any = data
    for depth, name in enumerate(path):
        tables = members_at(path[:depth])
        kind = table.get("kind", "") if isinstance(table, dict) else None
        if path[depth:] == ("kind",):
            return isinstance(table, dict)
        if kind not in tables or name not in tables[kind].model_fields:
            return False
        table = table.get(name, {})
    return True


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
