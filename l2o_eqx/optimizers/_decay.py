"""How a rate falls to the end of a training of known length."""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._errors import ArgumentError

Decay = Literal["none", "cosine"]


def check_decay(where: str, decay: str) -> None:
    """Raises an `ArgumentError`, in the name of `where`, for a decay that there is not."""
    if decay not in ("none", "cosine"):
        raise ArgumentError(
            f"`{where}(decay={decay!r})`: the rate decays as 'none' or 'cosine'.",
            argument="decay",
            given=decay,
            possible=("none", "cosine"),
        )


def decay_factor(decay: Decay, step: Int[Array, ""], horizon: Float[Array, ""]) -> Float[Array, ""]:
    """What the rate of a step 0, 1, … is multiplied by: 1, or (1 + cos πs)/2 + 1/100, s the share done."""
    if decay == "none":
        return jnp.ones_like(horizon)
    return (1 + jnp.cos(math.pi * jnp.minimum(step / horizon, 1))) / 2 + 0.01
