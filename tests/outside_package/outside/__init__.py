"""One of each kind of plug-in, and a command, from public names alone."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import typer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from l2o_cli.plugin import Output, UsageError

from l2o_eqx.estimators import AbstractEstimator, Auto, WindowResult
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily
from l2o_eqx.optimizers import AbstractOptimizer
from l2o_eqx.preprocessors import AbstractPreprocessor
from l2o_eqx.strategies import AbstractUpdateStrategy, EveryWindow
from l2o_eqx.weightings import AbstractWeighting


class SignedRoot(AbstractPreprocessor):
    """Shows sgn(∇)·|∇|^p.

    **Arguments:**

    - `power`: the p.
    """

    power: float = eqx.field(static=True, default=0.5)

    @property
    def num_features(self):
        return 1

    def init(self, params):
        return None

    def __call__(self, grads, state):
        def shown(g):
            size = jnp.where(g == 0, 1.0, jnp.abs(g))
            return (jnp.sign(g) * size**self.power)[..., None]

        return jax.tree.map(shown, grads), state


class LearnedRate(AbstractOptimizer):
    """Gradient descent on preprocessed gradients, with a rate and a shift of the start that are trained.

    **Arguments:**

    - `start`: the rate at first.
    - `preprocessor`: of one feature; the gradient itself by default.
    - `key`: perturbs the rate.
    """

    log_rate: Float[Array, ""]
    shift: Float[Array, ""]
    preprocessor: AbstractPreprocessor | None

    def __init__(
        self, start: float = 0.1, preprocessor: AbstractPreprocessor | None = None, *, key: PRNGKeyArray
    ):
        self.log_rate = jnp.log(start) + 0.01 * jr.normal(key)
        self.shift = jnp.zeros(())
        self.preprocessor = preprocessor

    def initial_params(self, params):
        return jax.tree.map(lambda x: x + self.shift, params)

    def init(self, params):
        return None if self.preprocessor is None else self.preprocessor.init(params)

    def update(self, grads, state, params=None, **more):
        if self.preprocessor is not None:
            features, state = self.preprocessor(grads, state)
            grads = jax.tree.map(lambda f: f[..., 0], features)
        return jax.tree.map(lambda g: -jnp.exp(self.log_rate) * g, grads), state


class ClippedUpdates(AbstractOptimizer):
    """Clips every entry of another optimizer's updates.

    **Arguments:**

    - `inner`: whose updates are clipped.
    - `largest`: the largest move of an entry.
    """

    inner: AbstractOptimizer
    largest: float = eqx.field(static=True, default=0.1)

    def initial_params(self, params):
        return self.inner.initial_params(params)

    def init(self, params):
        return self.inner.init(params)

    def update(self, grads, state, params=None, **more):
        updates, state = self.inner.update(grads, state, params, **more)
        return jax.tree.map(lambda u: jnp.clip(u, -self.largest, self.largest), updates), state


class Differences(AbstractEstimator):
    """Central differences of a window's meta-loss by every meta-parameter.

    **Arguments:**

    - `width`: how far a meta-parameter is moved.
    """

    width: float = eqx.field(static=True, default=1e-3)

    def estimate(self, optimizer, window, weighting, state, *, key):
        params, end, record = window.run(optimizer)
        meta_loss, health = window.meta_loss(weighting, record)
        trained, rest = eqx.partition(optimizer, eqx.is_inexact_array)
        flat, unravel = ravel_pytree(trained)

        def meta_loss_at(point):
            *_, record = window.run(eqx.combine(unravel(point), rest))
            return window.meta_loss(weighting, record)[0]

        def slope(move):
            return (meta_loss_at(flat + move) - meta_loss_at(flat - move)) / (2 * self.width)

        grads = unravel(jax.vmap(slope)(self.width * jnp.eye(flat.size)))
        return WindowResult(record.losses, meta_loss, grads, params, end, health), state


class Halves(AbstractUpdateStrategy):
    """Two windows per super epoch.

    **Arguments:**

    - `estimator`, `include_final_loss`: as in `EveryWindow`.
    """

    estimator: AbstractEstimator = Auto()
    include_final_loss: bool = eqx.field(static=True, default=False)

    def num_updates(self, num_steps):
        return self._windows(num_steps).num_updates(num_steps)

    def super_epoch(self, optimizer, *arguments, num_steps, **settings):
        windows = self._windows(num_steps)
        return windows.super_epoch(optimizer, *arguments, num_steps=num_steps, **settings)

    def _windows(self, num_steps):
        return EveryWindow(num_steps // 2, self.estimator, self.include_final_loss)


class LastShare(AbstractWeighting):
    """The mean of the last losses of a window.

    **Arguments:**

    - `share`: which share of them.
    """

    share: float = eqx.field(static=True, default=0.5)

    def __call__(self, losses, start, num_steps):
        count = max(1, int(self.share * len(losses)))
        return jnp.mean(losses[-count:])


class Bowl(AbstractObjective):
    """Σ_i s_i θ_i²."""

    scales: Float[Array, " dim"]

    def init(self, key):
        return jr.normal(key, self.scales.shape)

    def loss(self, params, step, key):
        return jnp.sum(self.scales * params**2)


class Bowls(AbstractObjectiveFamily):
    """Bowls whose scales are drawn from 1 to `widest`."""

    dim: int = eqx.field(static=True)
    widest: float = eqx.field(static=True)

    def sample(self, key):
        return Bowl(jr.uniform(key, (self.dim,), minval=1.0, maxval=self.widest))


def make_bowls(size: int = 3, widest: float = 4.0) -> Bowls:
    """Random bowls.

    **Arguments:**

    - `size`: how many coordinates.
    - `widest`: the largest scale.
    """
    return Bowls(size, widest)


def hello(
    name: Annotated[str, typer.Option(help="Whom to greet.")] = "world",
) -> None:
    """Greet somebody.

    As a command of another package does.
    """
    if not name:
        raise UsageError("option '--name': must not be empty")
    output = Output(quiet=False, as_json=False)
    output.say(f"Hello, {name}.")
