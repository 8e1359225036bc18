from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import ArgumentError
from .._types import Scalar, StepNumber
from ._base import AbstractWeighting

Counting = Literal["window", "super_epoch"]


class Constant(AbstractWeighting):
    """L = Σ f(θ_t): every step counts alike (w_t = 1; thesis eq. 3.5)."""

    def __call__(self, losses: Float[Array, " window"], start: StepNumber, num_steps: StepNumber) -> Scalar:
        del start, num_steps
        return jnp.sum(losses)


class Linear(AbstractWeighting):
    """L = Σ (βt + 1)·f(θ_t): later steps count more.

    **Arguments:**

    - `beta`: β ≥ 0; 1 in the thesis, 0 gives `Constant`.
    - `counting`: whether t = 1, 2, … begins with each `"window"` (the thesis) or with the
        `"super_epoch"`.
    - `first`: the first value of t: 1 as the thesis writes it; 0 gives the weights 1 … T of its code.

    **Raises:** `ValueError` for a negative β or an unknown counting.

    Reference: thesis eq. 5.12.
    """

    beta: float = eqx.field(static=True, default=1.0)
    counting: Counting = eqx.field(static=True, default="window")
    first: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        _check_counting("Linear", self.counting)
        if self.beta < 0:
            raise ArgumentError(
                f"`Linear(beta=...)` cannot be negative. Got beta={self.beta}.",
                argument="beta",
                given=self.beta,
            )

    def __call__(self, losses: Float[Array, " window"], start: StepNumber, num_steps: StepNumber) -> Scalar:
        del num_steps
        t = _step_numbers(losses, start, self.counting, self.first)
        return jnp.sum((self.beta * t + 1) * losses)


class Exponential(AbstractWeighting):
    """L = Σ γ^t·f(θ_t): later steps count more by a constant factor.

    **Arguments:**

    - `gamma`: γ > 0; above 1 in the thesis.
    - `counting`, `first`: as in `Linear`.

    **Raises:** `ValueError` unless γ is positive, or for an unknown counting.

    Reference: thesis eq. 5.13.
    """

    gamma: float = eqx.field(static=True, default=1.1)
    counting: Counting = eqx.field(static=True, default="window")
    first: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        _check_counting("Exponential", self.counting)
        if not self.gamma > 0:
            raise ArgumentError(
                f"`Exponential(gamma=...)` must be positive. Got gamma={self.gamma}.",
                argument="gamma",
                given=self.gamma,
            )

    def __call__(self, losses: Float[Array, " window"], start: StepNumber, num_steps: StepNumber) -> Scalar:
        del num_steps
        t = _step_numbers(losses, start, self.counting, self.first)
        return jnp.sum(self.gamma**t * losses)


class FinalOnly(AbstractWeighting):
    """L = f(θ_last): only the last step counts.

    **Arguments:**

    - `counting`: the last step of each `"window"`, or of the `"super_epoch"` alone, in which case windows
        before the last one have the meta-loss and the meta-gradient 0.

    **Raises:** `ValueError` for an unknown counting.

    Reference: thesis eq. 3.4.
    """

    counting: Counting = eqx.field(static=True, default="window")

    def __check_init__(self):
        _check_counting("FinalOnly", self.counting)

    def __call__(self, losses: Float[Array, " window"], start: StepNumber, num_steps: StepNumber) -> Scalar:
        if self.counting == "window":
            return losses[-1]
        steps = start + jnp.arange(losses.shape[0])
        return jnp.sum(jnp.where(steps == num_steps - 1, losses, 0.0))


def _step_numbers(losses, start, counting, first):
    t = first + jnp.arange(losses.shape[0])
    if counting == "super_epoch":
        t = t + start
    return t.astype(losses.dtype)


def _check_counting(name, counting):
    if counting not in ("window", "super_epoch"):
        raise ArgumentError(
            f"`{name}(counting={counting!r})`: steps are counted in the 'window' or the 'super_epoch'.",
            argument="counting",
            given=counting,
            possible=("window", "super_epoch"),
        )
