"""Cores and threads, without JAX: what must be known before it starts."""

import os

# Devices made of one host share a pool of threads, in which each needs one to wait in: with as many threads
# as devices jaxlib 0.10.2 can wait for a free one for ever. More would get into each other's way.
_SPARE = 2


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pool_size(num_devices: int) -> int:
    """How many threads XLA's pool should have for so many devices, one per core: its variable NPROC."""
    return 1 if num_devices == 1 else num_devices + _SPARE


def has_spare_threads(num_devices: int) -> bool:
    """Whether the variable NPROC gave XLA more threads than one per device when it started."""
    threads = os.environ.get("NPROC", "")
    return threads.isdigit() and int(threads) > num_devices
