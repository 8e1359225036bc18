import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import ArgumentError
from .._types import Params, Scalar
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._wrapper import AbstractWrappedObjective, AbstractWrapper


class ScaledObjective(AbstractWrappedObjective):
    """c·f(s∘θ), which begins at θ_1/s where f begins at θ_1. Drawn by `Scaled`.

    `scales` are the s, one per coordinate, or `None` for 1.
    """

    objective: AbstractObjective
    factor: Float[Array, ""]
    scales: Params | None

    def changed(self, loss: Scalar) -> Scalar:
        return self.factor.astype(loss.dtype) * loss

    def inner(self, params: Params) -> Params:
        if self.scales is None:
            return params
        return jax.tree.map(lambda s, p: s.astype(p.dtype) * p, self.scales, params)

    def outer(self, params: Params) -> Params:
        if self.scales is None:
            return params
        return jax.tree.map(lambda s, p: p / s.astype(p.dtype), self.scales, params)


def _floats(factors: tuple[float, float] | None) -> tuple[float, float] | None:
    # Scalars of NumPy would count as arrays.
    return None if factors is None else (float(factors[0]), float(factors[1]))


class Scaled(AbstractWrapper):
    """Objectives of a family on random scales: c·f(s∘θ), with c and s log-uniform, drawn per objective.

    An optimizer that is trained on one scale alone learns that scale. The loss at the starting point is
    c times f's, whatever s is. What the objectives share is still held once.

    **Arguments:**

    - `family`: gives f.
    - `low`, `high`: range of c, a factor of the loss.
    - `pointwise`: `(low, high)`, the range of the s, one for every coordinate: e^(−3) and e^3 in RNNprop;
        by default none.

    **Raises:** `ValueError` for ranges that do not begin above 0 or end below where they begin.

    Reference: Lv, Jiang & Li 2017, "Learning gradient descent: better generalization and longer horizons"
    (arXiv:1703.03633), sec. 4.1, for `pointwise`; Wichrowska et al. 2017 (arXiv:1703.04813).
    """

    family: AbstractObjectiveFamily
    low: float = eqx.field(static=True, default=1e-3, converter=float)
    high: float = eqx.field(static=True, default=1e3, converter=float)
    pointwise: tuple[float, float] | None = eqx.field(static=True, default=None, converter=_floats)

    def __check_init__(self):
        ranges = {"low=..., high=": (self.low, self.high), "pointwise=": self.pointwise or (1.0, 1.0)}
        for name, (low, high) in ranges.items():
            if not 0 < low <= high < math.inf:
                raise ArgumentError(
                    f"`Scaled({name}...)` is a range of factors and must begin above 0 and not end below "
                    f"that. Got {low} to {high}.",
                    argument="pointwise" if name == "pointwise=" else "high" if 0 < low < math.inf else "low",
                    given=(low, high),
                )

    def sample(self, key: PRNGKeyArray) -> ScaledObjective:
        fkey, ckey, skey = jr.split(key, 3)
        objective = self.family.sample(fkey)
        factor = _log_uniform(ckey, (), jnp.result_type(float), self.low, self.high)
        if self.pointwise is None:
            return ScaledObjective(objective, factor, None)
        shapes, treedef = jax.tree.flatten(eqx.filter_eval_shape(objective.init, skey))
        keys = jr.split(skey, len(shapes))
        scales = [
            _log_uniform(k, x.shape, x.dtype, *self.pointwise) for k, x in zip(keys, shapes, strict=True)
        ]
        return ScaledObjective(objective, factor, jax.tree.unflatten(treedef, scales))


def _log_uniform(key, shape, dtype, low, high):
    return jnp.exp(jr.uniform(key, shape, dtype, math.log(low), math.log(high)))
