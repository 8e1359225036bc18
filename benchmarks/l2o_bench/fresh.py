"""One side of one case in a process of its own: time to the first update, memory, and speed.

python -m l2o_bench.fresh SIDE CASE [SECONDS]
"""

import json
import os
import sys
import time
from pathlib import Path

CORES = "L2O_BENCH_CORES"
"""Variable that says on how many cores this process may run."""


def main() -> None:
    side, name = sys.argv[1:3]
    if CORES in os.environ and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(os.environ[CORES])])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0

    from ._cases import CASES
    from ._sides import make_side

    case = CASES[name]
    run, _ = make_side(side, case)
    run()
    first_update_at = time.time()
    runs, begin = [], time.perf_counter()
    while time.perf_counter() - begin < seconds or (seconds and len(runs) < 3):
        start = time.perf_counter()
        run()
        runs.append(time.perf_counter() - start)
    found = {
        "first_update_at": first_update_at,
        "peak_bytes": _peak_bytes(),
        "steps_per_second": [case.steps / s for s in runs],
    }
    print(json.dumps(found))


def _peak_bytes() -> int | None:
    # Not `resource.getrusage`, which on Linux begins with the peak of the process that started this one.
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    main()
