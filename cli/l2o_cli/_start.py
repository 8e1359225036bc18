"""How a command starts JAX: on which cores, and with which programs of earlier calls."""

import contextlib
import glob
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

_CACHE_BYTES = 2**30


def start(*, cores: int | None = None, cache: bool = True) -> None:
    """Sets what JAX reads when it is imported; what the user's environment says already is left alone.

    **Arguments:**

    - `cores`: how many to use, whatever the environment says; all if not given, and 0 leaves that to the
        processes a command starts.
    - `cache`: whether compiled programs are kept in the user's cache folder for later calls.
    """
    # Called from Python, where JAX is running.
    if "jax" in sys.modules:
        return
    from l2o_eqx._threads import available_cores, pool_size

    environment: dict[str, str] = {}
    # Asked for, it counts more than the environment.
    if cores or (cores is None and "NPROC" not in os.environ):
        count = cores or available_cores()
        os.environ |= {"JAX_NUM_CPU_DEVICES": str(count), "NPROC": str(pool_size(count))}
    if cache:
        import platformdirs

        environment["JAX_COMPILATION_CACHE_DIR"] = platformdirs.user_cache_dir("l2o_eqx", appauthor=False)
        environment["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(_CACHE_BYTES)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    else:
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    if cache:
        heal(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))


# What JAX warns of, with the name of the program.
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([\w.<>-]+)'")


def heal(folder: Path) -> None:
    """From now on removes damaged programs from a cache, instead of warning of them at every start.

    JAX compiles such a program again, but does not write it where there is something already.

    **Arguments:**

    - `folder`: of the cache.
    """
    show = warnings.showwarning

    def remove(message: Warning | str, *where: Any, **more: Any) -> None:
        found = _DAMAGED.match(str(message))
        if found is None:
            show(message, *where, **more)
            return
        for path in folder.glob(f"{glob.escape(found[1])}-*"):
            with contextlib.suppress(OSError):
                path.unlink()

    warnings.showwarning = remove
