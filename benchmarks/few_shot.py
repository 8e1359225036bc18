"""MAML and its kin on few-shot tasks: every number of docs/few-shot.md.

    python benchmarks/few_shot.py sinusoid --restarts 20
    python benchmarks/few_shot.py digits
    python benchmarks/few_shot.py speed
    python benchmarks/few_shot.py table

What is finished is kept in the folder of `--out` and taken up by the same command.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import results
import typer
from l2o_cli._build import Parts, build
from l2o_cli._resolve import read_assignments, resolve

import l2o_eqx as l2o
from l2o_eqx import plots
from l2o_eqx.estimators import Backprop
from l2o_eqx.objectives import Sinusoid, query_accuracy
from l2o_eqx.optimizers import MAML, GradientDescent, LearnedStart, moves_head
from l2o_eqx.strategies import OncePerSuperEpoch

app = typer.Typer(add_completion=False, help=__doc__)
Restarts = Annotated[int, typer.Option(min=1, help="Independent trainings.")]
OUT = Path("docs/quality")
TASKS, STEPS, POINTS = 600, 10, 100
RATES = tuple(10.0 ** np.arange(-4, 0.01, 0.25))
_EVALUATION, _TUNING, _PICTURE = 1_000_000, 1_000_001, 1_000_002

# The settings of the preset that each is trained with, and what of the learner is another one.
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "K=10": ([], {}),
    "K=5": (["objective.num_support=5"], {}),
    "K=10, first order": (["strategy.order=first"], {}),
    "K=10, trained on all tasks": (["strategy.order=first"], {"learning_rate": 0.0}),
    "K=5, trained on all tasks": (
        ["objective.num_support=5", "strategy.order=first"],
        {"learning_rate": 0.0},
    ),
    "K=10, Meta-SGD": ([], {"rates": "entry"}),
    "K=10, ANIL": ([], {"moving": moves_head}),
    "K=10, Reptile": (["meta.num_steps=5", "strategy.estimator.kind=reptile"], {}),
    "K=10, 5 steps": (["meta.num_steps=5"], {}),
    "K=10, 5 steps, rates per leaf and step": (
        ["meta.num_steps=5"],
        {"rates": "leaf", "num_rates": 5},
    ),
    "K=10, MAML++": (
        [
            "meta.num_steps=5",
            "weighting.kind=per-step",
            "weighting.weights=[0.0,0.2,0.2,0.2,0.2,0.2]",
            "meta.normalization=clip",
            "meta.clip_norm=10.0",
            "meta.decay=cosine",
        ],
        {"rates": "leaf", "num_rates": 5},
    ),
    "K=10, cosine": (["meta.decay=cosine"], {}),
    "K=5, cosine": (["objective.num_support=5", "meta.decay=cosine"], {}),
}


def settings_of(name: str) -> Parts:
    """What the preset says, with the changes of a case."""
    return build(resolve(read_assignments(["objective.kind=sinusoid", *CASES[name][0]])))


def train(name: str, seed: int) -> tuple[Any, dict[str, float]]:
    """A learner, and how long its training took, compilation included."""
    parts = settings_of(name)
    skey, tkey = jr.split(jr.key(seed))
    start = parts.family.sample(skey).init(skey)
    return run_training(MAML(start, **{"learning_rate": 0.01, **CASES[name][1]}), parts, tkey)


def run_training(learner: Any, parts: Parts, key: Any) -> tuple[Any, dict[str, float]]:
    """`meta_train` with the settings of a run; the optimizer, and how long it took."""
    begin = time.perf_counter(), time.process_time()
    solution = l2o.meta_train(
        learner,
        parts.family,
        parts.strategy,
        **parts.training,
        key=key,
    )
    jax.block_until_ready(solution.optimizer)
    took = {"seconds": time.perf_counter() - begin[0], "cpu_seconds": time.process_time() - begin[1]}
    return solution.optimizer, took


def errors_of(learner: Any, num_support: int, *, tuning: bool = False) -> np.ndarray:
    """The mean squared errors on fresh points of unseen tasks, after 0, 1, … steps: (tasks, steps + 1)."""
    key = jr.key(_TUNING if tuning else _EVALUATION)
    family = Sinusoid(num_support, POINTS)
    found = l2o.evaluate(learner, family, num_steps=STEPS + 1, num_objectives=TASKS, key=key)
    return np.asarray(found.losses, np.float64)


def fine_tuned(learner: Any, num_support: int) -> tuple[Any, float]:
    """Gradient descent from the start of a net trained on all tasks, at the rate that ends lowest."""

    def at(rate: float) -> Any:
        inner = GradientDescent(learner.start, float(rate))
        return LearnedStart(inner, learner.start)

    ends = [np.mean(errors_of(at(rate), num_support, tuning=True)[:, -1]) for rate in RATES]
    rate = float(RATES[int(np.nanargmin(np.where(np.isfinite(ends), ends, np.nan)))])
    return at(rate), rate


def with_interval(errors: np.ndarray) -> dict[str, list[float]]:
    """Means over tasks after every step, and half of their 95 % intervals."""
    half = 1.96 * np.std(errors, axis=0, ddof=1) / np.sqrt(len(errors))
    return {"mean": np.mean(errors, axis=0).tolist(), "half_interval": half.tolist()}


@app.command()
def sinusoid(
    restarts: Restarts = 5,
    only: Annotated[str, typer.Option(help="One case alone.")] = "",
    out: results.Folder = OUT,
) -> None:
    """Finn et al.'s regression, and its variants: 10,000 iterations each, 600 unseen tasks."""
    path = out / "few-shot-sinusoid.json"
    known: dict[str, Any] = results.known(path, {})
    for name in [only] if only else CASES:
        runs = known.setdefault(name, [])
        for seed in range(len(runs), restarts):
            learner, took = train(name, seed)
            support = 5 if name.startswith("K=5") else 10
            row: dict[str, Any] = {"seed": seed, **took}
            if name.endswith("all tasks"):
                learner, row["rate"] = fine_tuned(learner, support)
            row |= with_interval(errors_of(learner, support))
            runs.append(row)
            results.keep(path, known)
            if seed == 0:
                l2o.save(out / f"{_file_name(name)}.safetensors", learner)
            print(f"{name}, seed {seed}: {_in_words(row)}", flush=True)


