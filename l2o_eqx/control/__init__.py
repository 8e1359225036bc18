"""Optimal control of linear dynamics at quadratic costs, and improvements of bounded divergence."""

from ._kl_step import minus_log_density as minus_log_density
from ._kl_step import optimize_trajectory as optimize_trajectory
from ._linear_gaussian import LinearDynamics as LinearDynamics
from ._linear_gaussian import LinearGaussian as LinearGaussian
from ._linear_gaussian import Marginals as Marginals
from ._linear_gaussian import divergence as divergence
from ._linear_gaussian import propagate as propagate
from ._lqr import QuadraticCost as QuadraticCost
from ._lqr import expected_cost as expected_cost
from ._lqr import lqr as lqr
