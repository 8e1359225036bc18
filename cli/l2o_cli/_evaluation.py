"""What `l2o evaluate` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

import l2o_eqx as l2o

from ._build import Parts, build
from ._card import keep_card, run_card
from ._comparison import (
    LEARNED,
    facts_of,
    numbers,
    run_comparison,
    show_comparison,
    title_of,
    write_comparison,
)
from ._config import RunConfig
from ._errors import UsageError
from ._folder import check_free, make_folder
from ._interrupt import interrupted, run_interruptibly
from ._output import Output
from ._resolve import Layer, merge, resolve
from ._run import OPTIMIZER_FILE, RESTART_PATTERN, describe_device

# Far from the small numbers that splitting the seed's key amounts to.
_CARD = 2000


def evaluate(
    source: Path,
    layers: Sequence[Layer],
    out: Path | None,
    output: Output,
    *,
    with_baselines: bool,
    with_card: bool = False,
) -> None:
    """Compares the optimizers of a run, or one from a file.

    **Arguments:**

    - `source`: the folder or the file.
    - `layers`: settings over those of the training.
    - `out`: a folder to make for the results. If `None`, it is made in the run's folder; for a
        file, nothing is written.
    - `output`: what the user sees.
    - `with_baselines`: whether to compare with hand-designed optimizers.
    - `with_card`: whether to make a card of generalization; after Ctrl-C, the part that is done is kept.

    **Raises:** `UsageError` before anything is written; `typer.Exit(130)` after Ctrl-C.
    """
    files = _files(source)
    check_free(out)
    optimizers, metadata = _load(files)
    config = _resolve(metadata, layers)
    parts = build(config)
    _check_fits(optimizers[0], parts)
    restarts = len(optimizers) if len(optimizers) > 1 else None
    optimizer = _stack(optimizers) if restarts else optimizers[0]
    facts = {**facts_of(parts, config.seed), "source": [str(file) for file in files]}
    facts["optimizer"] = type(optimizers[0]).__name__
    title = title_of(facts)
    output.say(_intention(source, facts))

    others = l2o.baselines_for(parts.family) if with_baselines else {}
    comparison = _compare({LEARNED: optimizer, **others}, parts, output, restarts)
    folder = None
    if out or source.is_dir():
        folder = make_folder(out, source / "evaluations", config.objective.kind)
        write_comparison(folder, comparison, title=title, facts=facts)
    show_comparison(comparison, output, title)
    if folder:
        output.say(f"Curves and numbers are in {folder}.")
    answer = {"folder": str(folder) if folder else None, **facts, **numbers(comparison)}
    if with_card:
        key = jr.fold_in(jr.key(config.seed), _CARD)
        card = run_card(optimizer, parts, output, restarts=restarts, key=key)
        keep_card(folder, card, output, facts)
        answer["card"] = card.as_dict()
    output.result(answer)
    if with_card and not answer["card"]["complete"]:
        interrupted()


def _compare(
    optimizers: dict[str, Any], parts: Parts, output: Output, restarts: int | None
) -> l2o.Comparison:
    # The key is that of the training's own comparison.
    key = jr.split(jr.key(parts.config.seed), 3)[2]
    try:
        return run_interruptibly(
            lambda: run_comparison(optimizers, parts, output, restarts=restarts, key=key)
        )
    except KeyboardInterrupt:
        output.say("Interrupted; nothing was written.")
        interrupted()


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"RUN_OR_FILE: there is neither a folder nor a file {source}")
    single = source / OPTIMIZER_FILE
    files = [single] if single.is_file() else sorted(source.glob(RESTART_PATTERN))
    if not files:
        raise UsageError(
            f"RUN_OR_FILE: {source} holds no trained optimizer, neither {OPTIMIZER_FILE} nor "
            f"{RESTART_PATTERN}"
        )
    return files


def _load(files: Sequence[Path]) -> tuple[list[Any], dict[str, Any]]:
    try:
        optimizers, metadata = [l2o.load(file) for file in files], l2o.load_metadata(files[0])
    except (OSError, ValueError) as error:
        raise UsageError(f"RUN_OR_FILE: {error}") from None
    if not isinstance(optimizers[0], l2o.optimizers.AbstractOptimizer):
        what = type(optimizers[0]).__name__
        raise UsageError(f"RUN_OR_FILE: {files[0]} holds no optimizer, but an object of type {what}")
    return optimizers, metadata


def _resolve(metadata: dict[str, Any], layers: Sequence[Layer]) -> RunConfig:
    asked: Layer = {}
    for layer in layers:
        asked = merge(asked, layer)
    trained = metadata.get("config")
    if not isinstance(trained, dict):
        # Saved by `l2o_eqx.save`, not by `l2o train`: the presets of the objective hold.
        return resolve([asked])
    trained = dict(trained)
    kind = asked.get("objective", {}).get("kind", trained["objective"]["kind"])
    if kind != trained["objective"]["kind"]:
        # What was fit for one objective may take hours on another one, whose presets know better.
        trained.pop("evaluation", None)
    return resolve([trained, {"seed": trained.get("seed", 0) + 1}, asked])


def _check_fits(optimizer: Any, parts: Parts) -> None:
    objective = parts.family.sample(jr.key(0))
    try:
        jax.eval_shape(lambda key: optimizer.init(objective.init(key)), jr.key(0))
    except ValueError as error:
        raise UsageError(f"this optimizer does not fit the objective: {error}") from None


def _stack(optimizers: Sequence[Any]) -> Any:
    def stack(*leaves: Any) -> Any:
        return jnp.stack(leaves) if isinstance(leaves[0], jax.Array) else leaves[0]

    return jax.tree.map(stack, *optimizers)


def _intention(source: Path, facts: dict[str, Any]) -> str:
    data = f"; {facts['data']['description']}" if facts["data"] else ""
    return (
        f"Comparing {LEARNED} ({facts['optimizer']}, from {source}) on {facts['objective']}: "
        f"{facts['num_objectives']} objectives x {facts['num_steps']} steps, seed {facts['seed']}"
        f"{data}; on {describe_device()}"
    )
