"""What the true, second-order meta-gradient costs: `python -m l2o_bench.orders`, first and second in turn."""

import sys
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.random as jr

import l2o_eqx as l2o
from l2o_eqx.estimators import FIRST_ORDER, Auto
from l2o_eqx.objectives import MNIST, AbstractObjectiveFamily, Quadratic
from l2o_eqx.optimizers import AbstractOptimizer, AdamMLP, CoordinatewiseLSTM, LearnedMomentum, SubspaceRNN
from l2o_eqx.strategies import EveryWindow

from ._cases import WINDOW, Bowls
from ._measure import alternate, quartiles

Order = Literal["first", "second"]
OPTIMIZERS: dict[str, Callable[[Any], AbstractOptimizer]] = {
    "LSTM 2x20": lambda key: CoordinatewiseLSTM(key=key),
    "LearnedMomentum": lambda key: LearnedMomentum(key=key),
    "SubspaceRNN": lambda key: SubspaceRNN(key=key),
    "AdamMLP": lambda key: AdamMLP(key=key),
}
# Family, objectives in parallel, windows in one measurement.
FAMILIES: dict[str, tuple[Callable[[], AbstractObjectiveFamily], int, int]] = {
    "quadratic, 64 objectives": (Quadratic, 64, 20),
    "MNIST 784-32-10": (lambda: MNIST(data="embedded"), 1, 2),
    "10^5 coordinates": (lambda: Bowls(10**5), 1, 1),
    "10^6 coordinates": (lambda: Bowls(10**6), 1, 1),
}


def make(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    num_objectives: int,
    num_windows: int,
    order: Order,
) -> tuple[Callable[[], Any], int]:
    """A function that trains for one super epoch, and the bytes of its program's temporaries."""
    strategy, meta_optimizer = (
        EveryWindow(WINDOW, Auto(() if order == "second" else FIRST_ORDER)),
        l2o.default_meta_optimizer(),
    )
    state = l2o.init_meta_state(optimizer, meta_optimizer)
    program: Any = eqx.filter_jit(
        lambda state, family, key: l2o.meta_step(
            state,
            family,
            strategy,
            weighting=l2o.weightings.Constant(),
            meta_optimizer=meta_optimizer,
            num_steps=WINDOW * num_windows,
            num_objectives=num_objectives,
            restarts=None,
            key=key,
        )
    )
    compiled = program.lower(state, family, jr.key(1)).compile()
    memory = compiled.compiled.memory_analysis()

    def run() -> Any:
        return jax.block_until_ready(compiled(state, family, jr.key(1))[1])

    return run, int(memory.temp_size_in_bytes) if memory else 0


def main(repeats: int = 3) -> None:
    """Prints a row per optimizer and family: seconds of both orders, their ratio, temporaries."""
    print("| optimizer | objective | first, ms per step | second | ratio | temporaries, MB |")
    print("|---|---|---|---|---|---|")
    for title, (make_family, num_objectives, num_windows) in FAMILIES.items():
        family = make_family()
        for name, make_optimizer in OPTIMIZERS.items():
            orders: tuple[Order, ...] = ("first", "second")
            made = {
                order: make(make_optimizer(jr.key(0)), family, num_objectives, num_windows, order)
                for order in orders
            }
            seconds = alternate({order: run for order, (run, _) in made.items()}, repeats)
            first, second = (1e3 * quartiles(seconds[order])[1] / (WINDOW * num_windows) for order in made)
            sizes = " / ".join(f"{size / 1e6:.0f}" for _, size in made.values())
            print(
                f"| {name} | {title} | {first:.2f} | {second:.2f} | {second / first:.2f} | {sizes} |",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
