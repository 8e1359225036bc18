"""Results of finished jobs as small files, to be kept with the repository and taken up on another day.

A file has the losses at some steps and one number per restart of what was measured, with 13 binary digits
(a relative error of 1.2e-4), and the settings they come from. Its folder is named by the digest of these.
"""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from .experiment import Experiment, Results, join
from .files import replacing

_DIGITS = 13


def path_of(folder: Path, experiment: Experiment, seed: int, first: int, restarts: int) -> Path:
    """Where the results of some restarts are kept."""
    return folder / "jobs" / f"{experiment.digest}-seed{seed}" / f"restarts-{first:04}-{restarts:03}.npz"


def save(path: Path, experiment: Experiment, results: Results) -> None:
    """Writes the results of a job, whole or not at all."""
    numbers = {f"measured:{name}": x for name, x in results.measured.items()}
    numbers |= {f"training:{name}": x for name, x in results.training.items()}
    about = {
        "settings": experiment.spec,
        "numbers": list(numbers),
        "steps": results.steps.tolist(),
        "seconds": round(results.seconds, 1),
    }
    rows = np.stack(list(numbers.values())) if numbers else np.zeros((0, len(results.losses)))
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "losses": rounded(results.losses),
        "numbers": rounded(rows),
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
        return Results(
            file["losses"], steps, length, groups["measured"], groups["training"], about["seconds"]
        )


def load_kept(folder: Path, experiment: Experiment, seed: int, restarts: int) -> Results | None:
    """The results of the restarts 0, 1, … up to the first that is missing, at most so many."""
    places = path_of(folder, experiment, seed, 0, 0).parent.glob("restarts-*.npz")
    there = [tuple(map(int, path.stem.split("-")[1:])) for path in places]
    parts, end = [], 0
    while fitting := [n for first, n in there if first == end and end + n <= restarts]:
        parts.append(load(path_of(folder, experiment, seed, end, max(fitting))))
        end += max(fitting)
    return join(parts) if parts else None


def rounded(values: np.ndarray) -> np.ndarray:
    """Numbers of 32 bits with so few digits that they compress well."""
    mantissa, exponent = np.frexp(values.astype(np.float32))
    return np.ldexp(np.round(np.ldexp(mantissa, _DIGITS)), exponent - _DIGITS).astype(np.float32)


def num_bytes(paths: Collection[Path]) -> int:
    """The size of some files."""
    return sum(path.stat().st_size for path in paths)
