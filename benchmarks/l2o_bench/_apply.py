"""What a step of a trained optimizer costs in an optax loop, next to Adam."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax

import l2o_eqx as l2o
from l2o_eqx.optimizers import AdamMLP, CoordinatewiseLSTM, LearnedMomentum, SubspaceRNN
from l2o_eqx.preprocessors import SignedLog

from ._cases import HIDDEN_SIZES

STEPS = 4


def make(num_coordinates: int) -> dict[str, Callable[[], Any]]:
    """Functions that take `STEPS` steps each, by name."""
    key = jr.key(0)
    learned = {
        "l2o_eqx.as_optax": CoordinatewiseLSTM(HIDDEN_SIZES, SignedLog(), 0.01, key=key),
        "AdamMLP": AdamMLP(key=key),
        "LearnedMomentum": LearnedMomentum(key=key),
        "SubspaceRNN": SubspaceRNN(key=key),
    }
    transformations: dict[str, optax.GradientTransformationExtraArgs] = {
        name: l2o.as_optax(optimizer) for name, optimizer in learned.items()
    }
    transformations["optax.adam"] = optax.adam(1e-3)
    return {name: _steps(t, num_coordinates) for name, t in transformations.items()}


def _steps(transformation: optax.GradientTransformation, num_coordinates: int) -> Callable[[], Any]:
    def one_step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = transformation.update(params, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jr.normal(jr.key(1), (num_coordinates,), jnp.float32)
    carry = (params, transformation.init(params))
    program = jax.jit(lambda carry: lax.scan(one_step, carry, length=STEPS)[0]).lower(carry).compile()
    return lambda: jax.block_until_ready(program(carry))
