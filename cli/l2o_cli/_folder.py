"""A run's folder: made once, never overwritten; and the record of the run in it."""

import contextlib
import datetime
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from filelock import FileLock, Timeout

from ._errors import Failure, UsageError
from ._interrupt import begin_in_good_order

CONFIG, RECORD = "config.toml", "run.json"


def make_folder(out: Path | None, parent: Path, name: str) -> Path:
    """Makes the folder of a run or an evaluation.

    **Arguments:**

    - `out`: what the user asked for; it must not exist.
    - `parent`, `name`: otherwise, `<parent>/<time>-<name>`, with a number if there is one already.

    **Raises:** `UsageError` if it exists or cannot be made.
    """
    # A plug-in's kind may be `module:name`.
    name = file_name(name)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    numbered = (f"-{i}" if i > 1 else "" for i in itertools.count(1))
    candidates = [out] if out else (parent / f"{now}-{name}{number}" for number in numbered)
    for folder in candidates:
        try:
            begin_in_good_order()
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            message = f"option '--out': {folder} cannot be made: {error.strerror}"
            raise UsageError(message) from None
    raise exists(out)


def file_name(name: str) -> str:
    """A name as that of a file or folder: without what systems do not take there."""
    return re.sub(r"[^\w.-]", "-", name)


def check_free(out: Path | None, option: str = "--out") -> None:
    """Refuses a folder or file that exists, or cannot be made, before any work is done for it.

    **Raises:** `UsageError`.
    """
    if out is None:
        return
    if os.path.lexists(out):
        raise exists(out, option)
    above = next(path for path in out.absolute().parents if os.path.lexists(path))
    if not above.is_dir():
        raise UsageError(f"option {option!r}: {out} cannot be made: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"option {option!r}: {out} cannot be made: nothing may be written in {above}")


def exists(out: Path | None, option: str = "--out") -> UsageError:
    """What to say about a folder or file that is there already."""
    is_run = out is not None and (out / RECORD).is_file()
    otherwise = f", or go on with it: `l2o resume {out}`" if is_run else ""
    return UsageError(f"option {option!r}: {out} exists and is not overwritten; name a new one{otherwise}")


def read_record(folder: Path, label: str = "RUN") -> dict[str, Any]:
    """What `run.json` says. Of a run whose process is gone without a word, it is made to say so first.

    **Raises:** `UsageError`, about the argument called `label`, if there is none, or it cannot be read.
    """
    path = folder / RECORD
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("it is no table")
        if facts.get("format", 1) != 1:
            raise ValueError(f"its format, {facts['format']!r:.20}, needs a newer l2o_eqx")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{label}: {folder} is no run folder, {path} cannot be read: {reason}") from None
    if facts.get("result") == "running":
        with contextlib.suppress(OSError, Timeout), Lock(folder):
            facts |= {"result": "killed", "ended": None}
            _write(path, facts)
    return facts


class Lock:
    """The right to write in a run folder: of one process at a time, and no longer than it lives.

    **Arguments:**

    - `folder`: the run's.
    """

    def __init__(self, folder: Path):
        self._lock = FileLock(folder / ".lock", timeout=0, thread_local=False)

    def __enter__(self) -> "Lock":
        self._lock.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class Record:
    """`run.json`: how the run came about and how it ended. Whoever has it, has the folder.

    **Arguments:**

    - `folder`: of the run.
    - `facts`: to write at once.

    **Raises:** `UsageError` if another process is at work in the folder.
    """

    def __init__(self, folder: Path, **facts: Any):
        self.path, self._lock = folder / RECORD, Lock(folder)
        try:
            self._lock.__enter__()
        except Timeout:
            raise UsageError(f"{folder}: another process is at work in this run folder") from None
        self.facts = {"format": 1, "started": now(), **facts, "ended": None, "result": "running"}
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
        """Records an unforeseen end, Ctrl-C included, and gives the folder back at any."""
        try:
            yield
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            self._try_to_finish("stopped")
            raise
        except BaseException as error:
            if not isinstance(error, Failure):
                self._try_to_finish("failed", error=f"{type(error).__name__}: {error}".partition("\n")[0])
            raise
        finally:
            self._lock.__exit__()

    def _try_to_finish(self, result: str, **facts: Any) -> None:
        # On a full disk what went wrong counts for more than that it cannot be written down.
        with contextlib.suppress(OSError):
            self.finish(result, **facts)

    def _write(self) -> None:
        _write(self.path, self.facts)


def _write(path: Path, facts: dict[str, Any]) -> None:
    from l2o_eqx.files import dumps, write_text

    write_text(path, dumps(facts, indent=2) + "\n")


def now() -> str:
    """The local time with its offset from UTC, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