def _file_name(name: str) -> str:
    return "few-shot-" + "".join(c if c.isalnum() else "-" for c in name.lower())


def _in_words(row: dict[str, Any]) -> str:
    mean, half = row["mean"], row["half_interval"]
    after = ", ".join(f"{t}: {mean[t]:.3f} ± {half[t]:.3f}" for t in (0, 1, 5, 10))
    return f"{after}; {row['seconds']:.0f} s, {row['cpu_seconds']:.0f} CPU-s"


@app.command()
def digits(seed: int = 0, super_epochs: int = 0, out: results.Folder = OUT) -> None:
    """5-way 1-shot digits: the share that is right, of classes trained on and of held-out ones."""
    settings = ["objective.kind=few-shot-digits", "objective.data=embedded"]
    settings += [f"meta.super_epochs={super_epochs}"] if super_epochs else []
    parts = build(resolve(read_assignments(settings)))
    skey, tkey = jr.split(jr.key(seed))
    begin = time.process_time()
    untrained: Any = parts.make_optimizer(skey)
    learner, took = run_training(untrained, parts, tkey)
    held_out = parts.family.variations()["held-out classes"]
    result: dict[str, Any] = {"seed": seed, "super_epochs": parts.config.meta.super_epochs, **took}
    for name, one in {"untrained": untrained, "MAML": learner}.items():
        for classes, family in {"trained": parts.family, "held out": held_out}.items():
            for steps in (1, 3):
                found = l2o.evaluate(
                    one,
                    family,
                    num_steps=steps,
                    num_objectives=TASKS,
                    measure=query_accuracy,
                    key=jr.key(_EVALUATION),
                )
                share = with_interval(np.asarray(found.measured, np.float64)[:, None])
                result[f"{name}, {classes}, {steps} steps"] = [share["mean"][0], share["half_interval"][0]]
    result["cpu_seconds_in_all"] = time.process_time() - begin
    results.keep(out / "few-shot-digits.json", result)
    print(json.dumps(result, indent=1))


@app.command()
def picture(out: results.Folder = OUT) -> None:
    """The fits of MAML, and of gradient descent from a start trained on all tasks."""
    names = {"MAML": "K=10", "trained on all tasks": "K=10, trained on all tasks"}
    learners = {label: l2o.load(out / f"{_file_name(name)}.safetensors") for label, name in names.items()}
    fits = plots.fit_curves(learners, Sinusoid(10, 300), key=jr.key(_PICTURE))
    plots.plot_fits(fits, out.parent / "few-shot.png", title="Two unseen tasks, 10 points each")


@app.command()
def exactness(out: results.Folder = OUT) -> None:
    """How far the meta-gradient is from `jax.grad` of the loop written by hand, in float64."""
    with jax.enable_x64(True):
        family, key = Sinusoid(10), jr.key(0)
        learner = MAML(family.sample(key).init(key))
        tasks = [family.sample(k) for k in jr.split(jr.split(jr.fold_in(key, 0), 3)[0], 25)]
        pairs = [(t.support, t.query) for t in tasks]
        by_hand = jax.jit(jax.grad(_loop_by_hand), static_argnums=2)
        found: dict[str, float] = {}
        for steps in (1, 5):
            solution = _one_update(learner, family, steps, key)
            moved = jax.tree.leaves(learner.start), jax.tree.leaves(solution)
            expected = by_hand(moved[0], jax.tree.map(lambda *x: jnp.stack(x), *pairs), steps)
            largest = max(float(jnp.abs(g).max()) for g in expected)
            errors = [x - y - g for x, y, g in zip(*moved, expected, strict=True)]
            found[f"{steps} steps"] = max(float(jnp.abs(e).max()) for e in errors) / largest
    results.keep(out / "few-shot-exactness.json", found)
    print(found)


