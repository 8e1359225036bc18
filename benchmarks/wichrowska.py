"""`HierarchicalRNN` trained on `Wichrowska`, on unseen draws of every family and on a network it never saw.

    python benchmarks/wichrowska.py train --out docs/quality
    python benchmarks/wichrowska.py judge --out docs/quality
    python benchmarks/wichrowska.py table --out docs/quality

The measure is the mean of ln(f/f_1 + 1e-6) over the last 20 steps and the draws. What is finished is kept
in the folder of `--out` and taken up by the same command.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import results
import typer
from jaxtyping import Array, Int
from l2o_cli._build import build
from l2o_cli._resolve import resolve

import l2o_eqx as l2o
from l2o_eqx.objectives import AbstractObjectiveFamily, Choice, SyntheticClassification, Wichrowska

app = typer.Typer(add_completion=False, help=__doc__)
_DRAWS, _TUNING_DRAWS, _LAST, _EPS = 64, 32, 20, 1e-6
LEARNED = ("hierarchical-rnn", "coordinatewise-lstm")


class _Only(AbstractObjectiveFamily):
    # One family of a choice; which, is an array, so that one program serves for all of them.
    choice: Choice
    index: Int[Array, ""]

    def sample(self, key):
        objective = self.choice.sample(key)
        return eqx.tree_at(lambda f: f.index, objective, self.index)


def families() -> Iterator[tuple[str, AbstractObjectiveFamily, int]]:
    """Every family that is trained on, and the network that is not, with its number of steps."""
    for group, family in Wichrowska().families.items():
        if not isinstance(family, Choice):
            yield group, family, 200
            continue
        for index, name in enumerate(family.families):
            yield f"{group}/{name}", _Only(family, jnp.asarray(index)), 200
    unseen = SyntheticClassification((20,), 2, activation="relu", batch_size=20)
    yield "unseen network", unseen, 200
    yield "unseen network, 2000 steps", unseen, 2000


@app.command()
def train(out: results.Folder = Path("bench/quality"), super_epochs: int = 1200) -> None:
    """Both optimizers, as `l2o train --objective wichrowska --optimizer NAME` does."""
    for name in LEARNED:
        path = out / f"wichrowska-{name}.safetensors"
        if path.exists():
            continue
        settings = {"objective": "wichrowska", "optimizer": name, "meta": {"super_epochs": super_epochs}}
        parts = build(resolve([settings]))
        key = jr.key(parts.config.seed)
        begin = time.perf_counter()
        marks: list[float] = []

        def say(progress: l2o.Progress, name=name, begin=begin, marks=marks) -> None:
            marks.append(time.perf_counter() - begin)
            if progress.super_epoch % 50 == 0:
                print(f"{name}: {progress.super_epoch} super epochs, {marks[-1]:.0f} s", flush=True)

        solution = l2o.meta_train(
            parts.make_optimizer(jr.fold_in(key, 0)),
            parts.family,
            parts.strategy,
            **parts.training,
            key=jr.fold_in(key, 1),
            callbacks=[say],
        )
        assert solution.best is not None
        facts = {"seconds": marks[-1], "super_epochs": super_epochs, **solution.best.facts()}
        print(name, facts, flush=True)
        l2o.save(path, solution.best.optimizer, metadata=facts)


@app.command()
def judge(out: results.Folder = Path("bench/quality")) -> None:
    """All families, beside an Adam tuned on each: 25 rates, five pairs of betas, constant and cosine."""
    learned = {name: l2o.load(out / f"wichrowska-{name}.safetensors") for name in LEARNED}
    path = out / "wichrowska.json"
    known = results.known(path, {})
    adam = l2o.BASELINES["Adam"]
    assert isinstance(adam, l2o.Baseline)
    baseline = l2o.Baseline(optax.adam, adam.grid, ("constant", "cosine"))
    for number, (name, family, num_steps) in enumerate(families()):
        if name in known:
            continue
        comparison = l2o.compare(
            {**learned, "Adam": baseline},
            family,
            num_steps=num_steps,
            num_objectives=_DRAWS,
            num_tuning_objectives=_TUNING_DRAWS,
            last=_LAST,
            key=jr.fold_in(jr.key(1), number),
        )
        known[name] = {"settings": comparison.settings["Adam"]}
        for which, run in comparison.trajectories.items():
            losses = np.asarray(run.losses, np.float64)
            losses = losses[0] if losses.ndim == 3 else losses
            known[name][which] = _measure(losses)
        results.keep(path, known)
        print(line(name, known[name]), flush=True)


def _measure(losses: np.ndarray) -> dict[str, Any]:
    # Noise may take a loss below zero.
    relative = np.maximum(losses, 0) / np.maximum(losses[:, :1], 1e-30)
    each = np.log(relative[:, -_LAST:] + _EPS).mean(1)
    return {
        "mean": float(each.mean()),
        "standard_error": float(each.std(ddof=1) / np.sqrt(len(each))),
        "not_finite": int(np.sum(~np.isfinite(losses).all(1))),
        "above_start": int(np.sum(~(losses[:, -_LAST:].mean(1) <= losses[:, 0]))),
    }


def line(name: str, row: dict[str, Any]) -> str:
    """One row of the table, in Markdown."""
    cells = [f"{row[w]['mean']:.2f} ± {row[w]['standard_error']:.2f}" for w in (*LEARNED, "Adam")]
    ahead = row[LEARNED[0]]["mean"] <= row["Adam"]["mean"]
    failed = row[LEARNED[0]]["not_finite"], row[LEARNED[0]]["above_start"]
    return f"| {name} | {' | '.join(cells)} | {'yes' if ahead else 'no'} | {failed[0]}, {failed[1]} |"


@app.command()
def table(out: results.Folder = Path("bench/quality")) -> None:
    """What is finished, in Markdown."""
    print(f"| family | {' | '.join((*LEARNED, 'Adam'))} | at or below Adam | not finite, above start |")
    print("|---|---|---|---|---|---|")
    for name, row in results.known(out / "wichrowska.json", {}).items():
        print(line(name, row))


if __name__ == "__main__":
    l2o.use_cores()
    app()
