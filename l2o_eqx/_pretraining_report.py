"""What a pretrained optimizer is compared with, and what pretraining it and judging it share."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._checks import check_sizes
from ._devices import Restarts
from ._devices._restarts import RunKeys
from ._errors import ArgumentError
from ._misc import tree_dtype
from ._types import State
from .optimizers import AbstractOptimizer

# As many as the default window of `meta_train` has.
NUM_STEPS = 16
NUM_SAMPLES = 4096


class PretrainReport(eqx.Module):
    """How far an optimizer is from gradient descent, g* = −α·∇, on random inputs.

    With `restarts`, arrays over them. One that is made of optimizers, as a `PerLayer`, is judged
    over all of them.

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
    check_sizes("pretraining_report", num_steps=num_steps, num_samples=num_samples)
    check_positive("pretraining_report", input_std=input_std)
    runs = Restarts.of("pretraining_report", optimizer, restarts)
    parts = optimizers_in(optimizer)
    rates = [rate_of("pretraining_report", part, learning_rate, runs.shape) for part in parts]
    return measure(
        parts,
        rates,
        runs.keys(key),
        jnp.int32(0),
        input_std=input_std,
        num_steps=num_steps,
        num_samples=num_samples,
        runs=runs,
    )


@eqx.filter_jit
def measure(
    parts: list[AbstractOptimizer],
    rates: list[Float[Array, "*restarts"]],
    keys: RunKeys,
    draw: Int[Array, ""],
    *,
    input_std: float,
    num_steps: int,
    num_samples: int,
    runs: Restarts,
) -> PretrainReport:
    """The report on all parts together; `draw` numbers the inputs that a key gives."""
    arrays, static = eqx.partition(parts, eqx.is_array)

    def report(arrays, rates, key):
        right, errors = [], []
        for part, rate in zip(eqx.combine(arrays, static), rates, strict=True):
            inputs = input_std * jr.normal(jr.fold_in(key, draw), (num_steps, num_samples), rate.dtype)
            updates, _ = answer(part, part.init(jnp.zeros_like(inputs[0])), inputs)
            targets = -rate * inputs
            error = jnp.abs(updates - targets)
            right.append(jnp.sign(updates) == jnp.sign(targets))
            # An input of exactly zero that is answered with zero is answered without an error.
            errors.append(jnp.where(error == 0, 0, error / jnp.abs(targets)))
        return PretrainReport(jnp.mean(jnp.stack(right)), jnp.median(jnp.stack(errors)))

    return runs.over(report)(arrays, rates, keys)


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


def optimizers_in(optimizer: AbstractOptimizer) -> list[AbstractOptimizer]:
    """Its parts that are optimizers themselves, by name; one whose parts are none is its own only one."""
    parts = [part for _, part in sorted(optimizer.parts().items())]
    if any(part is optimizer or not isinstance(part, AbstractOptimizer) for part in parts):
        return [optimizer]
    return [inner for part in parts for inner in optimizers_in(part)]


def rate_of(
    verb: str, part: AbstractOptimizer, given: float | None, shape: tuple[int, ...]
) -> Float[Array, "*restarts"]:
    """α of a part's targets: the learning rate given, or its own; of the shape of the restarts."""
    rate: Any = getattr(part, "learning_rate", None) if given is None else given
    if not eqx.is_array_like(rate) or np.shape(rate) not in ((), shape):
        raise ArgumentError(
            f"`{verb}(learning_rate=...)` must be given, the α of the target −α·∇: "
            f"{type(part).__name__} has no `learning_rate` of its own that is a number.",
            argument="learning_rate",
        )
    check_positive(verb, learning_rate=rate)
    return jnp.asarray(np.broadcast_to(np.asarray(rate, dtype_of(part)), shape))


def check_positive(verb: str, **values: Any) -> None:
    """Raises a `ValueError` that names the first value which is not above 0."""
    for name, value in values.items():
        if not np.all(np.asarray(value) > 0):
            raise ArgumentError(
                f"`{verb}({name}=...)` must be above 0. Got {name}={value}.", argument=name, given=value
            )


def dtype_of(optimizer: AbstractOptimizer) -> np.dtype:
    """That of the meta-parameters, in which inputs are drawn."""
    return tree_dtype(eqx.filter(optimizer, eqx.is_inexact_array))