def _one_update(learner: Any, family: Any, steps: int, key: Any) -> Any:
    # Gradient descent at the rate 1, so that the start moves by the meta-gradient.
    import optax

    return l2o.meta_train(
        learner,
        family,
        OncePerSuperEpoch(Backprop(()), include_final_loss=True),
        weighting=l2o.weightings.FinalOnly(),
        meta_optimizer=optax.sgd(1.0),
        num_steps=steps,
        super_epochs=1,
        num_objectives=25,
        key=key,
    ).optimizer.start  # pyright: ignore[reportAttributeAccessIssue]


def _loop_by_hand(weights: list[Any], tasks: Any, steps: int) -> Any:
    def error(weights: list[Any], points: Any) -> Any:
        x, y = points
        for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = jax.nn.relu(x @ w.T + b)
        return jnp.mean((x @ weights[-2].T + weights[-1] - y) ** 2)

    def of_task(task: Any) -> Any:
        support, query = task
        fast = weights
        for _ in range(steps):
            fast = [w - 0.01 * g for w, g in zip(fast, jax.grad(error)(fast, support), strict=True)]
        return error(fast, query)

    return jnp.mean(jax.vmap(of_task)(tasks))


@app.command()
def speed(rounds: int = 5, out: results.Folder = OUT) -> None:
    """Iterations a second beside a plain PyTorch loop, in turns; CPU time, as others may be at work."""
    ours, theirs = _ours(), _torch()
    found: dict[str, list[float]] = {"l2o_eqx": [], "PyTorch": []}
    for _ in range(rounds):
        found["l2o_eqx"].append(_rate(ours, 1000))
        found["PyTorch"].append(_rate(theirs, 25))
    medians = {name: float(np.median(rates)) for name, rates in found.items()}
    result = {"iterations_per_cpu_second": found, "ratio": medians["l2o_eqx"] / medians["PyTorch"]}
    results.keep(out / "few-shot-speed.json", result)
    print(medians, f"ratio {result['ratio']:.1f}")


def _rate(run: Callable[[int], None], count: int) -> float:
    begin = time.process_time()
    run(count)
    return count / (time.process_time() - begin)


def _ours() -> Callable[[int], None]:
    # The whole of `meta_train`, with what it does on the host; a first call compiles.
    parts = settings_of("K=10")
    key = jr.key(0)
    learner = MAML(parts.family.sample(key).init(key))

    def run(count: int) -> None:
        settings = {**parts.training, "super_epochs": count}
        solution = l2o.meta_train(learner, parts.family, parts.strategy, **settings, key=key)
        jax.block_until_ready(solution.optimizer)

    run(100)
    return run


def _torch() -> Callable[[int], None]:
    """What one would write in PyTorch: tasks one after the other, derivatives of derivatives by autograd."""
    import importlib
    import math

    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    functional = torch.nn.functional
    weights = []
    for m, n in ((1, 40), (40, 40), (40, 1)):
        weights += [torch.nn.init.xavier_uniform_(torch.empty(n, m)), torch.zeros(n)]
    for w in weights:
        w.requires_grad_()
    adam = torch.optim.Adam(weights, 1e-3)

    def network(weights: list[Any], x: Any) -> Any:
        for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = torch.relu(functional.linear(x, w, b))
        return functional.linear(x, weights[-2], weights[-1])

    def iteration() -> None:
        total = torch.zeros(())
        for _ in range(25):
            amplitude, phase = 0.1 + 4.9 * torch.rand(()), math.pi * torch.rand(())
            support, query = (10 * torch.rand(10, 1) - 5 for _ in range(2))
            seen = amplitude * torch.sin(support - phase)
            loss = functional.mse_loss(network(weights, support), seen)
            grads = torch.autograd.grad(loss, weights, create_graph=True)
            fast = [w - 0.01 * g for w, g in zip(weights, grads, strict=True)]
            total = total + functional.mse_loss(network(fast, query), amplitude * torch.sin(query - phase))
        adam.zero_grad()
        (total / 25).backward()
        adam.step()

    def run(count: int) -> None:
        for _ in range(count):
            iteration()

    run(3)
    return run


@app.command()
def table(out: results.Folder = OUT) -> None:
    """All that is finished, as Markdown tables: medians over restarts, of the means over 600 tasks."""
    known = results.known(out / "few-shot-sinusoid.json", {})
    print("| | restarts | before | 1 step | 5 | 10 | CPU-seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in known.items():
        means, halves = (np.array([r[k] for r in runs]) for k in ("mean", "half_interval"))
        cells = [_cell(means[:, t], halves[:, t], t > 0) for t in (0, 1, 5, 10)]
        seconds = np.median([r["cpu_seconds"] for r in runs])
        print(f"| {name} | {len(runs)} | {' | '.join(cells)} | {seconds:.0f} |")


def _cell(means: np.ndarray, halves: np.ndarray, with_half: bool) -> str:
    middle = float(np.median(means))
    if not middle < 1e3:
        return "diverges"
    half = f" ± {np.median(halves):.3f}" if with_half else ""
    return f"{middle:.3f}{half}" + (f" [{means.min():.3f}, {means.max():.3f}]" if len(means) > 1 else "")


if __name__ == "__main__":
    app()
