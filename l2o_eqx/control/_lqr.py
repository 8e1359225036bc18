"""The linear-quadratic regulator, with the entropy of its controller."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._linear_algebra import solve
from .._types import Scalar
from ._linear_gaussian import LinearDynamics, LinearGaussian, Marginals


class QuadraticCost(eqx.Module):
    """Σ_t [½ z_tᵀ H_t z_t + h_tᵀ z_t] of z_t = (x_t, u_t), and ½ xᵀ F x + fᵀ x of the last state x_{T+1}.

    **Fields:**

    - `hessians`: H, symmetric.
    - `slopes`: h.
    - `final_hessian`: F.
    - `final_slope`: f.
    """

    hessians: Float[Array, "*batch steps both both"]
    slopes: Float[Array, "*batch steps both"]
    final_hessian: Float[Array, "*batch states states"]
    final_slope: Float[Array, "*batch states"]


def lqr(dynamics: LinearDynamics, cost: QuadraticCost) -> LinearGaussian:
    """The controller that minimizes E[cost] − Σ_t entropy of u_t given x_t, by the Riccati recursion.

    Backward in t, with V the value function's Hessian, v its slope, and Q = H_t + [A B]ᵀ V [A B]:

        K_t = −Q_uu⁻¹ Q_ux,    k_t = −Q_uu⁻¹ q_u,    C_t = Q_uu⁻¹

    K and k are those of the deterministic regulator, whatever the entropy counts: to minimize
    E[cost] − τ·entropy divide the cost by τ.

    **Arguments:**

    - `dynamics`: of n states and m actions.
    - `cost`: such that every Q_uu is positive definite; where one is not, the result is NaN.

    Reference: Levine & Koltun 2013, "Guided policy search", eq. 2 (maximum entropy); Anderson & Moore,
    "Optimal control: linear quadratic methods", sec. 2.4.
    """
    num_states = cost.final_slope.shape[0]

    def step(value, t):
        hessian, slope, moves = t
        value_hessian, value_slope = value
        both = jnp.concatenate([moves.states, moves.actions], axis=1)
        q_hessian = hessian + both.T @ value_hessian @ both
        q_slope = slope + both.T @ (value_slope + value_hessian @ moves.offsets)
        q_xx, q_xu = q_hessian[:num_states, :num_states], q_hessian[:num_states, num_states:]
        q_uu = _symmetric(q_hessian[num_states:, num_states:])
        q_ux, q_u = q_xu.T, q_slope[num_states:]
        eye = jnp.eye(len(q_uu), dtype=q_uu.dtype)
        solved = solve(q_uu, jnp.concatenate([-q_ux, -q_u[:, None], eye], axis=1))
        gain, offset, covariance = jnp.split(solved, [num_states, num_states + 1], axis=1)
        offset = offset[:, 0]
        before = _symmetric(q_xx + q_xu @ gain), q_slope[:num_states] + q_xu @ offset
        return before, (gain, offset, _symmetric(covariance))

    last = cost.final_hessian, cost.final_slope
    steps = (cost.hessians, cost.slopes, dynamics)
    return LinearGaussian(*lax.scan(step, last, steps, reverse=True)[1])


def expected_cost(cost: QuadraticCost, controller: LinearGaussian, marginals: Marginals) -> Scalar:
    """E[cost] along the trajectories of a controller.

    **Arguments:**

    - `cost`: a quadratic one.
    - `controller`, and `marginals` of its states, as of `propagate`.
    """

    def one(hessian, slope, controller, mean, covariance):
        action = controller.gains @ mean + controller.offsets
        both = jnp.concatenate([jnp.eye(len(mean), dtype=mean.dtype), controller.gains])
        spread = both @ covariance @ both.T
        spread = spread.at[len(mean) :, len(mean) :].add(controller.covariances)
        return _expectation(hessian, slope, jnp.concatenate([mean, action]), spread)

    means, covariances = marginals.means, marginals.covariances
    running = jax.vmap(one)(cost.hessians, cost.slopes, controller, means[:-1], covariances[:-1])
    last = _expectation(cost.final_hessian, cost.final_slope, means[-1], covariances[-1])
    return jnp.sum(running) + last


def _expectation(hessian, slope, mean, covariance):
    return (mean @ hessian @ mean + jnp.sum(hessian * covariance)) / 2 + slope @ mean


def _symmetric(matrix):
    return (matrix + matrix.T) / 2
