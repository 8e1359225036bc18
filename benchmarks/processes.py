"""What a second process brings a training, in alternation; docs/machines.md.

    python benchmarks/processes.py

Every side is `l2o train` from its start, ended by a signal after some super epochs. Counted are the seconds
of one by its metrics, after the first, which compiles.
"""

import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

# By what is shared out: the settings of a training.
CASES = {
    "restarts": "--preset thesis --objective quadratic --dim 16 --restarts 8 --num-objectives 8",
    "objectives": "--preset thesis --objective quadratic --dim 256 --num-objectives 16",
}
# By side: the number of processes, and cores of each.
SIDES = {"one core": (1, 1), "one process, two cores": (1, 2), "two processes": (2, 1)}


def seconds(settings: str, processes: int, cores: int, super_epochs: int) -> float:
    """The median time of a super epoch."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "l2o_cli", "train", *settings.split(), "--quiet"]
        command += ["--super-epochs", "100000", "--out", str(run), "--cores", str(cores)]
        where = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--process"]
        started = [
            subprocess.Popen(command + ([*where, f"{i}/{processes}"] if processes > 1 else []))
            for i in range(processes)
        ]
        metrics = run / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < super_epochs:
            if any(process.poll() is not None for process in started):
                raise RuntimeError("a process has ended early")
            time.sleep(0.1)
        started[0].terminate()
        for process in started:
            process.wait()
        times = [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()[:super_epochs]]
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each side, in alternation.")] = 3,
    super_epochs: Annotated[int, typer.Option(min=3, help="Of each.")] = 10,
    only: Annotated[str, typer.Option(help="One of the cases.")] = "",
) -> None:
    """Prints a Markdown table."""
    print("| shared out | side | s per super epoch | of one core |\n|---|---|---|---|")
    for name, settings in CASES.items():
        if only not in ("", name):
            continue
        found: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side, (processes, cores) in SIDES.items():
                found[side].append(seconds(settings, processes, cores, super_epochs))
        alone = statistics.median(found["one core"])
        for side, times in found.items():
            median, spread = statistics.median(times), f"{min(times):.3f} to {max(times):.3f}"
            print(f"| {name} | {side} | {median:.3f} ({spread}) | {alone / median:.2f} |")


if __name__ == "__main__":
    typer.run(main)
