"""The improvement that one expects of the next point of a search, given those before."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._types import Scalar, State, StepNumber
from ._base import AbstractObjective
from ._wrapper import AbstractWrappedObjective

# Variance of noise that the posterior believes in: Cholesky factors in float32 need it.
_JITTER = 1e-4
# Added to the expected improvement before its logarithm.
_FLOOR = 1e-3


class Evaluations(eqx.Module):
    """The points that were evaluated in a run so far, and their values; the first `count` rows."""

    points: Float[Array, "horizon dim"]
    values: Float[Array, " horizon"]
    count: Int[Array, ""]

    def with_one(self, point: Float[Array, " dim"], value: Scalar) -> "Evaluations":
        """One more; there is no place for more than the horizon."""
        # An index that is out of bounds writes nothing.
        return Evaluations(
            self.points.at[self.count].set(point, mode="drop"),
            self.values.at[self.count].set(value, mode="drop"),
            self.count + 1,
        )


class ExpectedImprovementObjective(AbstractWrappedObjective):
    """f of a Gaussian process, with the expected improvement in the place of its outer loss.

    Drawn by `GaussianProcess`, where it is described. The points evaluated so far are its state, which is a
    constant to derivatives.
    """

    objective: AbstractObjective
    length_scale: Float[Array, ""]
    evaluations: Evaluations
    log: bool = eqx.field(static=True)

    @classmethod
    def of(
        cls, objective: AbstractObjective, length_scale: Scalar, dim: int, horizon: int, *, log: bool
    ) -> "ExpectedImprovementObjective":
        """With no point yet, and place for `horizon` of them."""
        dtype = length_scale.dtype
        points, values = jnp.zeros((horizon, dim), dtype), jnp.zeros(horizon, dtype)
        return cls(objective, length_scale, Evaluations(points, values, jnp.zeros((), jnp.int32)), log)

    def changed(self, loss: Scalar) -> Scalar:
        return loss

    def init_state(self, key: PRNGKeyArray) -> State:
        return self.evaluations

    def with_state(self, state: State) -> "ExpectedImprovementObjective":
        return dataclasses.replace(self, evaluations=state)

    def loss_and_state(
        self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray
    ) -> tuple[Scalar, State]:
        loss = self.objective.loss(params, step, key)
        return loss, self.evaluations.with_one(params, loss)

    def outer_loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        mean, variance = posterior(self.evaluations, self.length_scale, params)
        expected = expected_improvement(mean, variance, _lowest(self.evaluations))
        return -jnp.log(expected + _FLOOR) if self.log else -expected

    def has_outer_loss(self) -> bool:
        return True

    def minimum(self) -> None:
        # Of the outer loss nothing is known.
        return None


def posterior(
    evaluations: Evaluations, length_scale: Scalar, point: Float[Array, " dim"]
) -> tuple[Scalar, Scalar]:
    """Mean and variance of the process at a point, given what was evaluated."""
    points, there = evaluations.points, _there(evaluations)

    def kernel(a, b):
        return jnp.exp(-jnp.sum((a - b) ** 2, axis=-1) / (2 * length_scale**2))

    # Rows without a point are those of a process of its own, which says nothing of this one.
    both = there[:, None] & there[None]
    covariance = jnp.where(both, kernel(points[:, None], points[None]), 0) + jnp.diag(
        jnp.where(there, _JITTER, 1).astype(points.dtype)
    )
    along = jnp.where(there, kernel(points, point[None]), 0)
    solved = jax.scipy.linalg.solve(covariance, along, assume_a="pos")
    mean = solved @ jnp.where(there, evaluations.values, 0)
    return mean, jnp.maximum(1 - along @ solved, _JITTER)


def _there(evaluations):
    return jnp.arange(len(evaluations.values)) < evaluations.count


def _lowest(evaluations):
    lowest = jnp.min(jnp.where(_there(evaluations), evaluations.values, jnp.inf))
    return jnp.where(evaluations.count > 0, lowest, 0)


def expected_improvement(mean: Scalar, variance: Scalar, lowest: Scalar) -> Scalar:
    """E[max(lowest − y, 0)] of a normal y."""
    std = jnp.sqrt(variance)
    z = (lowest - mean) / std
    density = jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return std * (z * jax.scipy.stats.norm.cdf(z) + density)
