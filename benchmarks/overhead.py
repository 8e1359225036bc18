"""What a step of each learned optimizer costs inside an optax loop, beside Adam and beside each other.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --sizes 1000,10000 --out overhead.json

A loop is one compiled `lax.scan` of `optax.apply_updates`, on the arrays of a network of three layers. The
gradient is that of a noisy bowl, which costs one pass over memory and is in all numbers, Adam's too. Sides
are measured in alternation, for the machine's speed may drift: trust the ratios more than the times. Beside
other work `--clock cpu` is the better measure, CPU time of all cores together.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import results
import typer
from jax import lax
from l2o_bench._measure import alternate, quartiles

import l2o_eqx as l2o
from l2o_eqx.optimizers import (
    AbstractOptimizer,
    AdamMLP,
    Celo2,
    CoordinatewiseLSTM,
    HierarchicalRNN,
    LearnedMomentum,
    SubspaceRNN,
)

ADAM = "Adam"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_CLASSES = 10
# Coordinates times steps of one call, and the fewest and most steps.
_WORK, _FEWEST, _MOST = 1e6, 2, 100

OPTIMIZERS: dict[str, Callable[[jax.Array], AbstractOptimizer]] = {
    "SubspaceRNN": lambda key: SubspaceRNN(key=key),
    "LearnedMomentum": lambda key: LearnedMomentum(key=key),
    "AdamMLP": lambda key: AdamMLP(key=key),
    "AdamMLP(matrices)": lambda key: AdamMLP(matrices=True, key=key),
    "Celo2": lambda key: Celo2(key=key),
    "Celo2(orthogonalize)": lambda key: Celo2(orthogonalize=True, key=key),
    "HierarchicalRNN": lambda key: HierarchicalRNN(key=key),
    "CoordinatewiseLSTM 2x20": lambda key: CoordinatewiseLSTM((20, 20), key=key),
}


def network(num_coordinates: int) -> list[jax.ShapeDtypeStruct]:
    """The arrays of a network with two square layers and ten classes, of about so many coordinates."""
    # 2·h² + 12·h + 10 coordinates.
    hidden = max(1, round(math.sqrt(9 + (num_coordinates - _CLASSES) / 2) - 3))
    shapes = [(hidden, hidden), (hidden,), (hidden, hidden), (hidden,), (_CLASSES, hidden), (_CLASSES,)]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def draw(shapes: list[jax.ShapeDtypeStruct], key: jax.Array) -> list[jax.Array]:
    """Normal numbers of these shapes."""
    return [jr.normal(k, x.shape) for k, x in zip(jr.split(key, len(shapes)), shapes, strict=True)]


@dataclasses.dataclass
class Loop:
    """Some steps of one optimizer, compiled; every call goes on where the last one ended.

    **Fields:**

    - `bytes_needed`: by XLA's own account, of the params, the optimizer's state and what it computes with.
    """

    transformation: optax.GradientTransformation
    program: Any
    bytes_needed: int
    carry: Any = None

    @classmethod
    def make(cls, transformation: Any, shapes: list[jax.ShapeDtypeStruct], num_steps: int) -> "Loop":
        """Compiles, and allocates nothing."""

        def step(carry: Any, size: jax.Array) -> tuple[Any, None]:
            params, state, noise = carry
            grads = [p + size * n for p, n in zip(params, noise, strict=True)]
            updates, state = transformation.update(grads, state, params)
            return (optax.apply_updates(params, updates), state, noise), None

        def run(carry: Any) -> Any:
            sizes = jr.normal(jr.key(3), (num_steps,))
            return lax.scan(step, carry, sizes)[0]

        carry = (shapes, jax.eval_shape(transformation.init, shapes), shapes)
        program = jax.jit(run, donate_argnums=0).lower(carry).compile()
        account: Any = program.memory_analysis()
        outputs = account.output_size_in_bytes - account.alias_size_in_bytes
        needed = account.argument_size_in_bytes + outputs + account.temp_size_in_bytes
        return cls(transformation, program, needed)

    def begin(self, params: list[jax.Array], noise: list[jax.Array]) -> None:
        """Allocates params and state."""
        copies = jax.tree.map(jnp.array, (params, noise))
        self.carry = (copies[0], self.transformation.init(copies[0]), copies[1])

    def __call__(self) -> None:
        self.carry = jax.block_until_ready(self.program(self.carry))


def measure(
    num_coordinates: int, repeats: int, memory: float, only: str, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds per step of all sides, or why there are none, at one size.

    **Arguments:**

    - `memory`: GiB that all sides together may need; those that come first have the precedence.
    - `only`: a word of the learned optimizers to take.
    - `clock`: what seconds are read from.
    """
    shapes = network(num_coordinates)
    count = sum(x.size for x in shapes)
    num_steps = int(np.clip(_WORK / count, _FEWEST, _MOST))
    chosen = {
        name: l2o.as_optax(make(jr.key(0)), num_steps) for name, make in OPTIMIZERS.items() if only in name
    }
    loops, skipped, free = {}, {}, memory * 2**30
    for name, transformation in {ADAM: optax.adam(1e-3), **chosen}.items():
        loop = Loop.make(transformation, shapes, num_steps)
        if loop.bytes_needed <= free:
            loops[name] = loop
            free -= loop.bytes_needed
        else:
            skipped[name] = f"needs {loop.bytes_needed / 2**30:.1f} GiB, {free / 2**30:.1f} are left"
    params, noise = draw(shapes, jr.key(1)), draw(shapes, jr.key(2))
    for loop in loops.values():
        loop.begin(params, noise)
    seconds = alternate(loops, repeats, clock=clock)
    return {
        "coordinates": count,
        "steps": num_steps,
        "seconds_per_step": {name: [x / num_steps for x in found] for name, found in seconds.items()},
        "gib": {name: loop.bytes_needed / 2**30 for name, loop in loops.items()},
        "skipped": skipped,
    }


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Two Markdown tables: nanoseconds per coordinate and step with quartiles, and ratios to Adam."""
    names = list(dict.fromkeys(name for row in rows for name in (*row["seconds_per_step"], *row["skipped"])))
    head = [f"{row['coordinates']:,}" for row in rows]
    lines = ["", "Nanoseconds per coordinate and step, median (quartiles):", "", *_head(head)]
    for name in names:
        lines.append(_line(name, [_nanoseconds(row, name) for row in rows]))
    lines += ["", "Of the time of Adam:", "", *_head(head)]
    for name in names:
        lines.append(_line(name, [_ratio(row, name) for row in rows]))
    left_out = [
        f"{name} at {row['coordinates']:,}: {why}" for row in rows for name, why in row["skipped"].items()
    ]
    return lines + (["", "Left out: " + "; ".join(left_out) + "."] if left_out else [])


def _head(sizes: list[str]) -> list[str]:
    return [_line("coordinates", sizes), "|---" * (1 + len(sizes)) + "|"]


def _line(name: str, cells: list[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def _nanoseconds(row: dict[str, Any], name: str) -> str:
    if name not in row["seconds_per_step"]:
        return "left out"
    low, median, high = (1e9 / row["coordinates"] * x for x in quartiles(row["seconds_per_step"][name]))
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def _ratio(row: dict[str, Any], name: str) -> str:
    found = row["seconds_per_step"]
    return f"{np.median(found[name]) / np.median(found[ADAM]):.3g}" if name in found else "left out"


def main(
    sizes: Annotated[
        str, typer.Option(help="Numbers of coordinates.")
    ] = "1000,10000,100000,1000000,10000000",
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each side, in alternation.")] = 5,
    memory: Annotated[float, typer.Option(help="GiB; what would need more is left out.")] = 8.0,
    only: Annotated[str, typer.Option(help="A word of the optimizers to measure.")] = "",
    clock: Annotated[str, typer.Option(help="wall, or cpu.")] = "wall",
    out: results.File = None,
) -> None:
    """Measures, and prints two Markdown tables."""
    if clock not in CLOCKS:
        raise typer.BadParameter(f"got {clock!r}; possible are {', '.join(CLOCKS)}", param_hint="--clock")
    rows = []
    for size in sizes.split(","):
        rows.append(measure(int(size), repeats, memory, only, CLOCKS[clock]))
        typer.echo(f"{rows[-1]['coordinates']:,} coordinates are done.", err=True)
        content = {"environment": l2o.environment(), "memory_gib": memory, "clock": clock, "sizes": rows}
        results.keep(out, content)
    typer.echo("\n".join(tables(rows)))


if __name__ == "__main__":
    typer.run(main)
