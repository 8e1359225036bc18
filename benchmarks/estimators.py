"""Which estimator when: bias, noise and cost of each, and PES beside backpropagation; docs/estimators.md.

    python benchmarks/estimators.py table
    python benchmarks/estimators.py train
    python benchmarks/estimators.py rounded

Times are CPU time of the process, which other work on the machine disturbs less than the clock. Memory is
XLA's own account of what a compiled program needs.
"""

import time
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import typer
from jax.flatten_util import ravel_pytree

import l2o_eqx as l2o
from l2o_eqx.estimators import ES, NRES, PES, RTRL, AbstractEstimator, Auto, Forward
from l2o_eqx.objectives import MNIST, AbstractObjective, AbstractObjectiveFamily, Quadratic, sample_objectives
from l2o_eqx.optimizers import AbstractOptimizer, AdamMLP, LearnedMomentum
from l2o_eqx.strategies import EveryWindow
from l2o_eqx.weightings import LogMean

app = typer.Typer(add_completion=False, help=__doc__)
WINDOW, NUM_STEPS, PAIRS = 10, 80, 32

ESTIMATORS: dict[str, AbstractEstimator] = {
    "`Auto()`, first order": Auto(),
    "`Auto(())`, true": Auto(()),
    "`Forward()`": Forward(),
    f"`Forward({2 * PAIRS})`": Forward(2 * PAIRS),
    f"`ES(0.01, {PAIRS})`": ES(0.01, PAIRS),
    f"`PES(0.01, {PAIRS})`": PES(0.01, PAIRS),
    f"`NRES(0.01, {PAIRS})`": NRES(0.01, PAIRS),
    "`RTRL()`": RTRL(),
}
CASES: dict[str, tuple[Any, int]] = {
    "4 quadratics of 16 coordinates": (Quadratic(16), 4),
    "one digit network 784-2-10": (MNIST((2,), batch_size=32, data="embedded"), 1),
}


def _optimizer(key: jax.Array) -> AbstractOptimizer:
    # As if a little trained: with a last layer of zeros no other has a derivative.
    optimizer = AdamMLP((8,), learning_rate=0.03, num_steps=NUM_STEPS, key=key)
    values, rest = eqx.partition(optimizer, eqx.is_inexact_array)
    flat, back = ravel_pytree(values)
    return eqx.combine(back(flat + 0.05 * jr.normal(key, flat.shape)), rest)


