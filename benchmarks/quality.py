"""How good the presets' optimizers are: every number of docs/quality.md, over many restarts.

    python benchmarks/quality.py quadratic --restarts 100
    python benchmarks/quality.py mnist --restarts 20 --data-dir FOLDER
    python benchmarks/quality.py table

What is finished is kept in the folder of `--out` and taken up by the same command.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import results
import typer
from l2o_cli._build import build
from l2o_cli._resolve import read_assignments, read_toml, resolve

import l2o_eqx as l2o
from l2o_eqx.objectives import HELD_OUT_ACTIVATIONS, MNIST, FromModel, Quadratic, Scaled

app = typer.Typer(add_completion=False, help=__doc__)
Restarts = Annotated[int, typer.Option(min=1, help="Independent trainings.")]
_EVALUATION = 1_000_000
# Several evaluations a step; not among those to beat.
SEARCHES = ("L-BFGS", "line search")


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the tables: a family, how long, how many objectives, and what counts as the loss."""

    name: str
    family: Any
    num_steps: int
    num_objectives: int
    last: int = 1
    baselines: tuple[str, ...] | None = None
    measure: Callable[..., Any] | None = None


def train(settings: list[str], restarts: int, out: Path, name: str, family: Any = None) -> Any:
    """A batch of optimizers, trained as the preset says in one program; kept in `out`."""
    path = out / f"{name}.safetensors"
    if path.exists():
        return l2o.load(path)
    parts = build(resolve(read_assignments(settings)))
    meta = parts.config.meta
    key = jr.key(parts.config.seed)
    optimizers = eqx.filter_vmap(parts.make_optimizer)(jr.split(key, restarts))
    begin = time.perf_counter()

    def say(progress: l2o.Progress) -> None:
        done = progress.super_epoch
        left = (time.perf_counter() - begin) / done * (meta.super_epochs - done)
        if done % max(1, meta.super_epochs // 10) == 0:
            loss = np.median(progress.metrics["meta_loss"])
            print(f"{name}: super epoch {done}, meta-loss {loss:.4g}, {left:.0f} s left", flush=True)

    family = parts.family if family is None else family
    validation = parts.validation and dataclasses.replace(parts.validation, family=family)
    solution = l2o.meta_train(
        optimizers,
        family,
        parts.strategy,
        **{**parts.training, "validation": validation},
        restarts=restarts,
        key=jr.fold_in(key, 1),
        callbacks=[say],
    )
    trained = solution.optimizer if solution.best is None else solution.best.optimizer
    seconds = time.perf_counter() - begin
    l2o.save(path, trained, metadata={"seconds": seconds, "restarts": restarts, "settings": settings})
    return trained


def judge(case: Case, optimizers: Any, restarts: int, out: Path, seed: int = 0) -> None:
    """Compares on unseen draws and keeps the numbers as JSON."""
    path = out / f"{case.name}.json"
    if path.exists():
        return
    key = jr.fold_in(jr.key(seed), _EVALUATION)
    names = l2o.baselines_for(case.family)
    known = {n: b for n, b in names.items() if case.baselines is None or n in case.baselines}
    begin = time.perf_counter()
    comparison = l2o.compare(
        {"learned": optimizers, **known},
        case.family,
        num_steps=case.num_steps,
        num_objectives=case.num_objectives,
        num_tuning_objectives=min(32, case.num_objectives),
        last=case.last,
        restarts=restarts,
        key=key,
    )
    best = comparison.best_baseline()
    learned = comparison.final_losses("learned")
    first = np.asarray(comparison.trajectories["learned"].losses[..., 0])
    content: dict[str, Any] = {
        "case": case.name,
        "steps": case.num_steps,
        "objectives": case.num_objectives,
        "restarts": restarts,
        "medians": comparison.restart_medians("learned").tolist(),
        "means": np.mean(learned, axis=1).tolist(),
        "above_start": np.mean(~(learned <= first), axis=1).tolist(),
        "best": best,
        "baselines": {
            row["name"]: {"median": row["median"], "mean": row["mean"], "settings": row["settings"]}
            for row in comparison.summary()
            if row["name"] != "learned"
        },
        "seconds": time.perf_counter() - begin,
    }
    if case.measure is not None:
        content["held_out"] = held_out(case, optimizers, comparison, restarts, key)
    results.keep(path, content)
    print(line(content), flush=True)


def held_out(case: Case, optimizers: Any, comparison: Any, restarts: int, key: Any) -> dict[str, Any]:
    """Mean loss on digits that nothing was trained on, where the runs end: per restart, and of baselines."""
    common: dict[str, Any] = {
        "num_steps": case.num_steps,
        "num_objectives": case.num_objectives,
        "measure": case.measure,
        "key": jr.split(key)[1],
    }
    learned = l2o.evaluate(optimizers, case.family, restarts=restarts, **common).measured
    found: dict[str, Any] = {"learned": np.mean(np.asarray(learned), axis=1).tolist()}
    for name, settings in comparison.settings.items():
        baseline = l2o.baselines_for(case.family)[name]
        assert isinstance(baseline, l2o.Baseline)
        optimizer = baseline.with_settings(case.num_steps, **settings)
        found[name] = float(np.mean(np.asarray(l2o.evaluate(optimizer, case.family, **common).measured)))
    return found


def line(content: dict[str, Any]) -> str:
    """One row of the table, in Markdown."""
    medians = np.array(content["medians"])
    best = content["baselines"][content["best"]]
    ahead = int(np.sum(medians <= best["median"]))
    means = [b["mean"] for name, b in content["baselines"].items() if name not in SEARCHES]
    return (
        f"| {content['case']} | {np.median(medians):.3g} [{medians.min():.3g}, {medians.max():.3g}] "
        f"| {best['median']:.3g} ({content['best']}) | {ahead} of {len(medians)} "
        f"| {np.median(content['means']):.3g} / {min(means):.3g} "
        f"| {max(content['above_start']):.1%} |"
    )


def quadratic_cases() -> Iterator[Case]:
    """16-d as trained, longer, of other sizes, on other scales."""
    yield Case("quadratic-16-320", Quadratic(16), 320, 256)
    yield Case("quadratic-16-1000", Quadratic(16), 1000, 256)
    yield Case("quadratic-16-3200", Quadratic(16), 3200, 256)
    yield Case("quadratic-10-100", Quadratic(10), 100, 256)
    yield Case("quadratic-8-320", Quadratic(8), 320, 256)
    yield Case("quadratic-64-320", Quadratic(64), 320, 64)
    for exponent in (-3, 3):
        factor = 10.0**exponent
        yield Case(f"quadratic-loss-1e{exponent}", Scaled(Quadratic(16), factor, factor), 320, 256)
        pointwise = Scaled(Quadratic(16), 1.0, 1.0, pointwise=(factor, factor))
        yield Case(f"quadratic-params-1e{exponent}", pointwise, 320, 256)
    yield Case("quadratic-256-320", Quadratic(256), 320, 16)


@app.command()
def quadratic(restarts: Restarts = 100, out: results.Folder = Path("bench/quality")) -> None:
    """The default of `l2o train --objective quadratic`."""
    optimizers = train(["preset=best", "objective.kind=quadratic"], restarts, out, "quadratic")
    for case in quadratic_cases():
        judge(case, optimizers, restarts, out)


ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu")
_OF_NETWORKS = ("momentum", "Nesterov", "Adam", "AdamW", "RMSprop", "Lion", "Muon")
# Those that were best of all or next to it at 100 steps: tuning takes hours of a core otherwise.
_OF_LONG_RUNS = ("Nesterov", "Adam", "Muon")


@app.command()
def mnist(
    restarts: Restarts = 20,
    data_dir: Annotated[str, typer.Option(help="Folder of the full MNIST; the embedded digits if ''.")] = "",
    out: results.Folder = Path("bench/quality"),
) -> None:
    """The default of `l2o train --objective mnist`, trained on all four activations."""
    digits = l2o.data.load_mnist("tfds", data_dir) if data_dir else l2o.data.load_mnist("embedded")
    settings = ["preset=best", "objective.kind=mnist", "objective.activation=mixed"]
    # Half as wide as what they are judged on.
    settings.append("objective.hidden_sizes=[16]")
    optimizers = train(settings, restarts, out, "mnist", MNIST((16,), "mixed", digits=digits))
    for case in mnist_cases(digits):
        judge(case, optimizers, restarts, out)


def mnist_cases(digits: Any) -> Iterator[Case]:
    """All activations, at 100 steps and one epoch; then ten times as long, wider, deeper, other."""
    held = (jnp.asarray(digits.test_images), jnp.asarray(digits.test_labels))

    def measure(objective: Any, params: Any) -> Any:
        return objective.loss_fn(objective.model(params), held, None, None)[0]

    def network(sizes: tuple[int, ...], activation: str) -> FromModel:
        return MNIST(sizes, activation, digits=digits)

    def case(name: str, family: Any, steps: int, objectives: int = 16) -> Case:
        baselines = _OF_NETWORKS if steps == 100 else _OF_LONG_RUNS
        return Case(f"mnist-{name}", family, steps, objectives, 20, baselines, measure)

    for activation in ACTIVATIONS:
        yield case(f"{activation}-100", network((32,), activation), 100)
    for activation in ACTIVATIONS:
        yield case(f"{activation}-epoch", network((32,), activation), 375, 8)
    others = l2o.variations(network((32,), "mixed"))
    for activation in HELD_OUT_ACTIVATIONS:
        yield case(f"{activation}-100", others[f"activation {activation}"].family, 100)
    yield case("relu-wide-100", network((64,), "relu"), 100, 8)
    yield case("relu-deep-100", network((32, 32), "relu"), 100, 8)
    yield case("relu-1000", network((32,), "relu"), 1000, 4)
    yield case("sigmoid-1000", network((32,), "sigmoid"), 1000, 4)


@app.command()
def gallery(
    name: Annotated[str, typer.Argument(help="Of a trained optimizer of the package, such as classifiers.")],
    data_dir: Annotated[str, typer.Option(help="Folder of the full MNIST.")],
    untrained: Annotated[bool, typer.Option("--untrained", help="As its training began.")] = False,
    out: results.Folder = Path("bench/quality"),
) -> None:
    """One of the gallery on the draws on which `mnist` above was judged; the baselines are there."""
    digits = l2o.data.load_mnist("tfds", data_dir)
    path, rows = out / f"gallery-{name}{'-untrained' * untrained}.json", {}
    recipe = resolve([read_toml(l2o.gallery.recipe_of(name))])
    optimizer = build(recipe).make_optimizer(jr.key(0)) if untrained else l2o.pretrained(name)
    for case in mnist_cases(digits):
        common: dict[str, Any] = {"num_steps": case.num_steps, "num_objectives": case.num_objectives}
        key = jr.fold_in(jr.key(0), _EVALUATION)
        found = l2o.compare({"learned": optimizer}, case.family, **common, last=case.last, key=key)
        measured = l2o.evaluate(
            optimizer, case.family, **common, measure=case.measure, key=jr.split(key)[1]
        ).measured
        rows[case.name] = {
            "median": float(found.restart_medians("learned")[0]),
            "held_out": float(np.mean(np.asarray(measured))),
        }
        print(case.name, rows[case.name], flush=True)
        results.keep(path, rows)


@app.command()
def table(out: results.Folder = Path("bench/quality")) -> None:
    """All that is finished, as a Markdown table."""
    print("| case | learned: median [least, largest] | best tuned baseline | ahead | means | above start |")
    print("|---|---|---|---|---|---|")
    for path in sorted(out.glob("*.json")):
        print(line(results.known(path, None)))


if __name__ == "__main__":
    l2o.use_cores()
    app()
