"""What `l2o train` does once its settings are resolved."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

import l2o_eqx as l2o
from l2o_eqx import plots

from ._build import Parts, build
from ._comparison import (
    facts_of,
    numbers,
    run_comparison,
    show_comparison,
    title_of,
    write_comparison,
)
from ._config import RunConfig
from ._folder import Record, check_free, environment, make_folder, replacing, write_text
from ._interrupt import interrupted, run_interruptibly
from ._metrics import FILE, median_over_restarts, open_log
from ._output import Output
from ._resolve import to_toml

OPTIMIZER_FILE = "optimizer.safetensors"
RESTART_FILE = "optimizers/restart-{:03}.safetensors"
RESTART_PATTERN = "optimizers/restart-*.safetensors"


@dataclasses.dataclass
class _Training:
    # A training under way. The keys depend on the seed alone.
    parts: Parts
    output: Output
    optimizer: Any
    folder: Path
    record: Record
    key: Any
    comparison_key: Any
    latest: l2o.Progress | None = None
    wants_to_stop: bool = False
    skipped: int = 0

    @property
    def restarts(self) -> int | None:
        restarts = self.parts.config.meta.restarts
        return restarts if restarts > 1 else None


def train(given: RunConfig, out: Path | None, output: Output) -> None:
    """Trains, compares and keeps everything in a folder.

    **Arguments:**

    - `given`: a checked configuration.
    - `out`: the folder, which must not exist; `None` for one in `runs`.
    - `output`: what the user sees.

    **Raises:** `UsageError` before anything is written; `typer.Exit(130)` after Ctrl-C.
    """
    check_free(out)
    training = _begin(given, out, output)
    with training.record.failing():
        try:
            run_interruptibly(lambda: _meta_train(training), on_first=lambda: _ask(training))
            result = "stopped" if training.wants_to_stop else "completed"
        except KeyboardInterrupt:
            result = "stopped"
        say = output.say
        run_interruptibly(lambda: _save(training), on_first=lambda: say("Saving the optimizer."))
        if result == "stopped":
            _stop(training)
        try:
            comparison = run_interruptibly(lambda: _compare(training))
        except KeyboardInterrupt:
            _finish(training, "completed", comparison="interrupted")
            output.say(f"Interrupted. The trained optimizer is in {training.folder}.")
            files = optimizer_files(training.parts.config)
            output.result({"folder": str(training.folder), "result": "stopped", "files": files})
            interrupted()
        _finish(training, "completed", comparison="completed")
        _report(training, comparison)


def _begin(given: RunConfig, out: Path | None, output: Output) -> _Training:
    parts = build(given)
    config = parts.config
    okey, key, comparison_key = jr.split(jr.key(config.seed), 3)
    if config.meta.restarts > 1:
        optimizer = eqx.filter_vmap(parts.make_optimizer)(jr.split(okey, config.meta.restarts))
    else:
        optimizer = parts.make_optimizer(okey)
    meta_parameters = l2o.count_meta_parameters(optimizer) // config.meta.restarts
    coordinates = l2o.count_coordinates(parts.family)

    folder = make_folder(out, Path("runs"), f"{config.objective.kind}-{config.optimizer.kind}")
    write_text(folder / "config.toml", to_toml(config))
    record = Record(
        folder / "run.json",
        **environment(describe_device),
        seed=config.seed,
        data=parts.data,
        num_meta_parameters=meta_parameters,
        num_coordinates=coordinates,
    )
    output.say(_intention(parts, meta_parameters, coordinates))
    return _Training(parts, output, optimizer, folder, record, key, comparison_key)


def _intention(parts: Parts, meta_parameters: int, coordinates: int) -> str:
    config, meta = parts.config, parts.config.meta
    restarts = f" x {meta.restarts} restarts" if meta.restarts > 1 else ""
    data = f"; {parts.data['description']}" if parts.data else ""
    return (
        f"Training {config.optimizer.kind} ({meta_parameters:,} meta-parameters) on "
        f"{config.objective.kind} ({coordinates:,} coordinates): {meta.super_epochs} super epochs "
        f"x {meta.num_steps} steps x {meta.num_objectives} objectives{restarts}{data}; "
        f"on {describe_device()}"
    )


def describe_device() -> str:
    """What JAX computes on, e.g. `cpu`."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} x {kind}" if len(devices) > 1 else kind


