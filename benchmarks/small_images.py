"""How good Celo2 and other learned optimizers are on networks of 8x8 digits, 2,000 steps; docs/quality.md.

    python benchmarks/small_images.py run --data-dir FOLDER
    python benchmarks/small_images.py table

Celo2 is trained by its preset, the others as `l2o train --preset best --objective mnist` trains its own, for
100 steps, and as that but for runs as long as Celo2's, in windows that begin anywhere, on the same family.
Celo2 leaves its rate to the user: that of every restart, and of one that is not trained, is tuned as the
baselines are, on the same draws, over 25 rates, constant and cosine. What is finished is kept in the folder
of `--out` and taken up by the same command.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import jax.random as jr
import numpy as np
import optax
import results
import typer
from quality import train

import l2o_eqx as l2o
from l2o_eqx.objectives import MNIST, FromModel, Scaled
from l2o_eqx.optimizers import AbstractOptimizer, Celo2

app = typer.Typer(add_completion=False, help=__doc__)
_EVALUATION = 2_000_000
_IMAGE_SIZE, _BATCH_SIZE = 8, 64
_NUM_STEPS, _LAST = 2000, 100
_DRAWS, _TUNING_DRAWS = 16, 4
_SUFFIX = "-long"
BASELINES = ("AdamW", "Muon")
RIVALS = ("hierarchical-rnn", "learned-momentum", "subspace-rnn", "adam-mlp")
# On top of what the preset says, for runs as long as those that are judged.
LONG = (
    *("strategy.order=first", "strategy.random_phase=true"),
    *("meta.num_steps=[100,450,2000]", "meta.super_epochs=60", "validation.num_steps=450"),
)
# Networks to judge on: hidden sizes and activation. The first is what all were trained on.
NETWORKS: dict[str, tuple[tuple[int, ...], str]] = {
    "64-32-10": ((32,), "mixed"),
    "64-64-32-10": ((64, 32), "relu"),
}


class Tuned:
    """Makes Celo2 with the rate or the schedule that is tried. Compares by identity, as arrays do."""

    def __init__(self, optimizer: AbstractOptimizer):
        self.optimizer = optimizer
        assert isinstance(optimizer, Celo2) and isinstance(optimizer.learning_rate, float)
        self.trained_rate = optimizer.learning_rate

    def __call__(self, learning_rate: Any) -> optax.GradientTransformation:
        # Updates are proportional to the rate.
        return optax.chain(
            l2o.as_optax(self.optimizer),
            optax.scale_by_schedule(lambda step: learning_rate(step) / self.trained_rate),
        )


def family(hidden_sizes: tuple[int, ...], activation: str, digits: Any) -> FromModel:
    """Networks on pooled digits."""
    return MNIST(hidden_sizes, activation, _BATCH_SIZE, image_size=_IMAGE_SIZE, digits=digits)


def train_all(restarts: int, out: Path, digits: Any) -> dict[str, Any]:
    """By name a batch of restarts each."""
    hidden_sizes, activation = NETWORKS["64-32-10"]
    own = family(hidden_sizes, activation, digits)
    found = {"celo2": train(["preset=celo2"], restarts, out, "small-images-celo2", Scaled(own))}
    for suffix, further in (("", ()), (_SUFFIX, LONG)):
        for kind in RIVALS:
            settings = ["preset=best", "objective.kind=mnist", f"optimizer.kind={kind}", *further]
            found[kind + suffix] = train(settings, restarts, out, f"small-images-{kind}{suffix}", own)
    return found


def sides(optimizers: dict[str, Any], restarts: int, problem: FromModel) -> dict[str, dict[str, Any]]:
    """What is compared, by side; those with a rate to tune as baselines, one for every restart."""
    schedules = ("constant", "cosine")
    celo2 = [l2o.select_restart(optimizers["celo2"], i) for i in range(restarts)]
    known = l2o.baselines_for(problem)
    found: dict[str, dict[str, Any]] = {name: {name: known[name]} for name in BASELINES}
    found["celo2"] = {f"celo2 {i}": l2o.Baseline(Tuned(o), schedules=schedules) for i, o in enumerate(celo2)}
    untrained = Celo2(orthogonalize=optimizers["celo2"].orthogonalize, learning_rate=1e-2, key=jr.key(0))
    found["celo2 untrained"] = {"celo2 untrained": l2o.Baseline(Tuned(untrained), schedules=schedules)}
    return found | {name: {name: optimizer} for name, optimizer in optimizers.items() if name != "celo2"}


def judge(problem: FromModel, compared: dict[str, Any], restarts: int) -> dict[str, Any]:
    """The final losses of one side: of restarts and draws, with what tuning chose."""
    begin = time.process_time()
    comparison = l2o.compare(
        compared,
        problem,
        num_steps=_NUM_STEPS,
        num_objectives=_DRAWS,
        num_tuning_objectives=_TUNING_DRAWS,
        tuning="staged",
        last=_LAST,
        restarts=restarts,
        key=jr.key(_EVALUATION),
    )
    losses = np.concatenate([comparison.final_losses(name) for name in compared])
    return {
        "final_losses": losses.tolist(),
        "settings": comparison.settings,
        "seconds": time.process_time() - begin,
    }


@app.command()
def run(
    restarts: Annotated[int, typer.Option(min=1, help="Independent trainings.")] = 3,
    data_dir: Annotated[str, typer.Option(help="Folder of the full MNIST; the embedded digits if ''.")] = "",
    out: results.Folder = Path("bench/quality"),
) -> None:
    """Trains what is not trained yet, and judges what is not judged yet."""
    digits = l2o.data.load_mnist("tfds", data_dir) if data_dir else l2o.data.load_mnist("embedded")
    optimizers = train_all(restarts, out, digits)
    for name, (hidden_sizes, activation) in NETWORKS.items():
        path = out / f"small-images-{name}.json"
        content = results.known(path, {"steps": _NUM_STEPS, "sides": {}})
        problem = family(hidden_sizes, activation, digits)
        for side, compared in sides(optimizers, restarts, problem).items():
            if side not in content["sides"]:
                content["sides"][side] = judge(problem, compared, restarts)
                results.keep(path, content)
                print(line(side, content["sides"][side]), flush=True)


def line(side: str, found: dict[str, Any]) -> str:
    """One row in Markdown: the median over draws of every restart, and all draws' range."""
    losses = np.asarray(found["final_losses"], float)
    medians = np.median(losses, axis=1)
    chosen = [
        ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in s.values())
        for s in found["settings"].values()
    ]
    restarts = "" if len(medians) == 1 else f" [{medians.min():.3g}, {medians.max():.3g}]"
    return (
        f"| {side} | {np.median(medians):.3g}{restarts} | {losses.min():.3g} to {losses.max():.3g} "
        f"| {'; '.join(dict.fromkeys(chosen))} | {found['seconds']:.0f} |"
    )


@app.command()
def table(out: results.Folder = Path("bench/quality")) -> None:
    """All that is finished, as Markdown tables."""
    for name in NETWORKS:
        path = out / f"small-images-{name}.json"
        if path.exists():
            print(f"\n{name}\n\n| | median [over restarts] | all draws | settings | CPU-seconds |")
            print("|---|---|---|---|---|")
            for side, found in results.known(path, None)["sides"].items():
                print(line(side, found))


if __name__ == "__main__":
    app()
