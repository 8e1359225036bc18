import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._errors import ArgumentError, check
from .._types import Scalar, State, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._gaussian_process import GaussianProcess, GaussianProcessObjective

# Variance of noise that the posterior believes in: Cholesky factors in float32 need it.
_JITTER = 1e-4


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


class ExpectedImprovementObjective(AbstractObjective):
    """f, with minus the expected improvement as its outer loss. Drawn by `ExpectedImprovement`."""

    objective: GaussianProcessObjective
    evaluations: Evaluations

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return self.objective.init(key)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return self.objective.loss(params, step, key)

    def init_state(self, key: PRNGKeyArray) -> State:
        return self.evaluations

    def with_state(self, state: State) -> "ExpectedImprovementObjective":
        return dataclasses.replace(self, evaluations=state)

    def loss_and_state(
        self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray
    ) -> tuple[Scalar, State]:
        loss = self.loss(params, step, key)
        return loss, self.evaluations.with_one(params, loss)

    def outer_loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        mean, variance = posterior(self.evaluations, self.objective.length_scale, params)
        return -_expected_improvement(mean, variance, _lowest(self.evaluations))


class ExpectedImprovement(AbstractObjectiveFamily):
    """Functions from a Gaussian process, of which an optimizer is trained for the expected improvement.

    The outer loss of step t is −EI(x_t) = −E[max(min_{j<t} f(x_j) − f(x_t), 0)] under the posterior of the
    process that the function was drawn from, given the points x_j and values of the steps before. With the
    weighting `Constant` the meta-loss is minus their sum; what the optimizer is shown stays f.

    It is a family and no weighting, because a weighting sees losses alone, and the posterior needs the
    points: they are carried along as the state of the objective. To the meta-gradient that state is a
    constant: it counts how x_t moves with the meta-parameters, wherever the optimizer has brought it from,
    and not how the posterior at x_t moves with the points before. Without any point yet, the improvement is
    that over the prior mean 0, which is the same everywhere.

    The posterior is in closed form, by a Cholesky factor of `horizon` rows, with a variance of 1e-4 for
    noise; that f is a little above a draw near its minimum is not in it.

    **Arguments:**

    - `family`: gives f.
    - `horizon`: how many points there is place for; those of later steps are not remembered.

    **Raises:** `ValueError` for a family that is no `GaussianProcess`, or no horizon.

    Reference: Chen et al. 2017, "Learning to learn without gradient descent by gradient descent"
    (arXiv:1611.03824), sec. 2.2; Jones et al. 1998, "Efficient global optimization of expensive black-box
    functions".
    """

    family: AbstractObjectiveFamily = GaussianProcess()
    horizon: int = eqx.field(static=True, default=30)

    def __check_init__(self):
        if not isinstance(self.family, GaussianProcess):
            raise ArgumentError(
                f"`ExpectedImprovement(family={type(self.family).__name__}(...))`: the posterior is that "
                "of a `GaussianProcess`, as the family must be.",
                argument="family",
                given=self.family,
            )
        check(
            f"`ExpectedImprovement(horizon=...)` must be at least 1. Got horizon={self.horizon}.",
            horizon=(self.horizon, self.horizon >= 1),
        )

    def sample(self, key: PRNGKeyArray) -> ExpectedImprovementObjective:
        family = self.family
        assert isinstance(family, GaussianProcess)
        objective = family.sample(key)
        dtype = objective.lowest.dtype
        none = Evaluations(
            jnp.zeros((self.horizon, family.dim), dtype),
            jnp.zeros(self.horizon, dtype),
            jnp.zeros((), jnp.int32),
        )
        return ExpectedImprovementObjective(objective, none)


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
    factor = jnp.linalg.cholesky(covariance)
    solved = jax.scipy.linalg.cho_solve((factor, True), along)
    mean = solved @ jnp.where(there, evaluations.values, 0)
    return mean, jnp.maximum(1 - along @ solved, _JITTER)


def _there(evaluations):
    return jnp.arange(len(evaluations.values)) < evaluations.count


def _lowest(evaluations):
    lowest = jnp.min(jnp.where(_there(evaluations), evaluations.values, jnp.inf))
    return jnp.where(evaluations.count > 0, lowest, 0)


def _expected_improvement(mean, variance, lowest):
    std = jnp.sqrt(variance)
    z = (lowest - mean) / std
    density = jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return std * (z * jax.scipy.stats.norm.cdf(z) + density)
