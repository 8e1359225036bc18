"""Files that are written whole or not at all."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import files


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes strict JSON, whole or not at all."""
    with replacing(path) as temporary:
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which then takes the place of `path`; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        yield temporary
