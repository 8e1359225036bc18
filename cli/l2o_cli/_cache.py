"""What was read in a package's sources, kept for the next call as long as they do not change."""

import contextlib
import hashlib
import importlib.util
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import platformdirs

T = TypeVar("T")


def remembered(package: str, read: Callable[[], T]) -> T:
    """What `read` returns, or returned for the same sources of `package` and of this command line.

    **Arguments:**

    - `package`: a package's name; it is not imported.
    - `read`: returns what pickle can hold.
    """
    path = Path(platformdirs.user_cache_dir("l2o_eqx", appauthor=False)) / f"signatures-{_state(package)}"
    try:
        return pickle.loads(path.read_bytes())
    except Exception:  # There is none, or it is of no use: then it is made.
        found = read()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("signatures-*"):
            old.unlink(missing_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(pickle.dumps(found))
        os.replace(temporary, path)
    return found


def _state(package: str) -> str:
    spec = importlib.util.find_spec(package)
    folders = [Path(__file__).parent, *map(Path, (spec and spec.submodule_search_locations) or [])]
    state = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            stat = path.stat()
            state.update(f"{path} {stat.st_mtime_ns} {stat.st_size}\n".encode())
    return state.hexdigest()[:32]
