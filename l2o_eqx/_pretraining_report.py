"""What a pretrained optimizer is compared with, and what pretraining it and judging it share."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt32

from ._checks import check_restarts, check_sizes
from ._devices import sharded_over_devices
from ._misc import tree_dtype
from ._types import State
from .optimizers import AbstractOptimizer, PerLayer

# As many as the default window of `meta_train` has.
NUM_STEPS = 16
NUM_SAMPLES = 4096

# One key, or one per restart; keys of the old kind are rows of two numbers.
RunKeys = Key[Array, "*restarts"] | UInt32[Array, "*restarts 2"]


class PretrainReport(eqx.Module):
    """How far an optimizer is from gradient descent, g* = −α·∇, on random inputs.

    With `restarts`, arrays over them. A `PerLayer` is judged over all of its blocks.

    **Fields:**

    - `sign_agreement`: the share of updates that have the sign of g*.
    - `relative_error`: the median of |g − g*|/|g*|.
    """

    sign_agreement: Float[Array, "*restarts"]
    relative_error: Float[Array, "*restarts"]


def pretraining_report(
    optimizer: AbstractOptimizer,
    *,
    learning_rate: float | None = None,
    input_std: float = 1e-3,
    num_steps: int = NUM_STEPS,
    num_samples: int = NUM_SAMPLES,
    restarts: int | None = None,
    key: PRNGKeyArray,
) -> PretrainReport:
    """How far any optimizer, pretrained or not, is from gradient descent on random inputs.

    **Arguments:**

    - `optimizer`: what to judge.
    - `learning_rate`, `input_std`: as in `pretrain`.
    - `num_steps`: inputs that a coordinate is given one after the other; with 1, only the first step of an
        inner optimization is judged.
    - `num_samples`: coordinates.
    - `restarts`: if given, `optimizer` is a batch of that many.
    - `key`: draws the inputs.

    **Returns:** a `PretrainReport`.

    **Raises:** `ValueError` for sizes below 1, an `input_std` or a learning rate that is not positive, or an
    optimizer without a learning rate.
    """
    one_or_more = 1 if restarts is None else restarts
    check_sizes("pretraining_report", num_steps=num_steps, num_samples=num_samples, restarts=one_or_more)
    check_positive("pretraining_report", input_std=input_std)
    check_restarts("pretraining_report", optimizer, restarts)
    keys = key if restarts is None else jr.split(key, restarts)
    blocks = blocks_of(optimizer)
    rates = [rate_of("pretraining_report", block, learning_rate, restarts) for block in blocks]
    return measure(
        blocks,
        rates,
        keys,
        jnp.int32(0),
        input_std=input_std,
        num_steps=num_steps,
        num_samples=num_samples,
        restarts=restarts,
    )


@eqx.filter_jit
def measure(
    blocks: list[AbstractOptimizer],
    rates: list[Float[Array, "*restarts"]],
    keys: RunKeys,
    draw: Int[Array, ""],
    *,
    input_std: float,
    num_steps: int,
    num_samples: int,
    restarts: int | None,
) -> PretrainReport:
    """The report on all blocks together; `draw` numbers the inputs that a key gives."""
    arrays, static = eqx.partition(blocks, eqx.is_array)

    def report(arrays, rates, key):
        right, errors = [], []
        for block, rate in zip(eqx.combine(arrays, static), rates, strict=True):
            inputs = input_std * jr.normal(jr.fold_in(key, draw), (num_steps, num_samples), rate.dtype)
            updates, _ = answer(block, block.init(jnp.zeros_like(inputs[0])), inputs)
            targets = -rate * inputs
            error = jnp.abs(updates - targets)
            right.append(jnp.sign(updates) == jnp.sign(targets))
            # An input of exactly zero that is answered with zero is answered without an error.
            errors.append(jnp.where(error == 0, 0, error / jnp.abs(targets)))
        return PretrainReport(jnp.mean(jnp.stack(right)), jnp.median(jnp.stack(errors)))

    return over_restarts(report, restarts)(arrays, rates, keys)


def answer(
    optimizer: AbstractOptimizer, state: State, inputs: Float[Array, "steps coordinates"]
) -> tuple[Float[Array, "steps coordinates"], State]:
    """The updates to one row of inputs after the other, and the state after the last."""
    params = jnp.zeros_like(inputs[0])

    if wanted := sorted(optimizer.wants()):
        raise ValueError(
            f"`{type(optimizer).__name__}` wants {' and '.join(wanted)}; random gradients have no objective "
            "that could show them."
        )

    def one_step(state, grads):
        updates, state = optimizer.update(grads, state, params)
        return state, updates

    state, updates = lax.scan(one_step, state, inputs)
    return updates, state


def blocks_of(optimizer: AbstractOptimizer) -> list[AbstractOptimizer]:
    """The optimizers inside a `PerLayer`, by label; another optimizer is its own only block."""
    if not isinstance(optimizer, PerLayer):
        return [optimizer]
    return [block for _, inner in sorted(optimizer.optimizers.items()) for block in blocks_of(inner)]


def rate_of(
    verb: str, block: AbstractOptimizer, given: float | None, restarts: int | None
) -> Float[Array, "*restarts"]:
    """α of a block's targets: the learning rate given, or its own."""
    rate: Any = getattr(block, "learning_rate", None) if given is None else given
    if not eqx.is_array_like(rate) or np.shape(rate) not in ((), (restarts,)):
        raise ValueError(
            f"`{verb}(learning_rate=...)` must be given, the α of the target −α·∇: "
            f"{type(block).__name__} has no `learning_rate` of its own that is a number."
        )
    check_positive(verb, learning_rate=rate)
    shape = () if restarts is None else (restarts,)
    return jnp.asarray(np.broadcast_to(np.asarray(rate, dtype_of(block)), shape))


def check_positive(verb: str, **values: Any) -> None:
    """Raises a `ValueError` that names the first value which is not above 0."""
    for name, value in values.items():
        if not np.all(np.asarray(value) > 0):
            raise ValueError(f"`{verb}({name}=...)` must be above 0. Got {name}={value}.")


def dtype_of(optimizer: AbstractOptimizer) -> np.dtype:
    """That of the meta-parameters, in which inputs are drawn."""
    return tree_dtype(eqx.filter(optimizer, eqx.is_inexact_array))


def over_restarts(function: Callable[..., Any], restarts: int | None) -> Callable[..., Any]:
    """`function` for a batch of all its arguments, if there are restarts."""
    return function if restarts is None else sharded_over_devices(jax.vmap(function), restarts)
