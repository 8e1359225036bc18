"""The comparison at the end of a training, and that of `l2o evaluate`: run it, keep it, show it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx import plots

from ._build import Parts
from ._folder import replacing, write_text
from ._output import Output, dumps

LEARNED = "learned"


def run_comparison(
    optimizer: Any,
    parts: Parts,
    output: Output,
    *,
    restarts: int | None,
    baselines: Mapping[str, Any],
    key: PRNGKeyArray,
) -> l2o.Comparison:
    """`l2o_eqx.compare`, one optimizer after the other, to show how far it is.

    **Arguments:**

    - `optimizer`: the learned one, or a batch of `restarts`.
    - `parts`: with the family and the settings `evaluation`.
    - `output`: shows the progress.
    - `baselines`: to compare with.
    - `key`: gives all of them the same draws.
    """
    settings = parts.config.evaluation
    entries = {LEARNED: optimizer, **baselines}
    done: list[l2o.Comparison] = []
    with output.progress("comparing", len(entries), "") as update:
        for name, entry in entries.items():
            update(len(done), name)
            comparison = l2o.compare(
                {name: entry},
                parts.family,
                num_steps=settings.num_steps or parts.config.meta.num_steps,
                num_objectives=settings.num_objectives,
                num_tuning_objectives=settings.num_tuning_objectives,
                learning_rates=settings.learning_rates or l2o.LEARNING_RATES,
                restarts=restarts,
                key=key,
            )
            # Waits for the numbers, so that the name shown is that of the optimizer at work.
            comparison.summary()
            done.append(comparison)
        update(len(entries), "done")
    return merge(done)


def merge(comparisons: list[l2o.Comparison]) -> l2o.Comparison:
    """Comparisons with the same draws and learning rates as one."""
    return l2o.Comparison(
        {name: t for c in comparisons for name, t in c.trajectories.items()},
        {name: rate for c in comparisons for name, rate in c.learning_rates.items()},
        {name: losses for c in comparisons for name, losses in c.tuning_losses.items()},
        comparisons[0].tried,
    )


def write_comparison(
    folder: Path, comparison: l2o.Comparison, *, title: str, facts: Mapping[str, Any]
) -> None:
    """Writes `curves.csv`, `final_losses.csv`, `comparison.json` and `curves.png`.

    **Arguments:**

    - `folder`: where to.
    - `comparison`: what.
    - `title`: of the figure.
    - `facts`: to keep in `comparison.json` beside the numbers.
    """
    with replacing(folder / "curves.csv") as path:
        comparison.write_curves(path)
    with replacing(folder / "final_losses.csv") as path:
        comparison.write_final_losses(path)
    content = {"format": 1, "title": title, **facts, **numbers(comparison)}
    write_text(folder / "comparison.json", dumps(content, indent=2) + "\n")
    with replacing(folder / "curves.png") as path:
        plots.plot_curves(comparison.curves(), path, title=title)


def numbers(comparison: l2o.Comparison) -> dict[str, Any]:
    """What `comparison.json` and `--json` have of a comparison."""
    return {
        "summary": comparison.summary(),
        "restarts": restarts_of(comparison),
        "learning_rates_tried": comparison.tried,
        "tuning_losses": comparison.tuning_losses,
    }


def restarts_of(comparison: l2o.Comparison) -> dict[str, Any] | None:
    """The spread over restarts and the share that beat each hand-made optimizer; `None` for one."""
    medians = comparison.restart_medians(LEARNED)
    if len(medians) == 1:
        return None
    others = [name for name in comparison.trajectories if name != LEARNED]
    return {
        "medians": medians,
        "share_beating": {name: comparison.share_beating(LEARNED, name) for name in others},
    }


def show_comparison(comparison: l2o.Comparison, output: Output, title: str) -> None:
    """The table, with a line on the restarts if there are several.

    **Arguments:**

    - `comparison`: what.
    - `output`: where to.
    - `title`: above the table.
    """
    output.summary(title, comparison.summary(), LEARNED, _restart_notes(comparison))


def _restart_notes(comparison: l2o.Comparison) -> list[str]:
    restarts = restarts_of(comparison)
    if restarts is None:
        return []
    spread = _spread(restarts["medians"])
    notes = [f"medians of the {len(restarts['medians'])} restarts: {spread}"]
    if "Adam" in restarts["share_beating"]:
        notes.append(f"{restarts['share_beating']['Adam']:.0%} of the restarts beat tuned Adam.")
    return notes


def _spread(medians: Any) -> str:
    names = ("min", "25 %", "median", "75 %", "max")
    values = np.quantile(medians, (0, 0.25, 0.5, 0.75, 1), method="nearest")
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))


def title_of(facts: Mapping[str, Any]) -> str:
    """One line on what was compared on what."""
    return (
        f"{facts['objective']}: losses on {facts['num_objectives']} unseen objectives, "
        f"{facts['num_steps']} steps"
    )


def facts_of(parts: Parts, seed: int) -> dict[str, Any]:
    """What one must know to read the numbers of a comparison."""
    config = parts.config
    return {
        "objective": config.objective.kind,
        "objective_settings": config.objective.model_dump(mode="json"),
        "optimizer": config.optimizer.kind,
        "num_steps": config.evaluation.num_steps or config.meta.num_steps,
        "num_objectives": config.evaluation.num_objectives,
        "num_tuning_objectives": config.evaluation.num_tuning_objectives,
        "seed": seed,
        "data": parts.data,
    }
