"""What `l2o plot --updates` draws: how an optimizer updates a coordinate, and what its networks answer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.random as jr

import l2o_eqx as l2o
from l2o_eqx import plots
from l2o_eqx.files import replacing

from ._build import Parts, build
from ._errors import UsageError
from ._evaluate import check_fits, check_one_family, files_of, load_optimizers, settings_for
from ._folder import check_free
from ._mixture import name_of
from ._output import Output
from ._resolve import Layer, plain

_LABEL = "RUN"
# What optimizers are drawn beside, and with which settings where none were tuned: a rate scales both the
# updates and their unit.
_BESIDE: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.1},
    "momentum": {"learning_rate": 0.1, "momentum": 0.9},
    "Adam": {"learning_rate": 0.001, "b1": 0.9, "b2": 0.999},
}
# Objectives and coordinates of each; fewer objectives where params are many, of which each costs time.
_NUM_COORDINATES, _FEW, _MANY = 4, 4, 8
_LARGE = 1000


def draw_updates(
    source: Path,
    layers: Sequence[Layer],
    folder: Path | None,
    output: Output,
    *,
    file_format: str,
    tensor: str | None,
    modules: Sequence[str],
) -> None:
    """Draws `updates.png`, and `answers.png` where there is something to tell, with their data beside them.

    **Arguments:**

    - `source`: a run folder, of which the first restart is taken, a file, or a name in the gallery.
    - `layers`: settings over those of the training.
    - `folder`: for the files; if `None`, that of the run, or the current one.
    - `output`: what the user sees.
    - `file_format`: of the pictures.
    - `tensor`: whose coordinates are probed; the largest one if `None`.
    - `modules`: whose classes the file may have.

    **Raises:** `UsageError` before anything is written.
    """
    files = files_of(source, _LABEL)
    optimizers, metadata = load_optimizers(files[:1], modules, _LABEL)
    optimizer = optimizers[0]
    if "config" not in metadata and not any("objective" in layer for layer in layers):
        raise UsageError(
            f"option '--objective': must be given; {files[0]} does not say what it was trained on"
        )
    parts = build(settings_for(metadata, layers))
    check_one_family(parts, "option '--updates'")
    check_fits(optimizer, parts)
    folder = folder or (source if source.is_dir() else Path())
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"option '--out': {folder} is no folder")
    if not source.is_dir():
        # A run's own pictures are drawn again; elsewhere they may be anything.
        for name in ("updates", "answers"):
            check_free(folder / f"{name}.{file_format}")
            check_free(folder / f"{name}.json")
    kind = type(optimizer).__name__
    several = f", restart 0 of {len(files)}" if len(files) > 1 else ""
    title = f"{source} ({kind}{several}) on {name_of(parts.config.objective)}"
    key = jr.key(parts.config.seed)
    num_objectives = _FEW if l2o.count_coordinates(parts.family) > _LARGE else _MANY
    probes = _probe({kind: optimizer, **_beside(source, parts)}, parts, num_objectives, tensor, output, key)
    record = l2o.record_answers(
        optimizer, parts.family, num_steps=parts.evaluation_steps, num_objectives=num_objectives, key=key
    )

    folder.mkdir(parents=True, exist_ok=True)
    about = f"{title}: how a coordinate is updated"
    plots.write_updates(probes, folder / "updates.json", title=about)
    _write(folder / f"updates.{file_format}", lambda p: plots.plot_updates(probes, p, title=about), output)
    if record is None:
        output.say(f"{kind} has no answers to tell, such as rates: the picture of its updates is all.")
        return
    about = f"{title}: what its networks answer"
    plots.write_answers(record, folder / "answers.json", title=about)
    _write(folder / f"answers.{file_format}", lambda p: plots.plot_answers(record, p, title=about), output)


def _probe(
    optimizers: Mapping[str, Any],
    parts: Parts,
    num_objectives: int,
    tensor: str | None,
    output: Output,
    key: Any,
) -> dict[str, l2o.UpdateProbes]:
    found = {}
    with output.progress("probing updates", len(optimizers), "") as update:
        for number, (name, optimizer) in enumerate(optimizers.items()):
            update(number, name.partition(" (")[0])
            try:
                found[name] = l2o.probe_updates(
                    optimizer,
                    parts.family,
                    num_steps=parts.evaluation_steps,
                    tensor=tensor,
                    num_objectives=num_objectives,
                    num_coordinates=_NUM_COORDINATES,
                    key=key,
                )
            except l2o.ArgumentError as error:
                labels = {"tensor": "option '--tensor'", "num_steps": "option '--steps'"}
                raise UsageError(f"{labels.get(error.argument or '', _LABEL)}: {error}") from None
    return found


def _beside(source: Path, parts: Parts) -> dict[str, Any]:
    """SGD, momentum and Adam, with what was tuned for the same objectives, by a name that says so."""
    tuned, found = _tuned(source, parts), {}
    for name, usual in _BESIDE.items():
        settings, how = (tuned[name], "tuned") if name in tuned else (usual, "not tuned")
        baseline = l2o.BASELINES[name]
        assert isinstance(baseline, l2o.Baseline)
        try:
            made = baseline.with_settings(parts.evaluation_steps, **settings)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{_LABEL}: the comparison has no settings of {name}: {error}") from None
        shown = {"learning_rate": "rate ", "schedule": ""}
        texts = [f"{shown.get(key, f'{key} ')}{value}" for key, value in settings.items()]
        found[f"{name} ({how}: {', '.join(texts)})"] = made
    return found


def _tuned(source: Path, parts: Parts) -> dict[str, dict[str, Any]]:
    # The settings by name, of a comparison on the same objectives over as many steps.
    try:
        if source.is_dir():
            comparison = json.loads((source / "comparison.json").read_text(encoding="utf-8"))
        elif not source.exists() and str(source) in l2o.gallery.names():
            comparison = l2o.gallery.card(str(source))["comparison"]
        else:
            return {}
        same = _without_data(comparison["objective_settings"]) == _without_data(plain(parts.config.objective))
        if not same or comparison["num_steps"] != parts.evaluation_steps:
            return {}
        rows = {row["name"]: row["settings"] for row in comparison["summary"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: rows[name] for name in _BESIDE if isinstance(rows.get(name), dict)}


def _without_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    # Where digits come from is the machine's affair.
    return {name: value for name, value in settings.items() if not name.startswith("data")}


def _write(path: Path, plot: Any, output: Output) -> None:
    with replacing(path) as temporary:
        plot(temporary)
    output.say(str(path))
