"""What `l2o pretrain` does once its settings are resolved."""

from pathlib import Path

from ._build import Parts
from ._config import RunConfig
from ._folder import check_free
from ._interrupt import interrupted, run_interruptibly
from ._output import Output
from ._run import Run, begin, describe_device, pretrain_first, save_optimizers


def pretrain(given: RunConfig, out: Path | None, output: Output) -> None:
    """Pretrains and keeps everything in a folder.

    **Arguments:**

    - `given`: a checked configuration.
    - `out`: the folder, which must not exist; `None` for one in `runs`.
    - `output`: what the user sees.

    **Raises:** `UsageError` before anything is written; `typer.Exit(130)` after Ctrl-C.
    """
    check_free(out)
    name = f"pretrained-{given.optimizer.kind}"
    run = begin(given, out, output, name=name, describe=_intention)
    folder = run.folder
    with run.record.failing():
        try:
            pretrain_first(run)
        except KeyboardInterrupt:
            _stop(run)
        say = output.say
        files = run_interruptibly(
            lambda: save_optimizers(run, run.optimizer),
            on_first=lambda: say("Saving the optimizer."),
        )
        run.record.finish("completed", optimizers=files)
    output.say(f"Everything is in {folder}. `l2o evaluate {folder}` compares the optimizer as it is.")
    facts = run.pretraining
    output.result({"folder": str(folder), "result": "completed", "files": files, "pretraining": facts})


def _intention(parts: Parts, meta_parameters: int, coordinates: int) -> str:
    del coordinates
    config, settings = parts.config, parts.config.pretraining
    restarts = f" x {config.meta.restarts} restarts" if config.meta.restarts > 1 else ""
    updates = settings.num_samples // settings.batch_size
    return (
        f"Pretraining {config.optimizer.kind} ({meta_parameters:,} meta-parameters): {updates:,} updates "
        f"x {settings.batch_size} coordinates x {settings.num_steps} steps{restarts}; on {describe_device()}"
    )


def _stop(run: Run) -> None:
    folder = run.folder
    run.record.finish("stopped", optimizers=[])
    run.output.say(f"Interrupted; no optimizer was saved. The settings are in {folder}.")
    run.output.result({"folder": str(folder), "result": "stopped", "files": []})
    interrupted()