def _meta_train(training: _Training) -> l2o.MetaSolution:
    parts, meta = training.parts, training.parts.config.meta
    output = training.output
    with (
        open_log(training.folder) as log,
        output.progress("training", meta.super_epochs, "compiling") as update,
    ):

        def show(progress: l2o.Progress) -> bool:
            training.latest = progress
            metrics = median_over_restarts(progress.metrics)
            training.skipped = int(np.max(progress.metrics["skipped_updates"]))
            status = f"meta-loss {metrics['meta_loss']:.4g}, final loss {metrics['final_loss']:.4g}"
            update(progress.super_epoch, status)
            return training.wants_to_stop

        return l2o.meta_train(
            training.optimizer,
            parts.family,
            parts.strategy,
            weighting=parts.weighting,
            meta_optimizer=parts.meta_optimizer,
            num_steps=meta.num_steps,
            super_epochs=meta.super_epochs,
            num_objectives=meta.num_objectives,
            restarts=training.restarts,
            key=training.key,
            callbacks=[log, show],
        )


def _ask(training: _Training) -> None:
    training.wants_to_stop = True
    which = "the first" if training.latest is None else "this"
    training.output.say(f"Stopping when {which} super epoch is over. Ctrl-C again stops at once.")


def _stop(training: _Training) -> None:
    saved = _finish(training, "stopped")
    if training.latest is None:
        training.output.say(
            "Stopped before the first super epoch was over: the optimizer is untrained and was not "
            f"saved. The settings are in {training.folder}."
        )
    else:
        epochs = f"{training.latest.super_epoch} of {training.parts.config.meta.super_epochs}"
        training.output.say(
            f"Stopped after {epochs} super epochs, without a comparison. The optimizer so far is "
            f"in {training.folder / saved[0]}; `l2o evaluate {training.folder}` compares it."
        )
    training.output.result({"folder": str(training.folder), "result": "stopped", "files": saved})
    interrupted()


def _finish(training: _Training, result: Literal["completed", "stopped"], **facts: Any) -> list[str]:
    done = 0 if training.latest is None else training.latest.super_epoch
    files = optimizer_files(training.parts.config) if done else []
    skipped = training.skipped
    training.record.finish(result, super_epochs_done=done, skipped_updates=skipped, optimizers=files, **facts)
    if skipped:
        training.output.say(f"{skipped} meta-updates were left out: their gradients were not finite.")
    return files


def optimizer_files(config: RunConfig) -> list[str]:
    """The names of a run's optimizer files, one per restart."""
    restarts = config.meta.restarts
    return [OPTIMIZER_FILE] if restarts == 1 else [RESTART_FILE.format(i) for i in range(restarts)]


def _save(training: _Training) -> None:
    latest, config = training.latest, training.parts.config
    if latest is None:
        return
    metadata = {
        "config": config.model_dump(mode="json", exclude_none=True),
        "data": training.parts.data,
        "super_epochs_done": latest.super_epoch,
    }
    optimizer: Any = latest.state.optimizer
    for i, name in enumerate(optimizer_files(config)):
        path = training.folder / name
        path.parent.mkdir(exist_ok=True)
        one = optimizer if training.restarts is None else l2o.select_restart(optimizer, i)
        l2o.save(path, one, metadata=metadata)
    with replacing(training.folder / "training.png") as path:
        plots.plot_training(plots.read_metrics(training.folder / FILE), path)


def _compare(training: _Training) -> l2o.Comparison:
    assert training.latest is not None
    comparison = run_comparison(
        training.latest.state.optimizer,
        training.parts,
        training.output,
        restarts=training.restarts,
        baselines=l2o.BASELINES,
        key=training.comparison_key,
    )
    facts = facts_of(training.parts, training.parts.config.seed)
    write_comparison(training.folder, comparison, title=title_of(facts), facts=facts)
    return comparison


def _report(training: _Training, comparison: l2o.Comparison) -> None:
    folder, output = training.folder, training.output
    files = optimizer_files(training.parts.config)
    show_comparison(comparison, output, title_of(facts_of(training.parts, 0)))
    first = folder / files[0]
    output.say(
        f"Everything is in {folder}. Compare on other draws, longer, or on something else: "
        f"`l2o evaluate {folder}`. In Python: `l2o_eqx.load({str(first)!r})`."
    )
    output.result({"folder": str(folder), "result": "completed", "files": files, **numbers(comparison)})
