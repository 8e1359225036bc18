"""Results of finished jobs as small files, to be kept with the repository and taken up on another day.

A file has the losses at some steps and one number per restart of what was measured, with 13 binary digits (a
relative error of 1.2e-4), and the settings they come from. Its folder is named by the digest of these.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l2o_eqx import files

from .experiment import Experiment, Results, join

_DIGITS = 13


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which then takes the place of `path`; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        yield temporary


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes strict JSON."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def path_of(folder: Path, experiment: Experiment, seed: int, first: int, restarts: int) -> Path:
    """Where the results of some restarts are kept."""
    return folder / "jobs" / f"{experiment.digest}-seed{seed}" / f"restarts-{first:04}-{restarts:03}.npz"


def save(path: Path, experiment: Experiment, results: Results) -> None:
    """Writes the results of a job."""
    numbers = {f"measured:{name}": x for name, x in results.measured.items()}
    numbers |= {f"training:{name}": x for name, x in results.training.items()}
    about = {
        "settings": experiment.spec,
        "numbers": list(numbers),
        "steps": results.steps.tolist(),
        "seconds": round(results.seconds, 1),
    }
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "losses": _rounded(results.losses),
        "numbers": _rounded(np.stack(list(numbers.values()))),
    }
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def load(path: Path) -> Results:
    """Reads what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(file["about"].tobytes())
        groups: dict[str, dict[str, np.ndarray]] = {"measured": {}, "training": {}}
        for key, values in zip(about["numbers"], file["numbers"], strict=True):
            group, _, name = key.partition(":")
            groups[group][name] = values
        steps, length = np.array(about["steps"]), about["settings"]["test_steps"]
        return Results(file["losses"], steps, length, **groups, seconds=about["seconds"])


def load_kept(folder: Path, experiment: Experiment, seed: int, restarts: int) -> Results | None:
    """The results of the restarts 0, 1, … up to the first that is missing, at most so many."""
    places = path_of(folder, experiment, seed, 0, 0).parent.glob("restarts-*.npz")
    there = [tuple(map(int, path.stem.split("-")[1:])) for path in places]
    parts, end = [], 0
    while fitting := [n for first, n in there if first == end and end + n <= restarts]:
        parts.append(load(path_of(folder, experiment, seed, end, max(fitting))))
        end += max(fitting)
    return join(parts) if parts else None


def _rounded(values: np.ndarray) -> np.ndarray:
    # Numbers of 32 bits with so few digits that they compress well.
    mantissa, exponent = np.frexp(values.astype(np.float32))
    return np.ldexp(np.round(np.ldexp(mantissa, _DIGITS)), exponent - _DIGITS).astype(np.float32)
