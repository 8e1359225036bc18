"""Controllers that are linear in the state, with Gaussian noise, and where they lead."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._linear_algebra import cholesky, solve
from .._types import Scalar


class LinearGaussian(eqx.Module):
    """A time-varying controller: u_t ~ N(K_t x_t + k_t, C_t), for every step t.

    **Fields:**

    - `gains`: K.
    - `offsets`: k.
    - `covariances`: C, positive definite.

    A batch of them has its axes in front; functions of this module take one, and are mapped over a batch.
    """

    gains: Float[Array, "*batch steps actions states"]
    offsets: Float[Array, "*batch steps actions"]
    covariances: Float[Array, "*batch steps actions actions"]


class LinearDynamics(eqx.Module):
    """x_{t+1} = A_t x_t + B_t u_t + c_t, without noise.

    **Fields:**

    - `states`: A.
    - `actions`: B.
    - `offsets`: c.
    """

    states: Float[Array, "*batch steps states states"]
    actions: Float[Array, "*batch steps states actions"]
    offsets: Float[Array, "*batch steps states"]

    @classmethod
    def adding(cls, num_steps: int, size: int, dtype: Any = jnp.float32) -> "LinearDynamics":
        """x_{t+1} = x_t + u_t: what an optimizer's updates do to params.

        **Arguments:**

        - `num_steps`: steps; `size`: entries of x and of u; `dtype`: of all arrays.
        """
        eye = jnp.broadcast_to(jnp.eye(size, dtype=dtype), (num_steps, size, size))
        return cls(eye, eye, jnp.zeros((num_steps, size), dtype))


class Marginals(eqx.Module):
    """Means and covariances of the T + 1 states x_1, …, x_{T+1} of a controlled trajectory, all Gaussian."""

    means: Float[Array, "*batch points states"]
    covariances: Float[Array, "*batch points states states"]


def propagate(
    controller: LinearGaussian,
    dynamics: LinearDynamics,
    mean: Float[Array, " states"],
    covariance: Float[Array, "states states"],
) -> Marginals:
    """Where a controller leads from x_1 ~ N(mean, covariance), exactly.

    **Arguments:**

    - `controller`, `dynamics`: of as many steps.
    - `mean`, `covariance`: of the first state; the covariance may be zero.
    """

    def step(carry, t):
        mean, covariance = carry
        own, moves = t
        action = own.gains @ mean + own.offsets
        closed = moves.states + moves.actions @ own.gains
        spread = closed @ covariance @ closed.T
        spread = spread + moves.actions @ own.covariances @ moves.actions.T
        following = moves.states @ mean + moves.actions @ action + moves.offsets
        return (following, spread), carry

    last, before = lax.scan(step, (mean, covariance), (controller, dynamics))
    return Marginals(*(jnp.concatenate([x, y[None]]) for x, y in zip(before, last, strict=True)))


def divergence(new: LinearGaussian, old: LinearGaussian, marginals: Marginals) -> Scalar:
    """Σ_t E KL(new_t(·|x_t) ‖ old_t(·|x_t)) in nats: that of the trajectories, if both begin alike.

    **Arguments:**

    - `new`, `old`: two controllers.
    - `marginals`: of the states of `new`, over which the expectation is.
    """

    def one(new, old, mean, covariance):
        gain, offset = new.gains - old.gains, new.offsets - old.offsets
        apart = gain @ mean + offset
        spread = new.covariances + gain @ covariance @ gain.T + apart[:, None] * apart[None]
        logs = _log_det(old.covariances) - _log_det(new.covariances)
        return (jnp.trace(solve(old.covariances, spread)) - apart.shape[0] + logs) / 2

    return jnp.sum(jax.vmap(one)(new, old, marginals.means[:-1], marginals.covariances[:-1]))


def _log_det(covariance):
    return 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky(covariance))))
