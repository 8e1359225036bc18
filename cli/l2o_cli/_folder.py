"""A run's folder: made once, never overwritten; and the record of the run in it."""

import contextlib
import datetime
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ._errors import UsageError


def make_folder(out: Path | None, parent: Path, name: str) -> Path:
    """Makes the folder of a run or an evaluation.

    **Arguments:**

    - `out`: what the user asked for; it must not exist.
    - `parent`, `name`: otherwise, `<parent>/<time>-<name>`, with a number if there is one already.

    **Raises:** `UsageError` if it exists or cannot be made.
    """
    # A plug-in's kind may be `module:name`.
    name = re.sub(r"[^\w.-]", "-", name)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    numbered = (f"-{i}" if i > 1 else "" for i in itertools.count(1))
    candidates = [out] if out else (parent / f"{now}-{name}{number}" for number in numbered)
    for folder in candidates:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            message = f"option '--out': {folder} cannot be made: {error.strerror}"
            raise UsageError(message) from None
    raise exists(out)


def check_free(out: Path | None) -> None:
    """Refuses a folder that exists, before any work is done for it.

    **Raises:** `UsageError`.
    """
    if out is not None and os.path.lexists(out):
        raise exists(out)


def exists(out: Path | None) -> UsageError:
    """What to say about a folder that is there already."""
    return UsageError(f"option '--out': {out} exists and is not overwritten; name a new folder")


class Record:
    """`run.json`: how the run came about and how it ended.

    **Arguments:**

    - `path`: the file.
    - `facts`: to write at once.
    """

    def __init__(self, path: Path, **facts: Any):
        self.path = path
        self.facts = {"format": 1, **facts, "started": now(), "ended": None, "result": "running"}
        self._write()

    def add(self, **facts: Any) -> None:
        """Writes what became known on the way."""
        self.facts |= facts
        self._write()

    def finish(self, result: str, **facts: Any) -> None:
        """Writes how it ended: `result` is `"completed"`, `"stopped"` or `"failed"`."""
        self.facts |= {**facts, "ended": now(), "result": result}
        self._write()

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Records an unforeseen end, Ctrl-C and a closed pipe included."""
        try:
            yield
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            self.finish("stopped")
            raise
        except BaseException as error:
            self.finish("failed", error=f"{type(error).__name__}: {error}".partition("\n")[0])
            raise

    def _write(self) -> None:
        from l2o_eqx.files import dumps, write_text

        write_text(self.path, dumps(self.facts, indent=2) + "\n")


def now() -> str:
    """The local time with its offset from UTC, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
