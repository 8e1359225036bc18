"""`l2o pretrain`. What starts JAX is imported once the settings are resolved."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ._checkpoints import DEFAULT_MINUTES, Cadence, Every, Minutes
from ._folder import check_free
from ._interrupt import interrupted, run_interruptibly
from ._options import AsJson, Assignments, Cache, Config, Cores, Quiet, folder_option, with_settings
from ._resolve import Table, read_assignments, read_toml, refuse_ignored, resolve
from ._start import start

if TYPE_CHECKING:
    from ._build import Parts
    from ._output import Output
    from ._run import Run


def _keep(path: tuple[str, ...]) -> bool:
    if path in (("meta", "restarts"), ("seed",)):
        return True
    return path[0] in ("objective", "optimizer", "pretraining") and path[-1] != "enabled"


@with_settings(_keep)
def pretrain(
    config: Config = None,
    assignments: Assignments = None,
    out: Annotated[
        Path | None,
        folder_option("Folder to make; runs/<time>-pretrained-<optimizer> if not given."),
    ] = None,
    checkpoint_every: Every = None,
    checkpoint_minutes: Minutes = DEFAULT_MINUTES,
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train an optimizer to start as gradient descent, without any objective.

    It learns to answer random inputs with the updates of gradient descent. The objective only tells the
    defaults, and an optimizer with a part per layer what the layers are.

    `l2o train --config` with this run's config.toml does the same and then meta-trains.
    """
    # What is pretrained is the thesis's network unless said otherwise: others start as something already.
    file = [{"preset": "thesis"}, *([read_toml(config)] if config else [])]
    enabled = {"pretraining": {"enabled": True}}
    given = [*read_assignments(assignments or []), settings]
    checked = resolve([*file, *given, enabled])
    refuse_ignored(checked, given)

    start(cores=cores, cache=cache)
    from ._output import Output

    run(checked, out, Output(quiet, as_json), Cadence(checkpoint_every, checkpoint_minutes))


def run(given: Table, out: Path | None, output: "Output", cadence: Cadence | None = None) -> None:
    """Pretrains and keeps everything in a folder.

    **Arguments:**

    - `given`: a checked configuration.
    - `out`: the folder, which must not exist; `None` for one in `runs`.
    - `output`: what the user sees.
    - `cadence`: how often the state is kept.

    **Raises:** `UsageError` before anything is written; `typer.Exit(130)` after Ctrl-C.
    """
    check_free(out)
    from ._run import begin

    work(begin(given, out, output, kind="pretrain", cadence=cadence or Cadence(), describe=_intention))


def work(made: "Run") -> None:
    """Pretrains, from wherever the run stands.

    **Raises:** as `run`.
    """
    from ._run import pretrain_first, save_optimizers

    folder, output = made.folder, made.output
    with made.record.failing():
        try:
            pretrain_first(made)
        except KeyboardInterrupt:
            _stop(made)
        say = output.say
        files = run_interruptibly(
            lambda: save_optimizers(made, made.optimizer),
            on_first=lambda: say("Saving the optimizer."),
        )
        made.record.finish("completed", optimizers=files)
    output.say(f"Everything is in {folder}. `l2o evaluate {folder}` compares the optimizer as it is.")
    facts = made.pretraining
    output.result({"folder": str(folder), "result": "completed", "files": files, "pretraining": facts})


def _intention(parts: "Parts", meta_parameters: int, coordinates: str) -> str:
    del coordinates
    from ._run import describe_device

    config, settings = parts.config, parts.config.pretraining
    restarts = f" x {config.meta.restarts} restarts" if config.meta.restarts > 1 else ""
    updates = settings.num_samples // settings.batch_size
    return (
        f"Pretraining {config.optimizer.kind} ({meta_parameters:,} meta-parameters): {updates:,} updates "
        f"x {settings.batch_size} coordinates x {settings.num_steps} steps{restarts}; on {describe_device()}"
    )


def _stop(made: "Run") -> None:
    folder = made.folder
    made.record.finish("stopped", optimizers=[])
    made.output.say(f"Interrupted; no optimizer was saved. `l2o resume {folder}` goes on.")
    made.output.result({"folder": str(folder), "result": "stopped", "files": []})
    interrupted()
