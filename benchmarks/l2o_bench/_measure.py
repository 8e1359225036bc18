"""Seconds of several sides in alternation, the machine's peak, and what a fresh process needs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A measurement repeats what is quicker than that, and what takes longer than this is measured once.
_SHORTEST = 0.2
_LONGEST = 15.0


def alternate(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    progress: Callable[[str], None] = lambda side: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each side, `repeats` times in turn, after a call that is not counted.

    Of what takes long that first call is the only one.

    **Arguments:**

    - `sides`: by name; each waits for its own result.
    - `repeats`: measurements of each.
    - `progress`: is told which side comes next.
    - `clock`: what seconds are read from.
    """

    def measure(name: str, loops: int) -> float:
        progress(name)
        begin = clock()
        for _ in range(loops):
            sides[name]()
        return (clock() - begin) / loops

    first = {name: measure(name, 1) for name in sides}
    seconds = {name: [once] if once > _LONGEST else [] for name, once in first.items()}
    for _ in range(repeats):
        for name, once in first.items():
            if once <= _LONGEST:
                seconds[name].append(measure(name, max(1, round(_SHORTEST / once))))
    return seconds


def matrix_peak(repeats: int = 5) -> float:
    """Floating-point operations per second of the best of some large float32 products, all cores at work."""
    best = 0.0
    for size in (1024, 2048):
        matrix = jnp.ones((size, size), jnp.float32)
        product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()

        def run(product: Any = product, matrix: Any = matrix) -> Any:
            return jax.block_until_ready(product(matrix, matrix))

        seconds = np.median(alternate({"product": run}, repeats)["product"])
        best = max(best, 2 * size**3 / float(seconds))
    return best


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """25 %, median, 75 %."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


def in_fresh_process(*arguments: str, **environment: str) -> dict[str, Any]:
    """What `python -m l2o_bench.fresh …` prints, with the seconds from its start to its first update.

    **Arguments:**

    - `arguments`: of that module.
    - `environment`: variables besides those of this process.

    **Returns:** also if it fails, with the reason as `not_run`.
    """
    command = [sys.executable, "-m", "l2o_bench.fresh", *arguments]
    begin = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        return {"not_run": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["seconds_to_first_update"] = found.pop("first_update_at") - begin
    return found
