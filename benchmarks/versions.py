"""The speed of this checkout beside that of another one, both in turn in processes of their own.

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before quadratic-1 mlp-1

Cases are those of `l2o bench --list`, our side of them alone. Both run in this environment, so the other one
should need the same packages. Last come importing and `l2o --help`, of fresh processes.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from l2o_bench._measure import alternate, quartiles

HERE = Path(__file__).resolve().parents[1]
PARTS = ("", "cli", "benchmarks")
IMPORTS = {
    "import l2o_eqx": "import l2o_eqx",
    "import l2o_eqx.meta_train": "from l2o_eqx import meta_train",
    "l2o --help": "import sys; sys.argv = ['l2o', '--help']; import l2o_cli; l2o_cli.main()",
}
# Told the name of a case it makes it, and answers with bytes of temporaries; told it again, it runs it.
WORKER = """
import sys
import jax
from l2o_bench._cases import CASES
from l2o_bench._sides import OURS, make_side

made = None
for line in sys.stdin:
    name = line.strip()
    if made == name:
        run()
    else:
        jax.clear_caches()
        run, temporaries = make_side(OURS, CASES[name])
        made = name
    print(temporaries or 0, flush=True)
"""


def environment(root: Path) -> dict[str, str]:
    # With -P, so that nothing is imported from the folder where this was called.
    path = os.pathsep.join(str(root / part) for part in PARTS)
    return {**os.environ, "PYTHONPATH": path, "JAX_ENABLE_COMPILATION_CACHE": "false"}


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", WORKER]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(root), stdin=pipe, stdout=pipe, text=True)


def ask(worker: subprocess.Popen[str], name: str) -> int:
    assert worker.stdin is not None and worker.stdout is not None
    print(name, file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
        raise typer.BadParameter(f"one side does not run {name!r}", param_hint="CASES")
    return int(answer)


def run_fresh(root: Path, code: str) -> None:
    command = [sys.executable, "-P", "-c", code]
    subprocess.run(command, env=environment(root), stdout=subprocess.DEVNULL, check=True)


def speed(sides: list[Callable[[], Any]], rounds: int) -> str:
    """How many times as fast this checkout is: quartiles of the ratios of neighbors."""
    seconds = alternate(dict(zip(("before", "now"), sides, strict=True)), rounds)
    ratios = [b / n for b, n in zip(seconds["before"], seconds["now"], strict=True)]
    low, median, high = quartiles(ratios)
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def main(
    before: Annotated[Path, typer.Argument(help="The other checkout.", exists=True, file_okay=False)],
    cases: list[str],
    rounds: Annotated[int, typer.Option(min=2, help="Measurements of each side, in alternation.")] = 10,
) -> None:
    """Prints a Markdown table of ratios: speed, bytes of temporaries."""
    roots = before.resolve(), HERE
    workers = [start(root) for root in roots]
    print("| | speed, now over before | temporaries |\n|---|---|---|")
    for name in cases:
        old, new = (ask(worker, name) for worker in workers)
        found = speed([functools.partial(ask, worker, name) for worker in workers], rounds)
        print(f"| {name} | {found} | {new / max(1, old):.2f} |", flush=True)
    for worker in workers:
        worker.terminate()
    for name, code in IMPORTS.items():
        found = speed([functools.partial(run_fresh, root, code) for root in roots], rounds)
        print(f"| {name} | {found} | |", flush=True)


if __name__ == "__main__":
    typer.run(main)
