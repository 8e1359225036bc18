"""Whether a long training stays flat: memory, time, threads and open files over many super epochs.

    python benchmarks/long_run.py --super-epochs 10000

Four restarts on small quadratics, with validation, average, metrics, TensorBoard and checkpoints, as `l2o
train` has them. CPU time per super epoch is that of the process, which other work disturbs less than the
clock.
"""

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax.random as jr
import numpy as np
import results
import typer
from l2o_cli._metrics import Events
from l2o_cli._output import Output

import l2o_eqx as l2o
from l2o_eqx import callbacks
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import CoordinatewiseLSTM
from l2o_eqx.strategies import EveryWindow


def resident_mib() -> float:
    """What the process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(
    super_epochs: Annotated[int, typer.Option(min=20, help="How many.")] = 10_000,
    out: results.File = None,
) -> None:
    """Trains, and prints a line for every twentieth of it."""
    every = super_epochs // 20
    rows: list[dict[str, Any]] = []
    begin = time.process_time()

    def look(progress: l2o.Progress) -> None:
        nonlocal begin
        if progress.super_epoch % every:
            return
        now = time.process_time()
        rows.append(
            {
                "super_epoch": progress.super_epoch,
                "mib": round(resident_mib(), 1),
                "cpu_ms": round(1e3 * (now - begin) / every, 3),
                "threads": threading.active_count(),
                "files": len(os.listdir("/proc/self/fd")),
                "mappings": Path("/proc/self/maps").read_bytes().count(b"\n"),
            }
        )
        begin = now
        print(rows[-1], flush=True)

    def make(key: Any) -> CoordinatewiseLSTM:
        return CoordinatewiseLSTM((4,), key=key)

    with tempfile.TemporaryDirectory() as folder:
        l2o.meta_train(
            eqx.filter_vmap(make)(jr.split(jr.key(0), 4)),
            Quadratic(3),
            EveryWindow(8),
            num_steps=32,
            super_epochs=super_epochs,
            restarts=4,
            validation=l2o.Validation(Quadratic(3), 32, 4, max(1, every // 2), key=jr.key(2)),
            average=0.25,
            key=jr.key(1),
            callbacks=[
                callbacks.MetricsWriter(Path(folder) / "metrics.jsonl"),
                Events(Path(folder) / "tensorboard", Output(quiet=True, as_json=False)),
                callbacks.Checkpoint(Path(folder) / "checkpoints", every=every, minutes=1),
                look,
            ],
        )
    half = rows[len(rows) // 2 :]
    slope = np.polyfit([r["super_epoch"] for r in half], [r["mib"] for r in half], 1)[0]
    print(f"second half: {1024 * slope:+.2f} KiB a super epoch")
    results.keep(out, {**l2o.environment(), "kib_per_super_epoch": 1024 * slope, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
