"""Searches of 30 evaluations: BlackBoxRNN beside random search, Sobol, CMA-ES and GP-EI; docs/black-box.md.

    l2o train --objective gp --optimizer black-box-rnn --dim 2 --out gp2
    python benchmarks/black_box.py functions gp2/optimizer.safetensors
    python benchmarks/black_box.py transfer gp2/optimizer.safetensors
    python benchmarks/black_box.py digits gp3/optimizer.safetensors
    python benchmarks/black_box.py train 2

All run on the same unseen functions in the same run. Times are CPU time of the process for one query, without
the function itself; other work on the machine makes them longer, for all alike.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import results
import scipy.stats
import typer
from search_peers import MakeSearch, cma_es, gp_ei, random_search, sobol

import l2o_eqx as l2o
from l2o_eqx import Box, Space, numpy_runtime, objectives
from l2o_eqx.objectives import GaussianProcess, InBox, Regret
from l2o_eqx.optimizers import BlackBoxRNN
from l2o_eqx.weightings import ObservedImprovement

app = typer.Typer(add_completion=False, help=__doc__)
File = Annotated[Path, typer.Argument(help="Trained BlackBoxRNN.")]
OURS = "BlackBoxRNN"
SIGMAS = (0.2, 0.4, 0.6, 1.0)
_BOOTSTRAPS = 10_000


def ours(rnn: BlackBoxRNN) -> MakeSearch:
    """Our own search as the peers are written."""
    return _asked(rnn, rnn.workers, lambda dim: Space(Box(-1.0, 1.0, shape=(dim,))), np.asarray)


def ours_in_numpy(file: Path) -> MakeSearch:
    """The same, without JAX."""
    rnn: Any = numpy_runtime.load(file)
    return _asked(
        rnn,
        len(rnn.starts),
        lambda dim: {f"{i:02}": {"low": -1.0, "high": 1.0} for i in range(dim)},
        lambda point: np.array([*point.values()]),
    )


def _asked(rnn: Any, workers: int, space: Any, array: Callable[[Any], np.ndarray]) -> MakeSearch:
    # With several workers, the next one to finish is drawn.
    def make(dim: int, budget: int, seed: int) -> Generator[np.ndarray, float, None]:
        state, waiting, rng = rnn.init(space(dim), budget), [], np.random.default_rng(seed)
        while True:
            while len(waiting) < workers:
                point, state = rnn.ask(state)
                waiting.append(point)
            point = waiting.pop(rng.integers(len(waiting)))
            state = rnn.tell(state, point, (yield array(point)))

    return make


def in_one_program(rnn: BlackBoxRNN, family: Any, count: int, budget: int) -> float:
    """Microseconds of CPU time per query, functions included, of as many searches at once."""

    def work() -> float:
        begin = time.process_time()
        l2o.evaluate(rnn, family, num_steps=budget, num_objectives=count, key=jr.key(0))
        return time.process_time() - begin

    work()
    return 1e6 * min(work() for _ in range(5)) / (count * budget)


def run(
    make: MakeSearch, functions: list[Callable[[np.ndarray], float]], dim: int, budget: int
) -> tuple[np.ndarray, float]:
    """The values of a search on every function, and microseconds per query."""
    found, spent = np.empty((len(functions), budget)), 0.0
    # What is compiled, and imported, at the first queries is not counted.
    warm: Any = make(dim, budget, 0)
    for value in (None, 1.0, 0.5):
        warm.send(value)
    for seed, function in enumerate(functions):
        search = make(dim, budget, seed)
        for t in range(budget):
            begin = time.process_time()
            point = next(search) if t == 0 else search.send(found[seed, t - 1])
            spent += time.process_time() - begin
            found[seed, t] = function(point)
    return found, 1e6 * spent / (len(functions) * budget)


def drawn(family: Any, count: int, key: Any) -> list[Callable[[np.ndarray], float]]:
    """Functions of NumPy arrays from a family."""
    sample, keys = jax.jit(family.sample), jr.split(key, count)

    @jax.jit
    def value(objective, x):
        return objective.loss(x, 0, keys[0])

    def function(objective: Any) -> Callable[[np.ndarray], float]:
        return lambda x: float(value(objective, np.asarray(x, np.float32)))

    return [function(sample(k)) for k in keys]


def row(name: str, values: np.ndarray, mine: np.ndarray, microseconds: float) -> dict[str, Any]:
    """The numbers of a search; `mine` are ours on the same functions, the lowest of each."""
    lowest = values.min(axis=1)
    difference = mine - lowest
    rng = np.random.default_rng(0)
    means = difference[rng.integers(len(difference), size=(_BOOTSTRAPS, len(difference)))].mean(axis=1)
    wins = int(np.sum(difference < 0))
    interval = scipy.stats.binomtest(wins, len(difference)).proportion_ci(method="wilson")
    is_other = name != OURS
    wilcoxon: Any = scipy.stats.wilcoxon(difference) if is_other else None
    return {
        "name": name,
        "functions": len(lowest),
        "mean": float(lowest.mean()),
        "median": float(np.median(lowest)),
        "mean_after_10": float(values[:, :10].min(axis=1).mean()),
        "microseconds": microseconds,
        "difference": float(difference.mean()),
        "difference_95": [float(x) for x in np.quantile(means, (0.025, 0.975))],
        "p_paired_t": float(scipy.stats.ttest_rel(mine, lowest).pvalue) if is_other else None,
        "p_wilcoxon": float(wilcoxon.pvalue) if is_other else None,
        "wins": wins / len(difference),
        "wins_95": [float(interval.low), float(interval.high)],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A table, best first. A difference is ours less theirs: below zero ours is lower."""
    columns = ("search", "functions", "mean", "after 10", "median", "ours − it (95 %)", "p", "ours lower")
    columns = (*columns, "µs a query")
    typer.echo(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for r in sorted(rows, key=lambda r: r["mean"]):
        low, high = r["difference_95"]
        wins = "{:.0%} ({:.0%} to {:.0%})".format(r["wins"], *r["wins_95"])
        other = r["name"] != OURS
        versus = f"{r['difference']:+.3f} ({low:+.3f} to {high:+.3f})" if other else ""
        p = f"{r['p_paired_t']:.1g}" if other else ""
        numbers = f"{r['functions']} | {r['mean']:.3f} | {r['mean_after_10']:.3f} | {r['median']:.3f}"
        last = f"{wins if other else ''} | {r['microseconds']:,.0f}"
        typer.echo(f"| {r['name']} | {numbers} | {versus} | {p} | {last} |")


def compare(
    searches: Mapping[str, MakeSearch],
    functions: list[Any],
    dim: int,
    budget: int,
    slow: int | None = None,
) -> list[dict[str, Any]]:
    """The rows of all searches on the same functions, GP-EI on the first `slow` ones; ours is the first."""
    rows, mine = [], np.zeros(0)
    for name, make in searches.items():
        own = functions[:slow] if name.startswith("GP") else functions
        if not own:
            continue
        values, microseconds = run(make, own, dim, budget)
        mine = values.min(axis=1) if name == OURS else mine
        rows.append(row(name, values, mine[: len(values)], microseconds))
        typer.echo(json.dumps(rows[-1]), err=True)
    return rows


def tuned_cma(functions: list[Any], dim: int, budget: int) -> float:
    """The first step size that is best on some other functions."""
    return min(SIGMAS, key=lambda s: run(cma_es(s), functions, dim, budget)[0].min(axis=1).mean())


def finish(out: Path | None, **content: Any) -> None:
    """Keeps the numbers, and what they were measured with."""
    results.keep(out, {**content, **l2o.environment()})


@app.command()
def train(
    dim: Annotated[int, typer.Argument(min=1, help="Of the functions.")],
    restarts: Annotated[int, typer.Option(min=2, help="Independent trainings, at once.")] = 4,
    super_epochs: Annotated[int, typer.Option(min=1, help="Of the preset, to begin with.")] = 250,
    further: Annotated[int, typer.Option(min=0, help="Then by the observed improvement.")] = 250,
    num_objectives: Annotated[int, typer.Option(min=1, help="Functions of a super epoch.")] = 64,
    further_rate: Annotated[float, typer.Option(help="Learning rate then; the preset's is 2e-3.")] = 1e-3,
    out: results.Folder = Path("trained"),
) -> None:
    """Several networks, by the preset's meta-loss first, and then by the best value alone."""
    from l2o_cli._build import build as parts_of
    from l2o_cli._resolve import read_assignments, resolve

    given = ["objective.kind=gp", "optimizer.kind=black-box-rnn", f"objective.dim={dim}"]
    given += [f"meta.num_objectives={num_objectives}"]
    parts = parts_of(resolve(read_assignments([*given, f"meta.super_epochs={super_epochs}"])))
    networks: Any = jax.vmap(parts.make_optimizer)(jr.split(jr.key(100), restarts))
    networks = _trained(networks, parts, parts.training, jr.key(5))
    _keep_all(networks, restarts, dim, out, "first")
    if further:
        given += ["objective.outer_loss=loss", f"meta.super_epochs={further}"]
        given += [f"meta.learning_rate={further_rate}"]
        parts = parts_of(resolve(read_assignments(given)))
        settings = {**parts.training, "weighting": ObservedImprovement(0.0)}
        networks = _trained(networks, parts, settings, jr.key(6))
        _keep_all(networks, restarts, dim, out, "further")


def _trained(networks: Any, parts: Any, settings: dict[str, Any], key: Any) -> Any:
    restarts = len(jax.tree.leaves(networks)[0])
    given = {**settings, "restarts": restarts, "key": key}
    return l2o.meta_train(networks, parts.family, parts.strategy, **given).optimizer


def _keep_all(networks: Any, restarts: int, dim: int, out: Path, name: str) -> None:
    family = Regret(GaussianProcess(dim))
    for i in range(restarts):
        one = l2o.select_restart(networks, i)
        l2o.save(out / f"{name}-{dim}-{i}.safetensors", one)
        losses = l2o.evaluate(one, family, num_steps=30, num_objectives=512, key=jr.key(77)).losses
        regret = np.minimum.accumulate(np.asarray(losses), axis=1)
        seconds = time.process_time()
        typer.echo(
            f"{name} {dim}-{i}: {regret[:, -1].mean():.3f}, after 10 {regret[:, 9].mean():.3f}, "
            f"median {np.median(regret[:, -1]):.3f}; {seconds:.0f} CPU-s in all"
        )


@app.command()
def functions(
    file: File,
    count: Annotated[int, typer.Option(help="Unseen functions.")] = 512,
    slow: Annotated[int, typer.Option(help="Of these, those for GP-EI, which takes minutes.")] = 512,
    budget: Annotated[int, typer.Option(help="Evaluations of each.")] = 30,
    length_scale: Annotated[
        float | None, typer.Option(help="Of the functions; as trained if left out.")
    ] = None,
    out: results.File = None,
) -> None:
    """Functions from the prior that it was trained on, on which regrets are exact."""
    rnn = l2o.load(file)
    dim = rnn.dim
    family = Regret(GaussianProcess(dim, length_scale))
    scale = 0.4 * math.sqrt(dim) if length_scale is None else length_scale
    key, tuning_key = jr.split(jr.key(2_000_000))
    sigma = tuned_cma(drawn(family, 64, tuning_key), dim, budget)
    searches = {
        OURS: ours(rnn),
        f"{OURS}, NumPy": ours_in_numpy(file),
        "random": random_search,
        "Sobol (SciPy)": sobol,
        f"CMA-ES (pycma, σ {sigma})": cma_es(sigma),
        "GP-EI (scikit-learn, kernel fitted)": gp_ei(None),
        "GP-EI (scikit-learn, true kernel)": gp_ei(scale),
    }
    rows = compare(searches, drawn(family, count, key), dim, budget, slow)
    show(rows)
    together = in_one_program(rnn, family, count, budget)
    typer.echo(f"\n{count} searches in one program: {together:.1f} µs a query, functions included.")
    facts = {"functions": count, "budget": budget, "file": file.name, "microseconds_in_one_program": together}
    finish(out, dim=dim, length_scale=scale, rows=rows, **facts)


NAMED = {
    2: ("Branin", "GoldsteinPrice", "StyblinskiTang"),
    3: ("Hartmann",),
    6: ("Hartmann",),
}


def images(family: Any) -> list[Callable[[np.ndarray], float]]:
    """A function on all mirror images of its box, axes swapped and turned around: 8 squares, 48 cubes."""
    objective = family.sample(jr.key(0))
    value = jax.jit(lambda x: objective.loss(x, 0, jr.key(0)))
    dim = len(objective.init(jr.key(0)))

    def image(order: tuple[int, ...], signs: tuple[float, ...]) -> Callable[[np.ndarray], float]:
        return lambda x: float(value(np.float32(np.asarray(signs) * x[list(order)])))

    signs = itertools.product((-1.0, 1.0), repeat=dim)
    found = [*itertools.product(itertools.permutations(range(dim)), signs)]
    return [image(*one) for one in found[:: max(1, len(found) // 48)]]


@app.command()
def transfer(
    file: File,
    budget: Annotated[int, typer.Option(help="Evaluations of each.")] = 30,
    out: results.File = None,
) -> None:
    """The test functions of the literature in its dimension, never seen in training."""
    rnn = l2o.load(file)
    tables = {}
    for name in NAMED.get(rnn.dim, ()):
        kind = getattr(objectives, name)
        family = Regret(InBox(kind(rnn.dim) if name != "Branin" and name != "GoldsteinPrice" else kind()))
        searches = {
            OURS: ours(rnn),
            "random": random_search,
            "Sobol (SciPy)": sobol,
            "CMA-ES (pycma, σ 0.4)": cma_es(0.4),
            "GP-EI (scikit-learn, kernel fitted)": gp_ei(None),
        }
        typer.echo(f"\n{name}, {rnn.dim} coordinates\n")
        tables[name] = compare(searches, images(family), rnn.dim, budget)
        show(tables[name])
    finish(out, dim=rnn.dim, budget=budget, file=file.name, tables=tables)


# The learning rate, momentum and width of a network of digits.

DIGITS = Space(
    {
        "learning_rate": Box(1e-3, 10.0, log=True),
        "momentum": Box(0.0, 0.99),
        "width": Box(4, 64, log=True, integer=True),
    }
)
_STEPS, _BATCH, _WIDEST = 100, 64, 64


def digits_error(key: Any) -> Callable[[Mapping[str, Any]], float]:
    """The held-out cross-entropy of a 784-width-10 network after 100 steps of SGD with momentum.

    The 5,000 training digits of the package are trained on, its 1,000 test digits judge. Units beyond the
    width are switched off, so that one program does for all widths.
    """
    digits = l2o.data.load_mnist("embedded")
    images, held_out = (
        jnp.asarray(x.reshape(len(x), -1) / 255, jnp.float32)
        for x in (digits.train_images, digits.test_images)
    )
    labels, expected = (jnp.asarray(x, jnp.int32) for x in (digits.train_labels, digits.test_labels))

    def loss(params, x, y, on):
        w1, b1, w2, b2 = params
        logits = (jnp.maximum(x @ w1 + b1[None], 0) * on[None]) @ w2 + b2[None]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

    @jax.jit
    def train(rate, momentum, width):
        on = (jnp.arange(_WIDEST) < width).astype(jnp.float32)
        ikey, jkey, bkey = jr.split(key, 3)
        params = (
            jr.normal(ikey, (784, _WIDEST)) * math.sqrt(2 / 784),
            jnp.zeros(_WIDEST),
            jr.normal(jkey, (_WIDEST, 10)) / jnp.sqrt(width),
            jnp.zeros(10),
        )

        def step(carry, t):
            params, velocity = carry
            batch = jr.randint(jr.fold_in(bkey, t), (_BATCH,), 0, len(labels))
            grads = jax.grad(loss)(params, images[batch], labels[batch], on)
            velocity = jax.tree.map(lambda v, g: momentum * v - rate * g, velocity, grads)
            return (jax.tree.map(jnp.add, params, velocity), velocity), None

        carry = (params, jax.tree.map(jnp.zeros_like, params))
        (params, _), _ = jax.lax.scan(step, carry, jnp.arange(_STEPS))
        return loss(params, held_out, expected, on)

    def error(point: Mapping[str, Any]) -> float:
        return float(train(point["learning_rate"], point["momentum"], float(point["width"])))

    return error


@app.command()
def digits(
    file: File,
    repeats: Annotated[int, typer.Option(help="Initial weights and seeds of the searches.")] = 16,
    budget: Annotated[int, typer.Option(help="Evaluations of each.")] = 20,
    out: results.File = None,
) -> None:
    """Tunes the learning rate, momentum and width of a network of digits, never seen in training.

    What is compared is the held-out cross-entropy of the best setting found. A training that ends worse than
    a guess, or diverges, counts as a guess, ln 10.
    """
    rnn = l2o.load(file)
    functions = []
    for repeat in range(repeats):
        error = digits_error(jr.key(repeat))

        def function(x: np.ndarray, error: Any = error) -> float:
            value = error(DIGITS.decode(x))
            return min(value, math.log(10)) if math.isfinite(value) else math.log(10)

        functions.append(function)
    searches = {
        OURS: ours(rnn),
        "random": random_search,
        "Sobol (SciPy)": sobol,
        "CMA-ES (pycma, σ 0.4)": cma_es(0.4),
        "GP-EI (scikit-learn, kernel fitted)": gp_ei(None),
    }
    rows = compare(searches, functions, 3, budget)
    show(rows)
    finish(out, dim=3, budget=budget, repeats=repeats, file=file.name, rows=rows)


if __name__ == "__main__":
    app()
