import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import ArgumentError
from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily


class ScaledObjective(AbstractObjective):
    """c·f(s∘θ), which begins at θ_1/s where f begins at θ_1. Drawn by `Scaled`.

    `scales` are the s, one per coordinate, or `None` for 1.
    """

    objective: AbstractObjective
    factor: Float[Array, ""]
    scales: Params | None

    def init(self, key: PRNGKeyArray) -> Params:
        params = self.objective.init(key)
        if self.scales is None:
            return params
        return jax.tree.map(lambda s, p: p / s.astype(p.dtype), self.scales, params)

    def loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        loss = self.objective.loss(self.unscaled(params), step, key)
        return self.factor.astype(loss.dtype) * loss

    def outer_loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        loss = self.objective.outer_loss(self.unscaled(params), step, key)
        return self.factor.astype(loss.dtype) * loss

    def has_outer_loss(self) -> bool:
        return self.objective.has_outer_loss()

    def init_state(self, key: PRNGKeyArray) -> State:
        return self.objective.init_state(key)

    def with_state(self, state: State) -> "ScaledObjective":
        return ScaledObjective(self.objective.with_state(state), self.factor, self.scales)

    def loss_and_state(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> tuple[Scalar, State]:
        loss, state = self.objective.loss_and_state(self.unscaled(params), step, key)
        return self.factor.astype(loss.dtype) * loss, state

    def unscaled(self, params: Params) -> Params:
        """s∘θ: the params of `objective` that these stand for."""
        if self.scales is None:
            return params
        return jax.tree.map(lambda s, p: s.astype(p.dtype) * p, self.scales, params)


def _floats(factors: tuple[float, float] | None) -> tuple[float, float] | None:
    # Scalars of NumPy would count as arrays.
    return None if factors is None else (float(factors[0]), float(factors[1]))


class Scaled(AbstractObjectiveFamily):
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

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        return {
            name: Scaled(family, self.low, self.high, self.pointwise)
            for name, family in self.family.variations().items()
        }


def _log_uniform(key, shape, dtype, low, high):
    return jnp.exp(jr.uniform(key, shape, dtype, math.log(low), math.log(high)))