def _program(estimator: AbstractEstimator, family: Any, objectives: int, num_steps: int) -> Any:
    """Of a key for the noise: the meta-gradients of all windows of one super epoch, φ standing still."""
    keys = jr.split(jr.key(1), objectives)
    optimizer, strategy = _optimizer(jr.key(0)), EveryWindow(WINDOW, estimator, include_final_loss=True)
    batch = sample_objectives(family, keys)
    size = ravel_pytree(eqx.filter(optimizer, eqx.is_inexact_array))[0].size

    def record(optimizer, kept, grads):
        i, found = kept
        return optimizer, (i + 1, found.at[i].set(ravel_pytree(grads)[0]))

    @jax.jit
    def run(key):
        kept = (jnp.asarray(0), jnp.zeros((num_steps // WINDOW, size)))
        result = strategy.super_epoch(
            optimizer,
            kept,
            batch,
            meta_update=record,
            weighting=LogMean(),
            num_steps=num_steps,
            init_keys=keys,
            loss_keys=keys,
            key=key,
        )
        return result.meta_state[1]

    return run


@app.command()
def table(
    repeats: Annotated[int, typer.Option(help="Draws of the noise.")] = 8,
    only: Annotated[str, typer.Option(help="A word of the case.")] = "",
) -> None:
    """Bias, noise, memory and time of every estimator, one line each."""
    for name, (family, objectives) in CASES.items():
        if only not in name:
            continue
        exact = np.sum(_program(RTRL(), family, objectives, NUM_STEPS)(jr.key(0)), axis=0)
        size = len(exact)
        typer.echo(f"\n{name}, {size} meta-parameters\n")
        typer.echo("| estimator | direction of the mean | of one estimate | noise | memory | time |")
        typer.echo("|---|---|---|---|---|---|")
        base = None
        for label, estimator in ESTIMATORS.items():
            compiled = _program(estimator, family, objectives, NUM_STEPS).lower(jr.key(0)).compile()
            drawn = _is_drawn(estimator)
            jax.block_until_ready(compiled(jr.key(0)))
            found, times = [], []
            for i in range(repeats if drawn else 3):
                begin = time.process_time()
                found.append(np.sum(jax.block_until_ready(compiled(jr.key(i))), axis=0))
                times.append(time.process_time() - begin)
            base = min(times) if base is None else base
            mean = np.mean(found, axis=0)
            variance = np.sum((found - mean) ** 2) / (len(found) - 1)
            # The mean's own noise counts in its length, too.
            noise = np.sqrt(variance / max(np.sum(mean**2) - variance / len(found), 1e-30))
            each = np.mean([_cosine(x, exact) for x in found])
            memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
            typer.echo(
                f"| {label} | {_cosine(mean, exact):.2f} | {each:.2f} | "
                f"{noise if drawn else 0:.1f} | {memory:.1f} MiB | "
                f"{min(times) / base:.1f} |"
            )


def _is_drawn(estimator):
    return isinstance(estimator, ES | PES | NRES) or getattr(estimator, "num_tangents", None) is not None


def _cosine(x, y):
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@app.command()
def train(
    restarts: int = 4,
    super_epochs: Annotated[int, typer.Option(help="Of backpropagation.")] = 300,
    longer: Annotated[int, typer.Option(help="How many times as many for PES.")] = 4,
    num_steps: int = 100,
    dim: int = 10,
    num_objectives: int = 8,
    hidden_size: Annotated[int, typer.Option(help="Of the optimizer's LSTM.")] = 4,
    std: float = 0.03,
    num_pairs: int = 16,
    learning_rate: float = 3e-3,
    pes_rate: float = 1e-2,
) -> None:
    """The quadratic's optimizer by backpropagation and by PES: final losses on 256 unseen draws, and cost."""
    family = Quadratic(dim)
    optimizers = eqx.filter_vmap(lambda k: LearnedMomentum(hidden_size, key=k))(jr.split(jr.key(0), restarts))

    def judge(optimizer):
        run = l2o.evaluate(
            optimizer, family, num_steps=num_steps, num_objectives=256, restarts=restarts, key=jr.key(10**6)
        )
        return np.median(run.losses[..., -1], axis=-1)

    typer.echo(f"untrained: {np.sort(judge(optimizers))}")
    for name, estimator, rate, count in (
        ("backpropagation", Auto(()), learning_rate, super_epochs),
        ("PES", PES(std, num_pairs), pes_rate, longer * super_epochs),
    ):
        updates = count * (num_steps // 20)
        begin = time.process_time()
        solution = l2o.meta_train(
            optimizers,
            family,
            EveryWindow(20, estimator, include_final_loss=True),
            weighting=LogMean(),
            num_steps=num_steps,
            super_epochs=count,
            num_objectives=num_objectives,
            restarts=restarts,
            meta_optimizer=l2o.default_meta_optimizer(rate, total_updates=updates),
            key=jr.key(1),
        )
        seconds = time.process_time() - begin
        typer.echo(
            f"{name}: {np.sort(judge(solution.optimizer))}, {seconds / restarts:.0f} CPU-seconds a restart"
        )


class Rounded(AbstractObjective):
    """A quadratic of which only a rounded value is known: its gradient is zero everywhere."""

    inner: AbstractObjective
    grid: float = eqx.field(static=True)

    def init(self, key):
        return self.inner.init(key)

    def loss(self, params, step, key):
        return jnp.round(self.inner.loss(params, step, key) / self.grid) * self.grid


class RoundedQuadratic(AbstractObjectiveFamily):
    """Draws of `Quadratic(dim)`, rounded to a grid.

    **Arguments:**

    - `dim`: the number of coordinates.
    - `grid`: the distance of possible values.
    """

    dim: int = eqx.field(static=True, default=4)
    grid: float = eqx.field(static=True, default=0.5)

    def sample(self, key):
        return Rounded(Quadratic(self.dim).sample(key), self.grid)


class Climber(AbstractOptimizer):
    """Takes random steps from the best point so far and sees values alone; learns how long they are.

    **Arguments:**

    - `log_step`: logarithm of the length before training.
    """

    log_step: jax.Array

    def __init__(self, log_step: float = -3.0):
        self.log_step = jnp.asarray(log_step, jnp.float32)

    def init(self, params):
        return jnp.asarray(1e9), jnp.zeros_like(params)

    def wants(self):
        return frozenset({"value", "key"})

    def update(self, grads, state, params, *, value=None, key=None):
        assert key is not None and params is not None and value is not None
        best, last = state
        move = jnp.exp(self.log_step) * jr.normal(key, params.shape)
        return jnp.where(value <= best, 0.0, -last) + move, (jnp.minimum(value, best), move)


@app.command()
def rounded(super_epochs: int = 60, num_steps: int = 60) -> None:
    """An objective without gradient, by an optimizer that sees its value alone, trained by PES."""
    for name, optimizer in (("untrained", Climber()), ("PES", Climber())):
        if name == "PES":
            optimizer = l2o.meta_train(
                optimizer,
                RoundedQuadratic(),
                EveryWindow(20, PES(0.1, 32)),
                num_steps=num_steps,
                super_epochs=super_epochs,
                num_objectives=16,
                meta_optimizer=optax.adam(0.05),
                key=jr.key(0),
            ).optimizer
        run = l2o.evaluate(
            optimizer, RoundedQuadratic(), num_steps=num_steps, num_objectives=256, key=jr.key(10**6)
        )
        best = np.min(run.losses, axis=1)
        typer.echo(f"{name}: best loss {np.median(best)} (median), first {np.median(run.losses[:, 0])}")


if __name__ == "__main__":
    app()
