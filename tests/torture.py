"""Runs of `l2o train` that are killed at any instant and taken up again, compared with one that never is.

`nox -s torture -- --kills 200` does it at length; the tests do it with two kills. A run is killed as its
process starts, compiles, trains, writes a checkpoint, saves, draws or compares: after a random share of the
time that a whole one takes.
"""

import argparse
import json
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

SETTINGS = (
    *("--preset", "thesis", "--dim", "2", "--num-steps", "6", "--window", "3", "--num-objectives", "2"),
    *("--hidden-sizes", "3", "--eval-objectives", "2", "--tuning-objectives", "2"),
    *("--learning-rates", "0.01,0.1", "--against", "SGD"),
)
# What is bit for bit the same, beside the metrics.
SAME = ("config.toml", "curves.csv", "final_losses.csv", "comparison.json")


def command(*arguments: object) -> list[str]:
    """That of a process of its own."""
    return [sys.executable, "-c", "import l2o_cli; l2o_cli.main()", *map(str, arguments)]


def metrics_of(run: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without the times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: x for name, x in json.loads(line).items() if name != "seconds"} for line in lines]


def events_of(run: pathlib.Path) -> list[tuple[int, str, float]]:
    """Step, name and value of everything that TensorBoard would show of a run."""
    from tensorboardX.proto import event_pb2

    event_type: Any = vars(event_pb2)["Event"]

    found = []
    for path in sorted((run / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            # A record is its length, a checksum of that, the event, and a checksum of it.
            (size,) = struct.unpack("<Q", content[:8])
            event = event_type.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return sorted(found)


def differences(run: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """What of a run is not as in one that was never killed."""
    optimizers = [str(path.relative_to(whole)) for path in whole.rglob("optimizer*.safetensors")]
    found = [n for n in (*SAME, *optimizers) if (run / n).read_bytes() != (whole / n).read_bytes()]
    if metrics_of(run) != metrics_of(whole):
        found.append("metrics.jsonl")
    if events_of(run) != events_of(whole):
        found.append("tensorboard")
    facts, known = (json.loads((one / "run.json").read_text(encoding="utf-8")) for one in (run, whole))
    names = ("result", "super_epochs_done", "skipped_updates", "failed_objectives", "taken", "optimizers")
    found += [f"run.json: {name}" for name in names if facts.get(name) != known.get(name)]
    debris = [path.name for path in run.rglob(".*") if path.name != ".lock"]
    return [*found, *(f"left behind: {name}" for name in debris)]


def kill_after(seconds: float, *arguments: object) -> bool:
    """Runs a command and kills it after some time; whether it was still at work."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=seconds)
        assert process.returncode == 0 or b"is complete" in errors, errors.decode()
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True


def main() -> None:
    """Kills as often as asked, and exits with 1 if a run comes out otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-run", type=int, default=4, help="largest number; then it is left to end")
    parser.add_argument("--super-epochs", type=int, default=400)
    parser.add_argument("--checkpoint-every", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="further options of l2o train")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    kept = ("--validate-every", "4", "--average", "0.5")
    settings = (*SETTINGS, *kept, "--super-epochs", str(asked.super_epochs), *asked.set)
    often = ("--checkpoint-every", str(asked.checkpoint_every))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # Twice: the first one compiles, and the time of the second one is that to expect.
        for whole in (folder / "first", folder / "whole"):
            begin = time.monotonic()
            subprocess.run(
                command("train", *settings, "--out", whole, *often), check=True, capture_output=True
            )
        usual, kills, runs = time.monotonic() - begin, 0, 0
        while kills < asked.kills:
            run, runs = folder / f"run-{runs}", runs + 1
            first: tuple[object, ...] = ("train", *settings, "--out", run, *often)
            for _ in range(draw.randint(1, asked.kills_per_run)):
                again = ("resume", run, *often) if (run / "run.json").exists() else first
                if again is first and run.exists():
                    break  # It was killed before it had a record: there is nothing to take up.
                kills += kill_after(draw.uniform(0, 1.1 * usual), *again)
            if not (run / "run.json").exists():
                continue
            kill_after(60 + 10 * usual, "resume", run, *often)
            wrong = differences(run, whole)
            print(f"run {runs}, {kills} kills: {'; '.join(wrong) or 'the same bits'}", flush=True)
            if wrong:
                sys.exit(1)


if __name__ == "__main__":
    main()
