"""How many steps there will be, and what depends on the share of them that is done."""

import math


def cosine_decay(share: float) -> float:
    # Of the steps that are done.
    return (1 + math.cos(math.pi * share)) / 2 + 0.01


def horizon_of(name: str, of_training: int, num_steps: int | None) -> float:
    horizon = of_training if num_steps is None else num_steps
    if not horizon >= 1:
        raise ValueError(f"{name} needs at least one step. Got num_steps={num_steps}")
    return float(horizon)
