import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_sizes
from .._errors import ArgumentError
from .._types import Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._expected_improvement import ExpectedImprovementObjective
from ._minimum import Minimum

# The prior's standard deviation is 1. What is lifted lies below this, as seen from the lowest point.
_LIFT = 0.02
# The lowest of so many random points is where the search for the lowest one begins, in steps of 0.3ℓ²∇g.
_CANDIDATES, _DESCENTS, _STEP = 128, 12, 0.3

OuterLoss = Literal["loss", "expected_improvement", "log_expected_improvement"]


class GaussianProcessObjective(AbstractObjective):
    """A function from a Gaussian process whose lowest point is known. Drawn by `GaussianProcess`.

    **Fields:**

    - `frequencies`, `phases`, `weights`: of the random Fourier features.
    - `lowest`, `floor`: where it is lowest, and its value there.
    - `length_scale`: ℓ of the kernel.
    """

    frequencies: Float[Array, "features dim"]
    phases: Float[Array, " features"]
    weights: Float[Array, " features"]
    lowest: Float[Array, " dim"]
    floor: Float[Array, ""]
    length_scale: Float[Array, ""]

    def init(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        return jr.uniform(key, self.lowest.shape, self.lowest.dtype, -1, 1)

    def loss(self, params: Float[Array, " dim"], step: StepNumber, key: PRNGKeyArray) -> Scalar:
        square = jnp.sum((params - self.lowest) ** 2)
        bowl = -_LIFT * jnp.expm1(-square / (2 * self.length_scale**2))
        above = _draw(self.frequencies, self.phases, self.weights, params) - self.floor - bowl
        return self.floor + bowl + _positive_part(above)

    def minimum(self) -> Minimum:
        return Minimum(self.floor, self.lowest)


class GaussianProcess(AbstractObjectiveFamily):
    """Functions on the box [−1, 1]^n from a Gaussian process, each with a known minimum.

    The prior has mean 0, variance 1 and the kernel exp(−‖x − x'‖²/2ℓ²). A draw is made of random Fourier
    features,

        g(x) = √(2/m)·Σ_i a_i·cos(ω_i·x/ℓ + b_i),    a_i, ω_i standard normal, b_i uniform in [0, 2π],

    so that it can be differentiated everywhere and costs a product. To know its minimum, a low point x* in
    the box is searched for (the lowest of 128 random points, and from there a few steps down the gradient,
    which may end at an edge), and what lies below it anywhere else is lifted:

        f(x) = g(x*) + b(x) + p(g(x) − g(x*) − b(x)),
        b(x) = 0.02·(1 − exp(−‖x − x*‖²/2ℓ²)),    p(s) = s·(1 − exp(−s/0.02)) for s > 0, else 0.

    p is not negative and b is zero at x* alone, so that f has its only minimum there, of the value g(x*), in
    the box and beyond. f is once continuously differentiable. Where g is more than 0.2 above g(x*), f is g
    up to rounding; where it is less, f is a little above it. That the search may have missed the lowest point
    of g therefore makes no regret wrong: it makes f differ from a draw of the prior there.

    Starting points are uniform in the box. Nothing keeps an optimizer from leaving it.

    **Expected improvement.** What a weighting weighs of step t, the outer loss, is by default f(x_t). It can
    be −EI(x_t) = −E[max(min_{j<t} f(x_j) − f(x_t), 0)] under the posterior of the process, given the points
    x_j and values of the steps before: it says of every point how good a choice it was, not of the lucky ones
    alone. Its logarithm counts the small improvements of late steps as much as early ones. What an optimizer
    is shown, and is compared by, stays f.

    It is in the family and no weighting, because a weighting sees losses alone, and the posterior needs the
    points: they are carried along as the state of the objective. To the meta-gradient that state is a
    constant: it counts how x_t moves with the meta-parameters, wherever the optimizer has brought it from,
    and not how the posterior at x_t moves with the points before. Without any point yet, the improvement is
    that over the prior mean 0, which is the same everywhere. The posterior is in closed form, by a Cholesky
    factor of `horizon` rows, with a variance of 1e-4 for noise; that f is a little above a draw near its
    minimum is not in it.

    **Arguments:**

    - `dim`: the number n of coordinates.
    - `length_scale`: ℓ, or a range that every function draws its own from, log-uniformly; by default 0.4·√n,
        with which functions of all dimensions are about as rough along a diagonal.
    - `num_features`: m; with more of them, draws are closer to those of the process.
    - `outer_loss`: what is weighed: the `"loss"` f, `"expected_improvement"`, −EI, or
        `"log_expected_improvement"`, −log(EI + 1e-3).
    - `horizon`: how many points the posterior has place for; those of later steps are not remembered.

    **Raises:** `ValueError` for sizes below 1, scales that are not above 0 or in the wrong order, or an
        unknown `outer_loss`.

    Reference: Rahimi & Recht 2007, "Random features for large-scale kernel machines", for the features;
    Chen et al. 2017, "Learning to learn without gradient descent by gradient descent" (arXiv:1611.03824), for
    functions from a prior and the expected improvement as a meta-loss; Jones et al. 1998, "Efficient global
    optimization of expensive black-box functions"; its logarithm: Ament et al. 2023, "Unexpected improvements
    to expected improvement for Bayesian optimization" (arXiv:2310.20708).
    """

    dim: int = eqx.field(static=True, default=2)
    length_scale: float | tuple[float, float] | None = eqx.field(static=True, default=None)
    num_features: int = eqx.field(static=True, default=256)
    outer_loss: OuterLoss = eqx.field(static=True, default="loss")
    horizon: int = eqx.field(static=True, default=30)

    def __check_init__(self):
        check_sizes("GaussianProcess", dim=self.dim, num_features=self.num_features, horizon=self.horizon)
        if self.outer_loss not in get_args(OuterLoss):
            raise ArgumentError(
                f"`GaussianProcess(outer_loss={self.outer_loss!r})`: what is weighed is one of "
                f"{', '.join(get_args(OuterLoss))}.",
                argument="outer_loss",
                given=self.outer_loss,
                possible=get_args(OuterLoss),
            )
        low, high = self._range()
        if not 0 < low <= high < math.inf:
            raise ArgumentError(
                "`GaussianProcess(length_scale=...)` is a length above 0, or a range of them. Got "
                f"length_scale={self.length_scale}.",
                argument="length_scale",
                given=self.length_scale,
            )

    def _range(self) -> tuple[float, float]:
        scale = 0.4 * math.sqrt(self.dim) if self.length_scale is None else self.length_scale
        return scale if isinstance(scale, tuple) else (scale, scale)

    def sample(self, key: PRNGKeyArray) -> GaussianProcessObjective | ExpectedImprovementObjective:
        lkey, fkey, pkey, wkey, ckey = jr.split(key, 5)
        low, high = map(math.log, self._range())
        length_scale = jnp.exp(jr.uniform(lkey, (), minval=low, maxval=high))
        frequencies = jr.normal(fkey, (self.num_features, self.dim)) / length_scale
        phases = jr.uniform(pkey, (self.num_features,), maxval=2 * math.pi)
        weights = math.sqrt(2 / self.num_features) * jr.normal(wkey, (self.num_features,))

        def draw(x):
            return _draw(frequencies, phases, weights, x)

        candidates = jr.uniform(ckey, (_CANDIDATES, self.dim), minval=-1, maxval=1)
        first = candidates[jnp.argmin(jax.vmap(draw)(candidates))]
        lowest, floor = _descend(draw, first, _STEP * length_scale**2)
        objective = GaussianProcessObjective(frequencies, phases, weights, lowest, floor, length_scale)
        if self.outer_loss == "loss":
            return objective
        log = self.outer_loss == "log_expected_improvement"
        return ExpectedImprovementObjective.of(objective, length_scale, self.dim, self.horizon, log=log)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        # Of the same dimension: what lives on values is made for one.
        low, high = self._range()
        scaled = {"½": 0.5, "2": 2.0}.items()
        return {
            f"length scale × {name}": dataclasses.replace(self, length_scale=(low * c, high * c))
            for name, c in scaled
        }


def _draw(frequencies, phases, weights, x):
    return weights @ jnp.cos(frequencies @ x + phases)


def _descend(function, first, rate):
    """Some steps down the gradient within the box, and the lowest point on the way."""

    def one_step(carry, _):
        x, lowest, floor = carry
        value, grad = jax.value_and_grad(function)(x)
        lower = value < floor
        lowest, floor = jnp.where(lower, x, lowest), jnp.where(lower, value, floor)
        return (jnp.clip(x - rate * grad, -1, 1), lowest, floor), None

    (_, lowest, floor), _ = lax.scan(one_step, (first, first, function(first)), length=_DESCENTS)
    return lowest, floor


def _positive_part(s):
    # s for what is well above 0, and 0 below; its derivative is continuous.
    above = jnp.maximum(s, 0)
    return -above * jnp.expm1(-above / _LIFT)
