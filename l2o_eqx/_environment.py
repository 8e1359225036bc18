import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ._threads import available_cores

PACKAGES = ("l2o-eqx", "jax", "jaxlib", "equinox", "optax", "numpy")


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """The versions and the machine that numbers and times may depend on, as JSON has them.

    **Arguments:**

    - `packages`: further distributions whose versions are to be in it.

    **Returns:** `versions` by distribution, of those that are installed; `python`; `platform`; `cpu`, its
    name, `None` where the system does not tell; `cores` that this process may use; `device`, what JAX
    computes on, e.g. `"2 cpu cores"`; `device_kind`, `num_devices` and `num_processes` of all that take
    part.
    """
    devices = jax.devices()
    return {
        "versions": {name: version for name in (*PACKAGES, *packages) if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": available_cores(),
        "device": describe_device(),
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
    }


def describe_device() -> str:
    """What JAX computes on, e.g. `"cpu"` or `"2 cpu cores"`."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if len(devices) == 1:
        return kind
    count = f"{len(devices)} {kind} cores" if kind == "cpu" else f"{len(devices)} x {kind}"
    processes = jax.process_count()
    return count if processes == 1 else f"{count} of {processes} processes"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str | None:
    # Python's `platform` knows it on Windows and macOS only.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None
