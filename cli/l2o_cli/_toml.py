"""TOML that anybody may have written: read in little time and memory, or refused in one line."""

import re
import tomllib
from pathlib import Path
from typing import Any

# More than any file of settings has.
_MOST_BYTES = 2**20
_DEEPEST = 32
# A dotted key with more parts than that, for which `tomllib` takes minutes.
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){32}""")


def parse_toml(text: str) -> dict[str, Any]:
    """What a text says.

    **Raises:** `ValueError` that says in one line why it is no TOML of a configuration.
    """
    too_deep = f"tables and lists are at most {_DEEPEST} deep in each other"
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES:,} bytes")
    if _LONG_KEY.search(text):
        raise ValueError(too_deep)
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        level = [x for one in level for x in _inside(one)]
    if level:
        raise ValueError(too_deep)
    return content


def read_toml_file(path: Path) -> dict[str, Any]:
    """What a file says, with or without a byte-order mark.

    **Raises:** `OSError` if it cannot be read; `ValueError` as `parse_toml`.
    """
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    try:
        return parse_toml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}") from None


def _inside(x: Any) -> list[Any]:
    return [*x.values()] if isinstance(x, dict) else x if isinstance(x, list) else []
