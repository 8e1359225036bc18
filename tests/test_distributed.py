"""Several processes that train together, over loopback: as one process does, and what happens if one ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import sparing
from torture import metrics_of

# One line of numbers for each way in which work is shared out, and one for what is compared after it.
TRAINED = """
import os, sys
index, count, port = map(int, sys.argv[1:])
import jax
alone = index < 0
jax.config.update("jax_num_cpu_devices", count if alone else 1)
os.environ["NPROC"] = str(count + 2)
if not alone:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
import equinox as eqx, jax.random as jr, numpy as np
import l2o_eqx as l2o
from l2o_eqx._devices import is_first_process
from l2o_eqx.estimators import PES
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import CoordinatewiseLSTM
from l2o_eqx.strategies import EveryWindow
assert jax.device_count() == count and jax.process_count() == (1 if alone else count)

def make(key):
    return CoordinatewiseLSTM((3,), learning_rate=0.1, key=key)

def stop(progress):
    # One process alone asks for it.
    wanted = progress.super_epoch == 2 and jax.process_index() == jax.process_count() - 1
    return l2o.StopTraining("enough") if wanted else None

keys = jr.split(jr.key(0), 4)
batch, one = eqx.filter_vmap(make)(keys), make(keys[0])
valid = l2o.Validation(Quadratic(3), every=1, num_steps=9, num_objectives=4, key=jr.key(5))
trainings = [
    (batch, Quadratic(3), EveryWindow(3), dict(restarts=4, num_objectives=2, validation=valid, average=0.5)),
    (one, Quadratic(3), EveryWindow(3), dict(num_objectives=4, callbacks=[stop])),
    (batch, Quadratic(3), EveryWindow(3), dict(restarts=4, num_objectives=2, per_call=3)),
    (one, Quadratic(601), EveryWindow(3), {}),
    (one, Quadratic(3), EveryWindow(3, PES(0.1, 2)), dict(num_objectives=4)),
    (one, Quadratic(3), EveryWindow(3), dict(num_objectives=3)),
]
lines = []
for optimizer, family, strategy, settings in trainings[: 2 if count == 2 else None]:
    solution = l2o.meta_train(
        optimizer, family, strategy, num_steps=9, super_epochs=3, key=jr.key(1), **settings
    )
    arrays = jax.tree.leaves(eqx.filter(solution.optimizer, eqx.is_inexact_array))
    numbers = [*solution.metrics.values(), *arrays]
    lines.append(" ".join(str(x) for x in np.concatenate([np.ravel(x) for x in numbers])))
    lines.append(str(len(solution.metrics["meta_loss"])))
adam = l2o.baselines_for(Quadratic(3))["Adam"]
compared = l2o.compare(
    {"learned": batch, "Adam": adam}, Quadratic(3), num_steps=5, num_objectives=4,
    num_tuning_objectives=2, learning_rates=(0.1, 0.3), restarts=4, key=jr.key(3),
)
lines.append(" ".join(str(x) for x in np.ravel(compared.final_losses("learned"))))
lines.append(" ".join(str(x) for x in np.ravel(compared.final_losses("Adam"))))
print("\\n".join(lines))
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(command: list[object]) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("NPROC", "JAX_NUM_CPU_DEVICES")}
    words = [sys.executable, *map(str, command)]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(processes: list[subprocess.Popen[str]]) -> list[str]:
    found = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found.append(out)
    return found


def numbers_in(output: str) -> list[np.ndarray]:
    lines = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
    return [np.array(line.split(), np.float64) for line in lines]


@pytest.mark.parametrize("count", sparing([2, 4], but=[4]))
def test_several_processes_train_what_one_does(count):
    """Losses, optimizers and comparisons, in all of them; one that wants to stop stops all."""
    port = free_port()
    several = [start(["-c", TRAINED, i, count, port]) for i in range(count)]
    found = [numbers_in(output) for output in outputs(several)]
    expected = numbers_in(outputs([start(["-c", TRAINED, -1, count, 0])])[0])
    assert [int(expected[i][0]) for i in (1, 3)] == [3, 2]
    for one in found:
        for own, of_one in zip(one, expected, strict=True):
            np.testing.assert_allclose(own, of_one, rtol=1e-5)


TINY = "--preset thesis --hidden-sizes 2 --num-steps 16 --window 8 --dim 2 --num-objectives 2 --restarts 2"
TINY += " --super-epochs 100 --checkpoint-every 2"
JUDGED = "--eval-objectives 2 --tuning-objectives 1 --learning-rates 0.1 --tuning full --against SGD"


def train(folder, *, index: int | None = None, port: int = 0, resume: bool = False):
    command = ["resume", folder] if resume else ["train", "--out", folder, *TINY.split(), *JUDGED.split()]
    where = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--process", f"{index}/2", "--cores", 1]
    return start(["-m", "l2o_cli", *command, "--json", *(where if index is not None else [])])


def lines_of(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(tmp_path):
    whole, broken, port = tmp_path / "whole", tmp_path / "broken", free_port()
    first, other = (train(broken, index=i, port=port) for i in (0, 1))
    while lines_of(broken) < 3 and first.poll() is None:
        time.sleep(0.01)
    other.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    err = first.communicate(timeout=60)[1]
    other.communicate()
    assert first.returncode == 1 and time.monotonic() - begin < 60, err
    assert re.search(r"^l2o: another process of this work has ended.*`l2o resume`", err, re.M), err
    assert "Traceback" not in err and json.loads((broken / "run.json").read_text())["result"] == "failed"

    done = len(metrics_of(broken))
    assert 3 <= done < 100
    port = free_port()
    resumed = outputs([train(broken, index=i, port=port, resume=True) for i in (0, 1)])
    assert json.loads(resumed[0])["result"] == "completed" and resumed[1] == ""
    outputs([train(whole)])
    for own, expected in zip(metrics_of(broken), metrics_of(whole), strict=True):
        losses = (row["restarts"]["final_loss"] for row in (own, expected))
        np.testing.assert_allclose(*losses, rtol=1e-4)
