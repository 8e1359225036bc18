"""Where the time of one case goes, operation by operation, from XLA's own trace.

    python -m l2o_bench.profile CASE

On a CPU. A trace makes every operation about a microsecond longer. Run it on one core
(`JAX_NUM_CPU_DEVICES=1 NPROC=1`), for on several the times of their operations add up.
"""

import collections
import re
import sys
import tempfile
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from ._cases import CASES
from ._ours import make

# What XLA calls its fusions after; the first that matches counts.
_KINDS = {
    "matrix products": r"^(dot|ynn|onednn|custom-call)",
    "transcendental functions": r"tanh|divide|exponential|log",
    "moving": r"dynamic|slice|copy|transpose|broadcast|concatenate(?!_fusion)|pad|gather",
    "other arithmetic": r"fusion|^wrapped|reduce",
}
_OPERATION = re.compile(r"^[a-z_-]+(\.\d+)?$|fusion(\.\d+)?$|^wrapped")
_LOOPS = re.compile(r"^(while|call|conditional)")


def main() -> None:
    case = CASES[sys.argv[1]]
    run, _ = make(case)
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        spent: dict[str, list[float]] = collections.defaultdict(list)
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            for line in plane.lines:
                for event in line.events:
                    spent[event.name].append(event.duration_ns / 1e3)
    operations = {n: t for n, t in spent.items() if _OPERATION.search(n) and not _LOOPS.search(n)}
    total = sum(map(sum, operations.values()))

    table = Table(title=f"{case.title}: {total / 1e3:.0f} ms in {case.steps} steps")
    for column in ("kind", "operation", "calls", "µs each", "share"):
        table.add_column(column, justify="left" if column in ("kind", "operation") else "right")
    kinds: dict[str, float] = collections.defaultdict(float)
    for name, times in sorted(operations.items(), key=lambda item: -sum(item[1])):
        kind = next((k for k, pattern in _KINDS.items() if re.search(pattern, name)), "rest")
        kinds[kind] += sum(times)
        if sum(times) > 0.01 * total:
            each = sum(times) / len(times)
            table.add_row(kind, name, f"{len(times):,}", f"{each:.1f}", f"{sum(times) / total:.1%}")
    table.add_section()
    for kind, time in sorted(kinds.items(), key=lambda item: -item[1]):
        table.add_row(kind, "all", "", "", f"{time / total:.1%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
