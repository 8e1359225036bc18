"""Policies found by guided policy search, by backpropagation and by evolution, beside tuned baselines.

    python benchmarks/policies.py train logistic
    python benchmarks/policies.py train digits --learner lstms
    python benchmarks/policies.py table

The families are the three of Li & Malik 2016, and, for the diagonal version of 2017, networks of digits. What
is finished is kept in the folder of `--out`.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import results
import scipy.optimize
import typer
from jax.flatten_util import ravel_pytree

import l2o_eqx as l2o
from l2o_eqx import objectives
from l2o_eqx._baselines import build
from l2o_eqx._draws import draw, losses_of
from l2o_eqx.estimators import ES, Auto
from l2o_eqx.optimizers import AdamMLP, CoordinatewiseLSTM, FromOptax, PerLayer, PolicyOptimizer, by_leaf
from l2o_eqx.strategies import OncePerSuperEpoch

app = typer.Typer(add_completion=False, help=__doc__)
OUT = Path("docs/quality")
HORIZON, TESTED, AT = 40, 100, (10, 40)
_TEST, _VALIDATION, _TUNING = 1_000_000, 1_000_001, 1_000_002

# The paper's families, and how many objectives it trains on.
FAMILIES: dict[str, tuple[Any, int]] = {
    "logistic": (objectives.LogisticRegression(), 90),
    "robust": (objectives.RobustRegression(), 120),
    "network": (objectives.SyntheticClassification((2,), 2, 100, activation="relu", num_clusters=4), 80),
    # 64-8-10, minibatches of 64 of the 5,000 digits of the package: 610 coordinates.
    "digits": (objectives.MNIST((8,), "relu", 64, image_size=8, data="embedded"), 8),
}
# One controller for each coordinate; what searches lines is not for minibatches.
DIAGONAL = {"structure": "diagonal", "num_samples": 10, "fit_batch": 8}
TUNED = ("SGD", "momentum", "Adam")
SEARCHES = {"L-BFGS": optax.lbfgs()}


class Fixed(objectives.AbstractObjectiveFamily):
    """One of a few objectives of a family: meta-training has no more of them than policy search."""

    family: Any
    keys: Any

    def sample(self, key: Any) -> Any:
        return self.family.sample(self.keys[jr.randint(key, (), 0, len(self.keys))])


def validation_of(family: Any, every: int) -> l2o.Validation:
    """Of all trainings: on objectives that are neither trained nor tested on."""
    return l2o.Validation(family, HORIZON + 1, 64, every, key=jr.key(_VALIDATION))


def by_search(
    method: Any, policy: Any, family: Any, count: int, key: Any, *, drawn_anew: bool = False, **settings: Any
) -> l2o.MetaSolution:
    """Guided policy search with the defaults of the library, but for a rate that falls to zero.

    On networks of digits by controllers of one coordinate each, with fewer samples.
    """
    updates = 15 * 4 * 100
    # BADMM draws its objectives once, anyway.
    trained_on = family if drawn_anew or method == "badmm" else Fixed(family, jr.split(key, count))
    given = {
        "num_objectives": count,
        "validation": validation_of(family, 1),
        "meta_optimizer": optax.adam(optax.cosine_decay_schedule(3e-3, updates)),
        **(DIAGONAL if family is FAMILIES["digits"][0] else {}),
        **settings,
    }
    return l2o.policy_search(policy, trained_on, method=method, num_steps=HORIZON, key=key, **given)


def by_meta_training(
    estimator: Any, super_epochs: int, policy: Any, family: Any, count: int, key: Any
) -> l2o.MetaSolution:
    """The mean of all losses of a run, differentiated through it or not."""
    return l2o.meta_train(
        policy,
        Fixed(family, jr.split(key, count)),
        OncePerSuperEpoch(estimator, include_final_loss=True),
        # Adam of 1e-3 without a schedule, as Li & Malik have for their fits, is far from done then.
        meta_optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, super_epochs))
        ),
        num_steps=HORIZON,
        super_epochs=super_epochs,
        num_objectives=count,
        validation=validation_of(family, max(1, super_epochs // 20)),
        per_call=20,
        key=key,
    )


def by_backpropagation(*args: Any) -> l2o.MetaSolution:
    """First order."""
    return by_meta_training(Auto(), 600, *args)


def by_evolution(*args: Any) -> l2o.MetaSolution:
    """64 antithetic pairs, whose mean the gradient is."""
    return by_meta_training(ES(0.01, num_pairs=64), 300, *args)


TRAININGS: dict[str, Callable[..., l2o.MetaSolution]] = {
    "mirror descent": functools.partial(by_search, "mirror-descent"),
    "mirror descent, drawn anew": functools.partial(by_search, "mirror-descent", drawn_anew=True),
    "BADMM": functools.partial(by_search, "badmm"),
    "backpropagation": by_backpropagation,
    "evolution strategies": by_evolution,
}


# What is trained: the policies of the papers, that of 2017 for any number of coordinates; or a rule that
# begins as Adam and sees gradients by their size.
LEARNERS: dict[str, Callable[..., Any]] = {
    "policy": lambda family, key: PolicyOptimizer(l2o.count_coordinates(family), key=key),
    "adam-mlp": lambda family, key: AdamMLP(num_steps=HORIZON, key=key),
    "lstms": lambda family, key: PerLayer.make(
        lambda k: CoordinatewiseLSTM((20,), learning_rate=0.1, key=k),
        objectives.params_shapes(family),
        label=by_leaf,
        key=key,
    ),
}


def test_losses(optimizer: Any, family: Any) -> l2o.Trajectories:
    """f on the test before every step and after the last, `(objectives, steps + 1)`."""
    return l2o.evaluate(optimizer, family, num_steps=HORIZON + 1, num_objectives=TESTED, key=jr.key(_TEST))


def tuned(name: str, family: Any, at: int, count: int) -> tuple[np.ndarray, dict[str, Any]]:
    """f on the test after `at` steps of a baseline whose mean there was the lowest on other draws."""
    baseline: Any = l2o.BASELINES[name]
    draws = draw(family, jr.split(jr.key(_TUNING), count))
    rates, schedules = jnp.asarray(l2o.LEARNING_RATES), jnp.arange(len(baseline.schedules))

    @eqx.filter_jit
    def ends(choice: Any) -> Any:
        def one(rate: Any, schedule: Any) -> Any:
            made = FromOptax(build(baseline, at, rate, schedule, choice))
            return jnp.mean(losses_of(made, draws, at + 1)[:, -1])

        return jax.vmap(lambda rate: jax.vmap(lambda s: one(rate, s))(schedules))(rates)

    found = np.array([ends({k: jnp.asarray(v) for k, v in choice.items()}) for choice in baseline.grid])
    best = np.unravel_index(np.argmin(np.where(np.isfinite(found), found, np.inf)), found.shape)
    choice, rate, schedule = (int(i) for i in best)
    chosen = {
        "learning_rate": float(rates[rate]),
        "schedule": baseline.schedules[schedule],
        **baseline.grid[choice],
    }
    optimizer = baseline.with_settings(at, **chosen)
    return np.asarray(test_losses(optimizer, family).losses, np.float64)[:, at], chosen


def conjugate_gradients(family: Any) -> tuple[np.ndarray, np.ndarray]:
    """scipy's nonlinear CG on the test: f after every iteration, and the lowest after every evaluation."""
    draws = draw(family, jr.split(jr.key(_TEST), TESTED))
    by_iteration, by_evaluation = [], []

    @jax.jit
    def value_and_grad(own: Any, flat: Any) -> Any:
        unravel = ravel_pytree(jax.tree.map(lambda x: x[0], draws.params))[1]
        objective = draws.objectives.select(own)
        return jax.value_and_grad(lambda x: objective.loss(unravel(x), 0, jr.key(0)))(flat)

    for one in range(TESTED):
        own, params = _one_of((draws.objectives.own, draws.params), one)
        start = np.asarray(ravel_pytree(params)[0], np.float64)
        iterated, evaluated = _run_cg(functools.partial(value_and_grad, own), start)
        by_iteration.append(_filled(iterated))
        by_evaluation.append(_filled(np.minimum.accumulate(evaluated).tolist()))
    return np.array(by_iteration), np.array(by_evaluation)


