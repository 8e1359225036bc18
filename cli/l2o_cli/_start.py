"""How a command starts JAX: on which cores, and with which programs of earlier calls."""

import os
import sys

# Threads of XLA's pool beyond one per core, see `l2o_eqx.use_cores`.
_SPARE_THREADS = 2
_CACHE_BYTES = 2**30


def start(*, cores: int | None = None, cache: bool = True) -> None:
    """Sets what JAX reads when it is imported; what the user's environment says already is left alone.

    **Arguments:**

    - `cores`: how many to use; all if not given. 0 leaves that to the processes a command starts.
    - `cache`: whether compiled programs are kept in the user's cache folder for later calls.
    """
    # Called from Python, where JAX is running.
    if "jax" in sys.modules:
        return
    environment: dict[str, str] = {}
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores and "NPROC" not in os.environ:
        environment["JAX_NUM_CPU_DEVICES"] = str(cores)
        environment["NPROC"] = str(1 if cores == 1 else cores + _SPARE_THREADS)
    if cache:
        import platformdirs

        environment["JAX_COMPILATION_CACHE_DIR"] = platformdirs.user_cache_dir("l2o_eqx", appauthor=False)
        environment["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(_CACHE_BYTES)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    else:
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    for name, value in environment.items():
        os.environ.setdefault(name, value)
