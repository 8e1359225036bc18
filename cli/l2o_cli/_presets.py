"""What settings are if they are not given, of `presets.toml`."""

import re
import tomllib
from pathlib import Path
from typing import Any

Preset = dict[str, Any]

DEFAULT_OBJECTIVE = "quadratic"
# Which of a preset's tables holds for families of the library that have none of their own.
OTHER_OBJECTIVES = "others"
DEFAULT_PRESET = "best"
# Files of versions that had no presets, with all settings that there were, mean this one.
FORMER_PRESET = "thesis"

_TABLES = tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))
_SHARED = _TABLES.pop("shared")


def _whole(table: Preset) -> Preset:
    shared = [_whole(_SHARED[name]) for name in table.get("like", [])]
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k != "like"}
    return {name: value for part in (*shared, own) for name, value in part.items()}


PRESETS: dict[str, dict[str, Preset]] = {
    preset: {objective: _whole(table) for objective, table in tables.items()}
    for preset, tables in _TABLES.items()
}


def kinds_of_line(name: str) -> tuple[tuple[str, ...], str]:
    """The kinds that a line of a preset is for, all if there are none, and its path."""
    found = re.fullmatch(r"(\w+)\[([^]]+)\](.*)", name)
    return (tuple(found[2].split("|")), found[1] + found[3]) if found else ((), name)
