"""`l2o resume`. What starts JAX is imported once the folder is read."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._checkpoints import DEFAULT_MINUTES, Cadence, Every, Minutes
from ._distributed import Coordinator, Crew, Distributed, Process
from ._errors import UsageError
from ._folder import CONFIG, read_record
from ._options import AsJson, Cache, Cores, Quiet
from ._resolve import Table, read_toml, resolve
from ._start import start


def resume(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    checkpoint_every: Every = None,
    checkpoint_minutes: Minutes = DEFAULT_MINUTES,
    cores: Cores = None,
    cache: Cache = True,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    process: Process = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Resume a run from its last checkpoint, whatever ended it.

    The optimizer and the metrics are bit for bit those of a run that was never interrupted, with the same
    versions and on as many cores as before, which is the default.
    """
    crew = Crew.of(distributed, coordinator, process)
    # Of several processes only the first reads the folder.
    facts = {} if crew.wanted else _facts(run)
    # As many devices as it began on, however many cores there are.
    recorded = facts.get("num_devices") if facts.get("device_kind") == "cpu" else None
    start(cores=cores or (recorded if isinstance(recorded, int) and recorded > 0 else None), cache=cache)
    with crew.joined() as member:
        if crew.wanted:
            member.check(lambda: _facts(run))
        folder = member.copy_of(run)
        cadence = Cadence(checkpoint_every, checkpoint_minutes)
        take_up(folder, facts or _facts(folder), member.output(quiet, as_json), cadence)


def _facts(run: Path) -> dict[str, Any]:
    facts = read_record(run)
    if _is_over(facts):
        raise UsageError(f"RUN: {run} is complete; there is nothing to go on with")
    return facts


def take_up(folder: Path, facts: dict[str, Any], output: Any, cadence: Cadence) -> None:
    """Goes on with the run of a folder.

    **Arguments:**

    - `folder`: with `config.toml`.
    - `facts`: of its `run.json`.
    - `output`: what the user sees.
    - `cadence`: how often the state is kept.

    **Raises:** `UsageError` for a folder that is no run's or is at work; else as `train`.
    """
    from . import _pretrain, _run, _train

    made = _run.take_up(_settings(folder), facts, folder, output, cadence)
    output.say(f"Going on with {folder}, {_where(folder)}.")
    for name, version in facts.get("versions", {}).items():
        now = made.record.facts["resumed"][-1]["versions"].get(name)
        if now != version:
            output.say(
                f"{name} was {version} and is {now} now: not bit for bit what it would have been.", "yellow"
            )
    (_pretrain if facts.get("kind") == "pretrain" else _train).work(made)


def _is_over(facts: dict[str, Any]) -> bool:
    if facts.get("result") != "completed":
        return False
    return facts.get("kind") == "pretrain" or facts.get("comparison") == "completed"


def _settings(folder: Path) -> Table:
    try:
        return resolve([read_toml(folder / CONFIG)])
    except UsageError as error:
        raise UsageError(f"RUN: {folder / CONFIG}: {error.format_message()}") from None


def _where(folder: Path) -> str:
    from l2o_eqx.callbacks import newest_checkpoint

    from ._checkpoints import TRAINING

    found, files = newest_checkpoint(folder / TRAINING), sorted((folder / TRAINING).glob("*.safetensors"))
    if found is None:
        return "whose checkpoints are damaged" if files else "from the beginning: there is no checkpoint"
    later = [file.name for file in files if file.name > found.name]
    return f"from {found.name}" + (f", because {', '.join(later)} is damaged" if later else "")
