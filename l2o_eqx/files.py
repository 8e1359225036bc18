"""Files that are written whole or not at all, strict JSON, and CSV. Does not start JAX."""

import contextlib
import csv
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path of the same suffix to write to, which then takes the place of `path`.

    A reader sees the old file or the new one, also after a crash of the machine: the content is on the disk
    before the name points to it. If the block raises, the old file stays.

    **Arguments:**

    - `path`: the file; its folder must exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_debris(folder: str | Path) -> None:
    """Removes what `replacing` leaves in a folder, and in those in it, when a process is killed.

    **Arguments:**

    - `folder`: in which nobody else writes now.
    """
    for path in Path(folder).rglob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.\w+")


def _sync_folder(folder: Path) -> None:
    # Windows cannot open folders, and some network file systems cannot sync them: the file is whole anyway.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole file or nothing.

    **Arguments:**

    - `path`: the file; its folder must exist.
    - `text`: what is to be in it, as UTF-8.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def dumps(content: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null, arrays become lists.

    **Arguments:**

    - `content`: mappings, sequences, arrays, strings, numbers, `None`.
    - `indent`: as in `json.dumps`.
    """
    return json.dumps(_plain(content), indent=indent, allow_nan=False)


def read_rows(path: str | Path, columns: Sequence[str], what: str) -> list[dict[str, str]]:
    """The rows of a CSV file that was written whole.

    **Arguments:**

    - `path`: the file.
    - `columns`: that it must have.
    - `what`: it is, for people: `"curves"`.

    **Raises:** `ValueError` if it has other columns, or is cut off.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            if reader.fieldnames != list(columns):
                raise ValueError(f"{path} is no file of {what}: its columns are {reader.fieldnames}.")
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(f"{path} is damaged: {error}.") from None
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path} is damaged: line {number} has not {len(columns)} columns.")
    return rows


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if hasattr(x, "tolist"):
        x = x.tolist()
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