def _one_of(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _run_cg(value_and_grad: Any, start: np.ndarray) -> tuple[list[float], list[float]]:
    iterated: list[float] = []
    evaluated: list[float] = []

    def function(x: np.ndarray) -> Any:
        value, grad = value_and_grad(jnp.asarray(x, jnp.float32))
        evaluated.append(float(value))
        return float(value), np.asarray(grad, np.float64)

    def after(intermediate_result: Any) -> None:
        iterated.append(float(intermediate_result.fun))

    options = {"maxiter": HORIZON}
    scipy.optimize.minimize(function, start, jac=True, method="CG", options=options, callback=after)
    return [evaluated[0], *iterated], evaluated


def _filled(values: list[float]) -> list[float]:
    known = values[: HORIZON + 1]
    return known + [known[-1]] * (HORIZON + 1 - len(known))


def per_evaluation(found: l2o.Trajectories) -> np.ndarray:
    """The lowest f after every evaluation, of what evaluates several times a step."""
    losses, counts = np.asarray(found.losses, np.float64), np.asarray(found.evaluations)
    numbers = 1 + np.arange(HORIZON + 1)
    return np.array(
        [
            [row[count <= n].min() if (count <= n).any() else row[0] for n in numbers]
            for row, count in zip(losses, counts, strict=True)
        ]
    )


def margin(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Li & Malik's mean margin of victory, with the bootstrap's 95 % interval over objectives."""
    gaps = theirs - ours
    drawn = np.random.default_rng(0).integers(0, len(gaps), (10_000, len(gaps)))
    low, high = np.quantile(gaps[drawn].mean(1), [0.025, 0.975])
    return {"mean": float(gaps.mean()), "low": float(low), "high": float(high)}


def peers_of(family: Any, count: int) -> dict[str, dict[str, list[float]]]:
    """f on the test after `AT` steps, by name and step; what searches lines also by evaluations."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in TUNED:
        for at in AT:
            losses, chosen = tuned(name, family, at, count)
            print(f"{name} at {at}: {losses.mean():.4f} {chosen}", flush=True)
            found.setdefault(name, {})[str(at)] = losses.tolist()
    if family is FAMILIES["digits"][0]:
        return found
    trajectories = {name: test_losses(made, family) for name, made in SEARCHES.items()}
    curves = {name: np.asarray(one.losses, np.float64) for name, one in trajectories.items()}
    curves |= {f"{name}, by evaluations": per_evaluation(one) for name, one in trajectories.items()}
    curves["CG"], curves["CG, by evaluations"] = conjugate_gradients(family)
    return found | {name: {str(at): x[:, at].tolist() for at in AT} for name, x in curves.items()}


@app.command()
def train(
    family: str,
    trainings: Annotated[str, typer.Option(help="Which, separated by semicolons; all by default.")] = "",
    learner: Annotated[str, typer.Option(help=f"One of {', '.join(LEARNERS)}.")] = "policy",
    seed: int = 0,
    out: results.Folder = OUT,
) -> None:
    """Train policies on one family, test them and what they are compared with."""
    path = out / f"policies-{family}.json"
    known: dict[str, Any] = results.known(path, {})
    made, count = FAMILIES[family]
    if "peers" not in known:
        known["peers"] = peers_of(made, count)
        results.keep(path, known, indent=None)
    for name in [name.strip() for name in trainings.split(";")] if trainings else TRAININGS:
        title = name if learner == "policy" else f"{name}, {learner}"
        runs = known.setdefault("policies", {}).setdefault(title, [])
        if any(run["seed"] == seed for run in runs):
            continue
        policy = LEARNERS[learner](made, jr.key(seed))
        begin = time.process_time()
        solution = TRAININGS[name](policy, made, count, jr.key(seed))
        took = time.process_time() - begin
        best: Any = solution.best
        losses = np.asarray(test_losses(best.optimizer, made).losses, np.float64)
        runs.append(
            {
                "seed": seed,
                "cpu_seconds": round(took, 1),
                "taken": int(best.super_epoch),
                "losses": {str(at): losses[:, at].tolist() for at in AT},
            }
        )
        results.keep(path, known, indent=None)
        print(f"{title}: {took:.0f} CPU-s, taken after {int(best.super_epoch)}", flush=True)
        _show(known)


@app.command()
def table(out: results.Folder = OUT) -> None:
    """All that is finished, as Markdown: f, and the margins over the baselines."""
    paths = {family: out / f"policies-{family}.json" for family in FAMILIES}
    found = {family: results.known(path, None) for family, path in paths.items() if path.exists()}
    print(f"\n| | {' | '.join(f'{family} {at}' for family in found for at in AT)} | CPU-s |")
    print(f"|{'---|' * (2 + len(found) * len(AT))}")
    for name in _names(found, "policies") + _names(found, "peers"):
        runs = {family: known.get("policies", {}).get(name, []) for family, known in found.items()}
        cells = [_cell(known, name, runs[family], at) for family, known in found.items() for at in AT]
        seconds = [f"{np.median([r['cpu_seconds'] for r in own]):.0f}" for own in runs.values() if own]
        print(f"| {name} | {' | '.join(cells)} | {', '.join(seconds)} |")
    print(f"\n| | {' | '.join(f'{peer} {at}' for peer in TUNED for at in AT)} |")
    print(f"|{'---|' * (1 + len(TUNED) * len(AT))}")
    for family, known in found.items():
        for name, runs in known.get("policies", {}).items():
            cells = [_ahead(known["peers"], runs, peer, at) for peer in TUNED for at in AT]
            print(f"| {family}, {name} | {' | '.join(cells)} |")


def _names(found: dict[str, Any], what: str) -> list[str]:
    return list(dict.fromkeys(name for known in found.values() for name in known.get(what, {})))


def _cell(known: dict[str, Any], name: str, runs: list[Any], at: int) -> str:
    # The median over seeds of the means over objectives, and the least and the largest.
    if name in known["peers"]:
        return f"{np.mean(known['peers'][name][str(at)]):.4f}"
    means = [float(np.mean(run["losses"][str(at)])) for run in runs]
    if not means:
        return ""
    spread = f" [{min(means):.4f}, {max(means):.4f}]" if len(means) > 1 else ""
    return f"{np.median(means):.4f}{spread}"


def _ahead(peers: dict[str, Any], runs: list[Any], peer: str, at: int) -> str:
    # The median margin, and in how many seeds all of its interval is above zero, or below.
    margins = [margin(np.array(peers[peer][str(at)]), np.array(run["losses"][str(at)])) for run in runs]
    above, below = sum(m["low"] > 0 for m in margins), sum(m["high"] < 0 for m in margins)
    return f"{np.median([m['mean'] for m in margins]):+.3f} ({above} / {below} of {len(margins)})"


def _show(known: dict[str, Any]) -> None:
    peers = known["peers"]
    for name, by_step in peers.items():
        print(f"  {name:28}", *(f"{at}: {np.mean(x):.4f}" for at, x in by_step.items()))
    for name, runs in known.get("policies", {}).items():
        for run in runs:
            print(f"  {name} (seed {run['seed']}, {run['cpu_seconds']:.0f} CPU-s)".ljust(30), end="")
            for at, losses in run["losses"].items():
                print(f" {at}: {np.mean(losses):.4f}", end="")
                for peer in TUNED:
                    m = margin(np.array(peers[peer][at]), np.array(losses))
                    print(f" [{peer} {m['mean']:+.4f}, {m['low']:+.4f} to {m['high']:+.4f}]", end="")
            print()


if __name__ == "__main__":
    app()
