"""`Safeguarded` beside its inner optimizer and its fallback, each of them alone; docs/quality.md.

    python benchmarks/safeguard.py --out docs/quality

Logistic regression, Σx⁴, a quadratic of condition 1e8, one as those of the gallery, Rosenbrock's function,
and a network on minibatches. The fallback alone is also shown after 80 % of the steps.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import results
import typer

import l2o_eqx as l2o
from l2o_eqx.optimizers import FromOptax, Guard, Safeguarded

# Gallery names, or Adam and SGD with a rate.
PAIRS = {
    "logistic regression": [("mnist", "adam 0.1"), ("sgd 0.01", "adam 0.1"), ("adam 0.1", "sgd 0.01")],
    "quartic": [("mnist", "adam 0.1"), ("quadratic", "adam 0.1")],
    "ill-conditioned": [("quadratic", "adam 0.1")],
    "quadratic": [("quadratic", "adam 0.1"), ("quadratic", "adam 0.001"), ("quadratic", "sgd 0.02")],
    "Rosenbrock": [("zoo", "adam 0.1"), ("adam 0.1", "sgd 0.001"), ("sgd 0.001", "adam 0.1")],
    "minibatches": [
        ("mnist", "adam 0.01"),
        ("classifiers", "adam 0.01"),
        ("adam 0.01", "adam 0.001"),
        ("adam 0.001", "adam 0.01"),
        ("adam 0.01", "sgd 0.01"),
        ("sgd 0.01", "adam 0.01"),
    ],
}


class Problem(NamedTuple):
    loss: Callable[[Any, Any], Any]
    start: Any
    # Over all data, where `loss` draws a minibatch.
    full: Callable[[Any], Any] | None = None


def problems() -> dict[str, Problem]:
    key, other, third = jr.split(jr.key(0), 3)
    inputs, curvatures = jr.normal(key, (200, 20)), jnp.logspace(0, -8, 20)
    labels = jnp.sign(inputs @ jr.normal(other, (20,)))
    matrix, target = jr.normal(key, (10, 10)), jr.normal(third, (10,))
    regression = {"w": jnp.zeros(20), "b": jnp.zeros(())}
    return {
        "logistic regression": Problem(
            lambda p, _: jnp.mean(jax.nn.softplus(-labels * (inputs @ p["w"] + p["b"]))), regression
        ),
        "quartic": Problem(lambda x, _: jnp.sum(x**4), jnp.linspace(-1, 1, 10)),
        "ill-conditioned": Problem(lambda x, _: jnp.sum(curvatures * x**2) / 2, jnp.ones(20)),
        "quadratic": Problem(lambda x, _: jnp.mean((matrix @ x - target) ** 2), jnp.zeros(10)),
        "Rosenbrock": Problem(
            lambda x, _: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, jnp.array([-1.0, 1.0])
        ),
        "minibatches": _network(),
    }


def _network() -> Problem:
    centers, labels, noise, first, second = jr.split(jr.key(5), 5)
    classes = jr.randint(labels, (2000,), 0, 10)
    inputs = 0.5 * jr.normal(centers, (10, 50))[classes] + jr.normal(noise, (2000, 50))

    def loss(p, rows):
        outputs = jax.nn.relu(inputs[rows] @ p["a"] + p["b"]) @ p["c"] + p["d"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, classes[rows]))

    start = {"a": 0.15 * jr.normal(first, (50, 32)), "b": jnp.zeros(32)}
    start |= {"c": 0.2 * jr.normal(second, (32, 10)), "d": jnp.zeros(10)}
    return Problem(
        lambda p, key: loss(p, jr.randint(key, (64,), 0, 2000)), start, lambda p: loss(p, jnp.arange(2000))
    )


def optimizer_of(name: str) -> Any:
    kind, _, rate = name.partition(" ")
    make = {"adam": optax.adam, "sgd": optax.sgd}
    return FromOptax(make[kind](float(rate))) if kind in make else l2o.pretrained(name)


def final(optimizer: Any, problem: Problem, steps: int) -> tuple[float, Any]:
    """The median loss at the end, of 5 draws of minibatches if there are any, and the last states."""
    tx = l2o.as_optax(optimizer, num_steps=steps)

    @jax.jit
    def run(key):
        def step(carry, key):
            params, state = carry
            value, grads = jax.value_and_grad(problem.loss)(params, key)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        start = (problem.start, tx.init(problem.start))
        (params, state), _ = jax.lax.scan(step, start, jr.split(key, steps))
        return (problem.loss(params, key) if problem.full is None else problem.full(params)), state

    found = [run(key) for key in jr.split(jr.key(7), 1 if problem.full is None else 5)]
    return float(np.median([loss for loss, _ in found])), [state for _, state in found]


def main(out: results.Folder = Path("docs/quality")) -> None:
    rows, known = [], problems()

    # An optimizer is in several pairs.
    @functools.cache
    def alone(optimizer: str, name: str, steps: int) -> float:
        return final(optimizer_of(optimizer), known[name], steps)[0]

    for name, problem in known.items():
        cases = [(100, 10), (1000, 10)] if problem.full is None else [(150, 10), (150, 30), (1000, 10)]
        for inner, fallback in PAIRS[name]:
            for steps, memory in cases:
                safe = Safeguarded(optimizer_of(inner), optimizer_of(fallback), memory)
                loss, states = final(safe, problem, steps)
                row = {
                    "objective": name,
                    "steps": steps,
                    "memory": memory,
                    "inner": inner,
                    "fallback": fallback,
                    "inner alone": alone(inner, name, steps),
                    "fallback alone": alone(fallback, name, steps),
                    "fallback, 80 % of the steps": alone(fallback, name, steps * 4 // 5),
                    "safeguarded": loss,
                    "fallback steps": int(
                        np.median([int(Guard.of(state).fallback_steps) for state in states])
                    ),
                }
                rows.append(row)
                print(
                    *(f"{x:.3g}" if isinstance(x, float) else x for x in row.values()), sep=" | ", flush=True
                )
    results.keep(out / "safeguard.json", rows)


if __name__ == "__main__":
    typer.run(main)
