"""The library's side: super epochs of `meta_train`, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.random as jr

import l2o_eqx as l2o
from l2o_eqx._devices import Restarts
from l2o_eqx._meta_step import compiled_step, placed
from l2o_eqx.weightings import Constant

from ._cases import Case


def make(case: Case) -> tuple[Callable[[], Any], int]:
    """A function that trains for one super epoch, going on where it ended, and its program's temporaries.

    The temporaries are bytes, those of all devices together.
    """
    meta_optimizer = l2o.default_meta_optimizer()
    state = l2o.init_meta_state(case.optimizer(jr.key(0)), meta_optimizer, restarts=case.restarts)
    arguments = placed(state, case.family(), case.strategy, case.num_objectives, Restarts(case.restarts))
    state, *rest = arguments
    settings: dict[str, Any] = {
        "strategy": case.strategy,
        "weighting": Constant(),
        "meta_optimizer": meta_optimizer,
        "num_steps": case.num_steps,
        "num_objectives": case.num_objectives,
        "key": jr.key(1),
    }
    step: Any = compiled_step
    program = step.lower(state, *rest, **settings).compile()
    memory = program.compiled.memory_analysis()
    num_devices = 1 if (mesh := arguments[2].mesh) is None else mesh.size

    def run() -> Any:
        nonlocal state
        state, metrics, *_ = program(state, *rest, **settings)
        return jax.block_until_ready(metrics)

    return run, int(memory.temp_size_in_bytes) * num_devices if memory else 0
