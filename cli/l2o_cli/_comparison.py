"""The comparison at the end of a training, and that of `l2o evaluate`: run it, keep it, show it."""

import contextlib
import functools
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx import plots
from l2o_eqx.files import dumps, replacing, write_text
from l2o_eqx.objectives._mixture import families_of

from ._build import Parts, baselines_of
from ._errors import counted
from ._folder import file_name
from ._mixture import name_of
from ._output import Output, Update
from ._pictures import draw
from ._resolve import plain

# The folder in that of a run, beside its other checkpoints.
PARTIAL = "checkpoints/comparison"
LEARNED = "learned"
UNTRAINED = "untrained"


# By the name of the family in a mixture, or under no name.
Comparisons = dict[str, l2o.Comparison]


def run_comparisons(
    optimizers: Mapping[str, Any],
    parts: Parts,
    output: Output,
    *,
    restarts: int | None,
    key: PRNGKeyArray,
    with_baselines: bool = True,
    keep_in: Path | None = None,
) -> Comparisons:
    """`l2o_eqx.compare` with the settings of a run, on each family, and a bar that shows how far it is.

    **Arguments:**

    - `optimizers`: by name; learned ones are batches of `restarts`.
    - `parts`: with the family, or families, and the settings `evaluation`.
    - `output`: shows the progress.
    - `key`: picks the draws.
    - `with_baselines`: whether those that fit are compared, too.
    - `keep_in`: the folder in which results are kept as they come, and taken up; until `forget_partial`.
    """
    families = families_of(parts.family)
    compared = {name: dict(optimizers) for name in families}
    for name, family in families.items() if with_baselines else ():
        compared[name] |= baselines_of(family, parts, optimizers[LEARNED])
    found: Comparisons = {}
    with output.progress("comparing", sum(map(len, compared.values())), "") as update:
        done = 0
        for name, family in families.items():
            callbacks: list[Any] = [functools.partial(_show_progress, update, done, name)]
            known = None
            if keep_in is not None:
                path = keep_in / PARTIAL / f"{file_name(name) or 'comparison'}.safetensors"
                partial = _Partial(path, {"settings": plain(parts.config), "family": name}, compared[name])
                known = partial.load()
                callbacks.append(partial)
            found[name] = l2o.compare(
                compared[name],
                family,
                **parts.comparing,
                restarts=restarts,
                key=key,
                callbacks=callbacks,
                known=known,
            )
            done += len(compared[name])
        update(done, "done")
    return found


class _Partial:
    """Keeps what a comparison has found so far: a callback of `compare`.

    **Arguments:**

    - `path`: of the file.
    - `facts`: what it depends on; of others, nothing is taken up.
    - `names`: of what is compared, and so of others.
    """

    def __init__(self, path: Path, facts: dict[str, Any], names: Collection[str]):
        self.path, self.facts, self.names, self.count = path, facts, names, 0

    def load(self) -> l2o.Comparison | None:
        """What was found before."""
        try:
            same = l2o.load_metadata(self.path) == self.facts
            found: Any = l2o.load(self.path) if same else None
        except (OSError, ValueError):
            return None
        if found is not None and not set(found.trajectories) <= set(self.names):
            return None
        self.count = 0 if found is None else len(found.trajectories)
        return found

    def __call__(self, progress: l2o.ComparisonProgress) -> None:
        found = progress.comparison
        if found is None or len(found.trajectories) <= self.count:
            return
        self.count = len(found.trajectories)
        # Nothing is lost without it but time.
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            l2o.save(self.path, found, metadata=self.facts)


