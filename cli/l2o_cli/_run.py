"""A run of `l2o train` or `l2o pretrain`: what it starts from, pretraining, and the optimizers it keeps."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax.random as jr

import l2o_eqx as l2o
from l2o_eqx.files import remove_debris, write_text
from l2o_eqx.objectives import Mixture

from ._build import Parts, blaming, build
from ._checkpoints import PRETRAINING, Cadence, checkpoint, state_of
from ._errors import Failure
from ._folder import CONFIG, Record, make_folder, now
from ._interrupt import run_interruptibly
from ._output import Output
from ._pretrained import Pretrained, run_pretraining, show_pretraining, write_pretraining
from ._resolve import Table, plain, to_toml
from ._tables import GRADIENT

OPTIMIZER_FILE = "optimizer.safetensors"
RESTART_FILE = "optimizers/restart-{:03}.safetensors"
RESTART_PATTERN = "optimizers/restart-*.safetensors"
LAST_FILE = "optimizer-last.safetensors"
LAST_RESTART_FILE = "optimizers-last/restart-{:03}.safetensors"

# What `run.json` says of an end, which is none where the run goes on.
_OF_AN_END = ("format", "ended", "result", "error", "comparison", "optimizers", "super_epochs_done")
# Far from the small numbers that splitting the seed's key amounts to.
_PRETRAINING = 1000


@dataclasses.dataclass
class Run:
    """A run under way. The keys depend on the seed alone."""

    parts: Parts
    output: Output
    optimizer: Any
    folder: Path
    record: Record
    key: Any
    comparison_key: Any
    pretraining_key: Any
    cadence: Cadence
    pretraining: dict[str, Any] | None = None

    @property
    def restarts(self) -> int | None:
        """How many there are in parallel, if more than one."""
        restarts = self.parts.config.meta.restarts
        return restarts if restarts > 1 else None

    def kept(self, name: str) -> dict[str, Any]:
        """`state` and `callbacks` of a piece of work whose states are kept under a name of `_checkpoints`."""
        config = self.parts.config
        return {
            "state": state_of(self.folder, name, config),
            "callbacks": [checkpoint(self.folder, name, config, self.cadence)],
        }


def begin(
    given: Table,
    out: Path | None,
    output: Output,
    *,
    kind: Literal["train", "pretrain"],
    cadence: Cadence,
    describe: Callable[[Parts, int, str], str],
) -> Run:
    """Makes the untrained optimizer, and the folder with what is known at the start.

    **Arguments:**

    - `given`, `out`, `output`: as in `train`.
    - `kind`: the command.
    - `cadence`: how often the state is kept.
    - `describe`: `(parts, number of meta-parameters, how many coordinates) -> what is going to be done`.

    **Raises:** `UsageError` before anything is written.
    """
    parts = build(given)
    optimizer = _untrained(parts)
    first = given.objective.kind if kind == "train" else "pretrained"
    folder = make_folder(out, Path("runs"), f"{first}-{given.optimizer.kind}")
    # The settings first: with them alone a run can be taken up.
    write_text(folder / CONFIG, to_toml(parts.config))
    meta_parameters = l2o.count_meta_parameters(optimizer) // parts.config.meta.restarts
    coordinates = coordinates_of(parts.family)
    record = Record(
        folder,
        **l2o.environment(),
        kind=kind,
        command=["l2o", *sys.argv[1:]],
        seed=parts.config.seed,
        data=parts.data,
        num_meta_parameters=meta_parameters,
        num_coordinates=coordinates,
    )
    output.say(describe(parts, meta_parameters, _in_words(coordinates)))
    return _run(parts, output, optimizer, folder, record, cadence)


def take_up(given: Table, facts: Mapping[str, Any], folder: Path, output: Output, cadence: Cadence) -> Run:
    """The run of a folder as it was begun, to go on.

    **Arguments:**

    - `given`: its checked configuration.
    - `facts`: of its `run.json`.
    - `folder`, `output`, `cadence`: as in `begin`.

    **Raises:** `UsageError` if another process is at work there.
    """
    parts = build(given)
    here = l2o.environment()
    optimizer = _untrained(parts)
    earlier = [
        *facts.get("resumed", []),
        {"at": now(), "versions": here["versions"], "device": here["device"]},
    ]
    kept = {name: value for name, value in facts.items() if name not in _OF_AN_END}
    record = Record(folder, **{**kept, "resumed": earlier})
    remove_debris(folder)
    return _run(parts, output, optimizer, folder, record, cadence)


def _untrained(parts: Parts) -> Any:
    config = parts.config
    okey, *_ = jr.split(jr.key(config.seed), 3)
    if config.meta.restarts > 1:
        optimizer = eqx.filter_vmap(parts.make_optimizer)(jr.split(okey, config.meta.restarts))
    else:
        optimizer = parts.make_optimizer(okey)
    estimator = getattr(parts.strategy, "estimator", None)
    if estimator is not None and config.trainer.kind == GRADIENT:
        with blaming(("strategy",), config.strategy, otherwise=("strategy", "order")):
            estimator.check(optimizer)
    return optimizer


def _run(parts: Parts, output: Output, optimizer: Any, folder: Path, record: Record, cadence: Cadence) -> Run:
    root = jr.key(parts.config.seed)
    _, key, comparison_key = jr.split(root, 3)
    pretraining_key = jr.fold_in(root, _PRETRAINING)
    return Run(parts, output, optimizer, folder, record, key, comparison_key, pretraining_key, cadence)


def coordinates_of(family: Any) -> int | dict[str, int]:
    """How many coordinates objectives have; of a mixture by the name of the family."""
    if not isinstance(family, Mixture):
        return l2o.count_coordinates(family)
    return {name: l2o.count_coordinates(one) for name, one in family.families.items()}


def _in_words(coordinates: int | dict[str, int]) -> str:
    if isinstance(coordinates, int):
        return f"{coordinates:,}"
    least, most = min(coordinates.values()), max(coordinates.values())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def pretrain_first(run: Run) -> None:
    """Replaces the untrained optimizer by the pretrained one; keeps and says how that went.

    **Raises:** `KeyboardInterrupt` after Ctrl-C.
    """

    def work() -> Pretrained:
        return run_pretraining(
            run.optimizer,
            run.parts,
            run.output,
            restarts=run.restarts,
            key=run.pretraining_key,
            **run.kept(PRETRAINING),
        )

    pretrained = run_interruptibly(work)
    write_pretraining(run.folder, pretrained, run.output)
    run.optimizer = pretrained.solution.optimizer
    run.pretraining = pretrained.facts
    run.record.add(pretraining=run.pretraining)
    show_pretraining(pretrained, run.output)
    _tell_failed(run, pretrained.solution.failed_restarts)


def _tell_failed(run: Run, failed: Sequence[int]) -> None:
    advice = "a smaller --pretrain-omega or --pretrain-meta-learning-rate may help"
    if len(failed) == run.parts.config.meta.restarts:
        run.record.finish("failed", error="the pretraining has diverged", optimizers=[])
        raise Failure(f"the pretraining has diverged, its loss is not finite; {advice}")
    if failed:
        which = ", ".join(map(str, failed))
        run.output.say(f"The pretraining of restart {which} has diverged; {advice}.", "yellow")


def save_optimizers(run: Run, optimizer: Any, *, last: bool = False, **facts: Any) -> list[str]:
    """Writes the optimizer, or each restart's, and returns the names of the files.

    **Arguments:**

    - `run`: says where to.
    - `optimizer`: one, or a batch of restarts.
    - `last`: whether it is the last one, where another one was taken.
    - `facts`: to keep in each file beside the settings.
    """
    config = run.parts.config
    metadata = {
        "config": plain(config),
        "data": run.parts.data,
        **facts,
    }
    files = optimizer_files(config, last=last)
    for i, name in enumerate(files):
        path = run.folder / name
        path.parent.mkdir(exist_ok=True)
        one = optimizer if run.restarts is None else l2o.select_restart(optimizer, i)
        l2o.save(path, one, metadata=metadata)
    return files


def optimizer_files(config: Table, *, last: bool = False) -> list[str]:
    """The names of a run's optimizer files, one per restart; `last` as in `save_optimizers`."""
    restarts = config.meta.restarts
    one, many = (LAST_FILE, LAST_RESTART_FILE) if last else (OPTIMIZER_FILE, RESTART_FILE)
    return [one] if restarts == 1 else [many.format(i) for i in range(restarts)]


def describe_device() -> str:
    """What JAX computes on, e.g. `2 cpu cores`."""
    return l2o.environment()["device"]
