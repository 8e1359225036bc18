"""The speed of this checkout beside that of another one, both in turn in processes of their own.

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before quadratic-1 mlp-1

Cases are those of `l2o bench --list`, our side of them alone, each at least half a second a measurement.
Both run in this environment, so the other one should need the same packages. Last come the seconds to
import and `l2o --help`, of fresh processes.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).resolve().parents[1]
PARTS = ("", "cli", "benchmarks")
IMPORTS = {
    "import l2o_eqx": "import l2o_eqx",
    "import l2o_eqx.meta_train": "from l2o_eqx import meta_train",
    "l2o --help": "import sys; sys.argv = ['l2o', '--help']; import l2o_cli; l2o_cli.main()",
}
# Told the name of a case, it measures once: seconds of a call, of the first call with its compilation, and
# bytes of temporaries.
WORKER = """
import sys, time
import jax
from l2o_bench._cases import CASES
from l2o_bench._sides import OURS, make_side

made = {}
for line in sys.stdin:
    name = line.strip()
    if name not in made:
        made.clear()
        jax.clear_caches()
        begin = time.perf_counter()
        run, temporaries = make_side(OURS, CASES[name])
        run()
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        run()
        made[name] = run, max(1, round(0.5 / (time.perf_counter() - begin))), first, temporaries or 0
    run, loops, first, temporaries = made[name]
    begin = time.perf_counter()
    for _ in range(loops):
        run()
    print((time.perf_counter() - begin) / loops, first, temporaries, flush=True)
"""


def environment(root: Path) -> dict[str, str]:
    path = os.pathsep.join(str(root / part) for part in PARTS)
    return {**os.environ, "PYTHONPATH": path, "JAX_ENABLE_COMPILATION_CACHE": "false"}


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(root), stdin=pipe, stdout=pipe, text=True)


def ask(worker: subprocess.Popen[str], name: str) -> list[float]:
    assert worker.stdin is not None and worker.stdout is not None
    print(name, file=worker.stdin, flush=True)
    answer = worker.stdout.readline().split()
    if not answer:
        raise typer.BadParameter(f"one side does not run {name!r}", param_hint="CASES")
    return [float(x) for x in answer]


def seconds_of(root: Path, code: str) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=environment(root), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def in_words(before: list[float], now: list[float]) -> str:
    """How many times as fast this checkout is: quartiles of the ratios of neighbors."""
    low, median, high = statistics.quantiles([b / n for b, n in zip(before, now, strict=True)], n=4)
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def main(
    before: Annotated[Path, typer.Argument(help="The other checkout.", exists=True, file_okay=False)],
    cases: list[str],
    rounds: Annotated[int, typer.Option(min=2, help="Measurements of each side, in alternation.")] = 10,
) -> None:
    """Prints a Markdown table of ratios: speed, seconds to compile, bytes of temporaries."""
    workers = [start(before.resolve()), start(HERE)]
    print("| | speed, now over before | first call, now / before | temporaries |\n|---|---|---|---|")
    for name in cases:
        found: list[list[list[float]]] = [[], []]
        for count in range(rounds):
            for side in (0, 1) if count % 2 else (1, 0):
                found[side].append(ask(workers[side], name))
        speed = in_words(*[[row[0] for row in rows] for rows in found])
        (_, old, less), (_, new, more) = found[0][0], found[1][0]
        print(f"| {name} | {speed} | {new:.1f} / {old:.1f} s | {more / max(1, less):.2f} |", flush=True)
    for worker in workers:
        worker.terminate()
    for name, code in IMPORTS.items():
        pairs = [(seconds_of(before.resolve(), code), seconds_of(HERE, code)) for _ in range(rounds)]
        old, new = map(list, zip(*pairs, strict=True))
        medians = f"{statistics.median(new):.2f} / {statistics.median(old):.2f} s"
        print(f"| {name} | {in_words(old, new)} | {medians} | |", flush=True)


if __name__ == "__main__":
    typer.run(main)