def forget_partial(folder: Path) -> None:
    """Removes what `run_comparisons` has kept in a folder."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def _show_progress(update: Update, before: int, family: str, progress: l2o.ComparisonProgress) -> None:
    if progress.done < progress.total:
        update(before + progress.done, f"{progress.name} on {family}" if family else progress.name)


def write_comparisons(
    folder: Path,
    comparisons: Comparisons,
    output: Output,
    *,
    title: str,
    facts: Mapping[str, Any],
    by: str = LEARNED,
) -> None:
    """Writes `comparison.json`, `curves.png` and the CSV files; of several, those of each in a folder.

    **Arguments:** as of `write_comparison`.
    """
    if "" in comparisons:
        write_comparison(folder, comparisons[""], output, title=title, facts=facts, by=by)
        return
    for name, comparison in comparisons.items():
        own = folder / "families" / file_name(name)
        own.mkdir(parents=True, exist_ok=True)
        of_family = {"title": title_of({**facts, "objective": name}), "facts": {**facts, "family": name}}
        write_comparison(own, comparison, output, **of_family, by=by)
    content = {"format": 1, "title": title, **facts, **numbers_of(comparisons, by)}
    write_text(folder / "comparison.json", dumps(content, indent=2) + "\n")
    curves = {name: comparison.curves() for name, comparison in comparisons.items()}
    draw(folder / "curves.png", lambda path: plots.plot_families(curves, path, title=title), output)


def numbers_of(comparisons: Comparisons, by: str = LEARNED) -> dict[str, Any]:
    """As `numbers`; of several by the name of the family, in `families`."""
    if "" in comparisons:
        return numbers(comparisons[""], by)
    return {"families": {name: numbers(comparison, by) for name, comparison in comparisons.items()}}


def show_comparisons(comparisons: Comparisons, output: Output, title: str, by: str = LEARNED) -> None:
    """As `show_comparison`; of several one row each."""
    if "" in comparisons:
        show_comparison(comparisons[""], output, title, by)
        return
    rows = [_row(name, comparison, by) for name, comparison in comparisons.items()]
    last = max(comparison.last for comparison in comparisons.values())
    ahead = sum(row[-1] for row in rows)
    notes = [
        f"Median losses at the end. Wins: objectives on which {by} ends below the best baseline;",
        "equal losses count half.",
        *([f"A final loss is the mean of the last {last} steps."] if last > 1 else []),
    ]
    compared = sum(not math.isnan(row[3]) for row in rows)
    if compared:
        notes.append(f"{by} has the lowest median on {ahead} of the {compared} families with a baseline.")
    output.families(title, rows, notes, by)


def _row(name: str, comparison: l2o.Comparison, by: str) -> tuple[str, float, float, float, str, float, bool]:
    medians = {row["name"]: float(row["median"]) for row in comparison.summary(by)}
    best = comparison.best_baseline()
    learned, untrained = medians[by], medians.get(UNTRAINED, math.nan)
    if best is None:
        there_are = len(comparison.learned) < len(comparison.trajectories)
        return name, learned, untrained, math.nan, "broken" if there_are else "", math.nan, False
    wins, *_ = comparison.share_of_objectives(by, best)
    return name, learned, untrained, medians[best], best, wins, learned <= medians[best]


def write_comparison(
    folder: Path,
    comparison: l2o.Comparison,
    output: Output,
    *,
    title: str,
    facts: Mapping[str, Any],
    by: str = LEARNED,
) -> None:
    """Writes `curves.csv`, `final_losses.csv`, `comparison.json` and `curves.png`.

    Where an optimizer searches the line, there is `curves_by_evaluations.csv`, too.

    **Arguments:**

    - `folder`: where to.
    - `comparison`: what.
    - `output`: is told if a picture cannot be drawn.
    - `title`: of the figure.
    - `facts`: to keep in `comparison.json` beside the numbers.
    - `by`: the optimizer that the others are compared with.
    """
    content = {"format": 1, "title": title, **facts, **numbers(comparison, by)}
    write_text(folder / "comparison.json", dumps(content, indent=2) + "\n")
    with replacing(folder / "curves.csv") as path:
        comparison.write_curves(path)
    if _searching(comparison):
        with replacing(folder / "curves_by_evaluations.csv") as path:
            comparison.write_curves(path, by_evaluations=True)
    with replacing(folder / "final_losses.csv") as path:
        comparison.write_final_losses(path)
    several, curves = _searching(comparison), comparison.curves()
    draw(
        folder / "curves.png",
        lambda path: plots.plot_curves(curves, path, title=title, several=several),
        output,
    )


def numbers(comparison: l2o.Comparison, by: str = LEARNED) -> dict[str, Any]:
    """What `comparison.json` and `--json` have of a comparison with the optimizer `by`."""
    best = comparison.best_baseline()
    return {
        "summary": comparison.summary(by),
        "averaged_steps": comparison.last,
        "best_so_far": comparison.best_so_far,
        "best_baseline": best,
        "steps_to_pass": None if best is None else comparison.steps_to_pass(by, best),
        "restarts": restarts_of(comparison, by),
        "learning_rates_tried": comparison.tried,
        "tuning_losses": comparison.tuning_losses,
    }


def restarts_of(comparison: l2o.Comparison, by: str = LEARNED) -> dict[str, Any] | None:
    """The spread over restarts and the share that beat each of the others; `None` for one.

    There is no share for what is broken.
    """
    medians = comparison.restart_medians(by)
    if len(medians) == 1:
        return None
    others = [name for name in comparison.trajectories if name != by]
    return {
        "medians": medians,
        "share_beating": {name: comparison.share_beating(by, name) for name in others},
    }


def show_comparison(comparison: l2o.Comparison, output: Output, title: str, by: str = LEARNED) -> None:
    """The table, and what there is to say about it.

    **Arguments:**

    - `comparison`: what.
    - `output`: where to.
    - `title`: above the table.
    - `by`: the optimizer that the others are compared with.
    """
    output.summary(title, comparison.summary(by), by, [*_notes(comparison, by)])


def _notes(comparison: l2o.Comparison, by: str) -> Iterator[str]:
    if comparison.best_so_far:
        yield "A loss is the lowest of the run until then."
    if comparison.last > 1:
        yield f"A final loss is the mean of the last {comparison.last} steps."
    best = comparison.best_baseline()
    if best is not None and best != by:
        share, low, high = comparison.share_of_objectives(by, best)
        yield (
            f"{by} ends below {best}, the best baseline, on {share:.0%} of the objectives "
            f"(95 %: {low:.0%} to {high:.0%}; equal losses count half)."
        )
        steps = comparison.steps_to_pass(by, best)
        if steps is None:
            yield f"The median of {by} never reaches the final loss of {best}."
        else:
            yield f"The median of {by} reaches the final loss of {best} after {counted(steps, 'step')}."
    restarts = restarts_of(comparison, by)
    if restarts is None:
        return
    yield f"medians of the {len(restarts['medians'])} restarts: {_spread(restarts['medians'])}"
    if best is not None:
        yield f"{restarts['share_beating'][best]:.0%} of the restarts have a median below that of {best}."


def _searching(comparison: l2o.Comparison) -> list[str]:
    return [name for name in comparison.trajectories if comparison.evaluations_per_step(name) > 1]


def _spread(medians: Any) -> str:
    names = ("min", "25 %", "median", "75 %", "max")
    values = np.quantile(medians, (0, 0.25, 0.5, 0.75, 1))
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))


def title_of(facts: Mapping[str, Any]) -> str:
    """One line on what was compared on what."""
    return (
        f"{facts['objective']}: losses on {counted(facts['num_objectives'], 'unseen objective')}, "
        f"{counted(facts['num_steps'], 'step')}"
    )


def facts_of(parts: Parts, seed: int) -> dict[str, Any]:
    """What one must know to read the numbers of a comparison."""
    config = parts.config
    return {
        "objective": name_of(config.objective),
        "objective_settings": plain(config.objective),
        "optimizer": config.optimizer.kind,
        "num_steps": parts.evaluation_steps,
        "num_objectives": config.evaluation.num_objectives,
        "num_tuning_objectives": config.evaluation.num_tuning_objectives,
        "seed": seed,
        "data": parts.data,
    }
