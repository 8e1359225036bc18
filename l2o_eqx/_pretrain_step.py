"""The updates of a pretraining as one compiled program."""

from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from ._devices import Restarts
from ._devices._restarts import RunKeys
from ._pretraining_report import answer, dtype_of
from ._types import Scalar
from .optimizers import AbstractOptimizer

LossName = Literal["sign-weighted", "squared"]

# Updates in one call of the compiled program, and so between callbacks.
CHUNK = 100


def sign_weighted_loss(
    updates: Float[Array, "*shape"], targets: Float[Array, "*shape"], omega: float = 2.0
) -> Scalar:
    """mean |g − g*|·exp(−ω·sgn(g·g*)): errors count e^ω where the sign is wrong, e^(−ω) where it is right.

    An update of exactly zero has no sign, and its error counts once.

    **Arguments:**

    - `updates`: g.
    - `targets`: g*.
    - `omega`: how much signs matter; with 0, this is the mean absolute error.

    Reference: thesis eq. 5.11.
    """
    # The product of small numbers could underflow, that of their signs cannot.
    agreement = jnp.sign(updates) * jnp.sign(targets)
    errors = updates - targets
    # JAX's derivative of |x| at 0 is 1; this one is 0, so that an exact optimizer stays so.
    magnitudes = jnp.sign(errors) * errors
    return jnp.mean(magnitudes * jnp.exp(-omega * agreement))


class PretrainSettings(NamedTuple):
    """Those of `pretrain` that a compiled program depends on."""

    omega: float
    loss: LossName
    input_std: float
    num_steps: int
    batch_size: int
    carry_state: bool


class PartState(eqx.Module):
    """The pretraining of one part, between two calls of the program."""

    optimizer: AbstractOptimizer
    meta_optimizer_state: PyTree
    state: PyTree


@eqx.filter_jit
def init_carried(optimizer, batch_size, runs):
    """The first state of an optimizer that goes on from batch to batch."""
    arrays, static = eqx.partition(optimizer, eqx.is_array)
    params = jnp.zeros(batch_size, dtype_of(optimizer))
    return runs.over(lambda arrays: eqx.combine(arrays, static).init(params))(arrays)


@eqx.filter_jit
def train_part(
    run: PartState,
    rate: Float[Array, "*restarts"],
    keys: RunKeys,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    settings: PretrainSettings,
    meta_optimizer: optax.GradientTransformation,
    runs: Restarts,
) -> tuple[PartState, Float[Array, "*restarts updates"]]:
    """The updates from number `start` up to `stop`, at most `CHUNK`, and the loss before each."""
    # A loop of as many updates as asked for and an array for the most there are: one program for all chunks.
    arrays, static = eqx.partition(run.optimizer, eqx.is_array)
    dtype = dtype_of(run.optimizer)
    shape = (settings.num_steps, settings.batch_size)

    def train(arrays, meta_state, state, rate, key):
        def one_update(update, carry):
            arrays, meta_state, state, losses = carry
            inputs = settings.input_std * jr.normal(jr.fold_in(key, update), shape, dtype)

            def error(optimizer):
                first = state if settings.carry_state else optimizer.init(jnp.zeros_like(inputs[0]))
                updates, last = answer(optimizer, first, inputs)
                targets = -rate * inputs
                if settings.loss == "squared":
                    return jnp.mean((updates - targets) ** 2), last
                return sign_weighted_loss(updates, targets, settings.omega), last

            optimizer = eqx.combine(arrays, static)
            (loss, last), grads = eqx.filter_value_and_grad(error, has_aux=True)(optimizer)
            meta_params = eqx.filter(optimizer, eqx.is_inexact_array)
            changes, meta_state = meta_optimizer.update(grads, meta_state, meta_params)
            arrays = eqx.filter(eqx.apply_updates(optimizer, changes), eqx.is_array)
            state = last if settings.carry_state else None
            return arrays, meta_state, state, losses.at[update - start].set(loss)

        losses = jnp.zeros(CHUNK, dtype)
        return lax.fori_loop(start, stop, one_update, (arrays, meta_state, state, losses))

    arrays, meta_state, state, losses = runs.over(train)(
        arrays, run.meta_optimizer_state, run.state, rate, keys
    )
    return PartState(eqx.combine(arrays, static), meta_state, state), losses
