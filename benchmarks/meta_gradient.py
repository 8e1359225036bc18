"""Speed and memory of one meta-update: the two-phase meta-gradient next to plain autodiff.

    python benchmarks/meta_gradient.py [--repeats 7] [--json results.json]

Both sides run a window of 16 steps of the coordinatewise LSTM (2 x 20), give the same first-order
meta-gradient (checked) and apply the same meta-optimizer. They are timed in alternation in one process;
the table shows the median and the quartiles over the repeats. Memory is what XLA allocates for
temporaries of the compiled program.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from rich.console import Console
from rich.table import Table

import l2o_eqx
from l2o_eqx._meta_gradient import batch_meta_gradient
from l2o_eqx.objectives import MNIST, Quadratic
from l2o_eqx.optimizers import CoordinatewiseLSTM
from l2o_eqx.preprocessors import LogSign
from l2o_eqx.weightings import Constant

WINDOW = 16


def two_phase_grads(optimizer, objective, params, state, key):
    """The library's way, for a batch of objectives (the leading axis of params and keys)."""
    result = batch_meta_gradient(
        optimizer,
        objective,
        params,
        state,
        window=WINDOW,
        start=0,
        num_steps=WINDOW,
        weighting=Constant(),
        keys=key,
    )
    return result.grads


def plain_grads(optimizer, objectives, params, state, keys):
    """What one would write without the library: `jax.grad` through a `lax.scan`, objectives vmapped."""
    del state

    def meta_loss(optimizer, own, params, key):
        objective = objectives.select(own)

        def one_step(carry, t):
            params, state = carry
            loss, grads = jax.value_and_grad(objective.loss)(params, t, key)
            updates, state = optimizer.update(lax.stop_gradient(grads), state, params)
            return (eqx.apply_updates(params, updates), state), loss

        carry = (params, optimizer.init(params))
        return jnp.sum(lax.scan(one_step, carry, jnp.arange(WINDOW))[1])

    def mean_meta_loss(optimizer):
        losses = jax.vmap(meta_loss, in_axes=(None, 0, 0, 0))(optimizer, objectives.own, params, keys)
        return jnp.mean(losses)

    return eqx.filter_grad(mean_meta_loss)(optimizer)


def make_case(family, optimizer, num_objectives):
    """The compiled meta-update of either side, ready to call."""
    okeys, ikeys, keys = (jr.split(k, num_objectives) for k in jr.split(jr.key(1), 3))
    objectives = l2o_eqx.objectives.sample_objectives(family, okeys)
    params = jax.vmap(lambda own, k: objectives.select(own).init(k))(objectives.own, ikeys)
    arrays, static = eqx.partition(optimizer, eqx.is_inexact_array)
    meta_optimizer = l2o_eqx.default_meta_optimizer()
    meta_state = meta_optimizer.init(arrays)
    state = optimizer.init(params)

    def compiled(grads_of):
        def step(arrays, meta_state, params, state, own, keys):
            batch = eqx.tree_at(lambda b: b.own, objectives, own, is_leaf=lambda x: x is None)
            grads = grads_of(eqx.combine(arrays, static), batch, params, state, keys)
            updates, meta_state = meta_optimizer.update(grads, meta_state, arrays)
            return optax.apply_updates(arrays, updates), meta_state, grads

        arguments = (arrays, meta_state, params, state, objectives.own, keys)
        return jax.jit(step).lower(*arguments).compile(), arguments

    sides = {"two-phase": compiled(two_phase_grads), "plain autodiff": compiled(plain_grads)}
    check_same_gradient(*(program(*arguments)[-1] for program, arguments in sides.values()))
    return sides


def check_same_gradient(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        error = jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))
        assert error < 1e-4, f"the two meta-gradients differ by {error:.1e}"


def measure(sides, num_objectives, repeats):
    """Inner steps per second of every repeat, in alternation; megabytes of temporaries."""
    seconds = {name: [] for name in sides}
    loops = {}
    for name, (program, arguments) in sides.items():
        begin = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        loops[name] = max(1, int(0.3 / (time.perf_counter() - begin)))
    for _ in range(repeats):
        for name, (program, arguments) in sides.items():
            begin = time.perf_counter()
            for _ in range(loops[name]):
                jax.block_until_ready(program(*arguments))
            seconds[name].append((time.perf_counter() - begin) / loops[name])
    return {
        name: {
            "steps_per_second": (WINDOW * num_objectives / np.array(seconds[name])).tolist(),
            "temporaries_mb": program.memory_analysis().temp_size_in_bytes / 1e6,
        }
        for name, (program, _) in sides.items()
    }


def main():
    parser = argparse.ArgumentParser(description="Speed and memory of one meta-update.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()

    quadratic = CoordinatewiseLSTM(key=jr.key(0))
    network = CoordinatewiseLSTM(preprocessor=LogSign(), learning_rate=0.01, key=jr.key(0))
    digits = MNIST(data="embedded")
    cases = {
        "quadratic, 1 objective": (Quadratic(), quadratic, 1),
        "quadratic, 64 objectives": (Quadratic(), quadratic, 64),
        "MNIST 784-32-10, 1 objective": (digits, network, 1),
    }
    table = Table(title=f"One meta-update, T = {WINDOW}, on {jax.devices()[0].device_kind}")
    for column in (
        "",
        "",
        "inner steps/s (quartiles)",
        "temporaries",
        "speed ratio",
        "memory ratio",
    ):
        table.add_column(column, justify="right" if column else "left")
    results = {}
    for title, (family, optimizer, num_objectives) in cases.items():
        sides = make_case(family, optimizer, num_objectives)
        results[title] = measure(sides, num_objectives, arguments.repeats)
        ours, plain = results[title]["two-phase"], results[title]["plain autodiff"]
        speed = np.median(ours["steps_per_second"]) / np.median(plain["steps_per_second"])
        memory = ours["temporaries_mb"] / plain["temporaries_mb"]
        for name, numbers in results[title].items():
            low, median, high = np.quantile(numbers["steps_per_second"], [0.25, 0.5, 0.75])
            ratios = (f"{speed:.2f}", f"{memory:.3f}") if name == "two-phase" else ("1", "1")
            table.add_row(
                title if name == "two-phase" else "",
                name,
                f"{median:,.0f} ({low:,.0f} to {high:,.0f})",
                f"{numbers['temporaries_mb']:,.1f} MB",
                *ratios,
            )
    Console(width=120).print(table)
    if arguments.json:
        machine = {"platform": platform.platform(), "jax": jax.__version__}
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
