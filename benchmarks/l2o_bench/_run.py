"""Runs what is asked for and collects the numbers."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

import l2o_eqx as l2o
from l2o_eqx._threads import available_cores, pool_size
from l2o_eqx.strategies import EveryStep

from . import _apply
from ._cases import CASES, Case
from ._measure import alternate, in_fresh_process, matrix_peak
from ._sides import OURS, SIDES, make_side, why_not
from .fresh import CORES as CORES_VARIABLE

# (share of the work done, what comes next)
Progress = Callable[[float, str], None]

FIRST_UPDATE = ("quadratic-64", "mlp-1", "synthetic-1e7")
CORES = ("quadratic-64", "restarts-100", "mlp-1", "mlp-8", "synthetic-1e5")
APPLY = (10**4, 10**6)
_CORE_SECONDS = 4.0


def parts() -> dict[str, str]:
    """Everything that can be measured, and what it is."""
    return {
        **{name: case.title for name, case in CASES.items()},
        "first-update": "seconds from a fresh process to its first meta-updates, peak memory",
        "cores": "all cores against one",
        "apply": "a step of a trained optimizer next to Adam",
    }


def run(
    names: Sequence[str],
    *,
    repeats: int = 5,
    progress: Progress = lambda share, text: None,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Measures some of `parts()`.

    **Arguments:**

    - `names`: which.
    - `repeats`: measurements of each side, in alternation.
    - `progress`: is told how far the work is.
    - `keep`: is given what there is after each of them.

    **Returns:** numbers as JSON has them.

    **Raises:** `ValueError` for an unknown name.
    """
    unknown = [name for name in names if name not in parts()]
    if unknown:
        raise ValueError(f"there is no benchmark {unknown[0]!r}; there are {', '.join(parts())}")
    found: dict[str, Any] = {"machine": _machine(), "peak_flops": matrix_peak(), "cases": {}}
    for i, name in enumerate(names):

        def tell(text: str, done: int = i, name: str = name) -> None:
            progress(done / len(names), f"{name}: {text}")

        if name == "first-update":
            found["first_update"] = _first_updates(tell)
        elif name == "cores":
            found["cores"] = _cores(repeats, tell)
        elif name == "apply":
            found["apply"] = _applications(repeats, tell)
        else:
            found["cases"][name] = measure(CASES[name], repeats, tell)
            jax.clear_caches()
        keep(found)
    return found


def measure(case: Case, repeats: int, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Inner steps per second and temporaries of all sides of a case."""
    runs, sides = {}, {}
    for side in SIDES:
        reason = why_not(side, case)
        if reason is None:
            tell(f"compiling {side}")
            runs[side], temporaries = make_side(side, case)
            sides[side] = {"temporaries_bytes": temporaries}
        else:
            sides[side] = {"not_run": reason}
    for side, seconds in alternate(runs, repeats, tell).items():
        sides[side]["steps_per_second"] = [case.steps / s for s in seconds]
    return {
        "title": case.title,
        "num_coordinates": l2o.count_coordinates(case.family()),
        # With an update at every step, each step is differentiated many times.
        "flops_per_step": None if isinstance(case.strategy, EveryStep) else case.flops_per_step(),
        "scales": case.scales,
        "sides": sides,
    }


def _machine() -> dict[str, Any]:
    found = l2o.environment()
    versions = found.pop("versions")
    return {**found, "device": found["device_kind"], "jax": versions["jax"], "l2o_eqx": versions["l2o-eqx"]}


def _first_updates(tell: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FIRST_UPDATE:
        found[name] = {}
        for side in SIDES:
            if why_not(side, CASES[name]) is None:
                tell(f"{name}, {side}")
                found[name][side] = in_fresh_process(side, name, JAX_ENABLE_COMPILATION_CACHE="false")
        tell(f"{name}, with the programs of an earlier call")
        with tempfile.TemporaryDirectory() as folder:
            kept = {
                "JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            in_fresh_process(OURS, name, **kept)
            found[name][f"{OURS}, second call"] = in_fresh_process(OURS, name, **kept)
    return found


def _cores(repeats: int, tell: Callable[[str], None]) -> dict[str, Any]:
    count = available_cores()
    found: dict[str, Any] = {}
    for name in CORES if count > 1 else ():
        speeds: dict[str, list[float]] = {"1": [], str(count): []}
        for _ in range(repeats):
            for cores in speeds:
                tell(f"{name} on {cores} cores")
                numbers = in_fresh_process(OURS, name, str(_CORE_SECONDS), **dict(_on_cores(int(cores))))
                speeds[cores] += numbers.get("steps_per_second", [])
        found[name] = speeds
    return found


def _on_cores(cores: int) -> Iterator[tuple[str, str]]:
    yield CORES_VARIABLE, str(cores)
    yield "JAX_NUM_CPU_DEVICES", str(cores)
    yield "NPROC", str(pool_size(cores))


def _applications(repeats: int, tell: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for num_coordinates in APPLY:
        seconds = alternate(_apply.make(num_coordinates), repeats, tell)
        found[str(num_coordinates)] = {
            name: [s / _apply.STEPS for s in values] for name, values in seconds.items()
        }
    return found
