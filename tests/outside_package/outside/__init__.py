"""One of each kind of plug-in, and a command, from public names alone."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import typer
from jaxtyping import Array, Float, PRNGKeyArray
from l2o_cli.plugin import Output, UsageError

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
    """Gradient descent on preprocessed gradients, with a rate that is trained.

    **Arguments:**

    - `start`: the rate at first.
    - `preprocessor`: of one feature; the gradient itself by default.
    - `key`: perturbs the rate.
    """

    log_rate: Float[Array, ""]
    preprocessor: AbstractPreprocessor | None

    def __init__(
        self, start: float = 0.1, preprocessor: AbstractPreprocessor | None = None, *, key: PRNGKeyArray
    ):
        self.log_rate = jnp.log(start) + 0.01 * jr.normal(key)
        self.preprocessor = preprocessor

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
    - `max_delta`: the largest move of an entry.
    """

    inner: AbstractOptimizer
    max_delta: float = eqx.field(static=True, default=0.1)

    def init(self, params):
        return self.inner.init(params)

    def update(self, grads, state, params=None, **more):
        updates, state = self.inner.update(grads, state, params, **more)
        return jax.tree.map(lambda u: jnp.clip(u, -self.max_delta, self.max_delta), updates), state


class Halves(AbstractUpdateStrategy):
    """Two windows per super epoch.

    **Arguments:**

    - `include_final_loss`: as in `EveryWindow`.
    """

    include_final_loss: bool = eqx.field(static=True, default=False)

    def num_updates(self, num_steps):
        return self._windows(num_steps).num_updates(num_steps)

    def super_epoch(self, optimizer, *arguments, num_steps, **settings):
        windows = self._windows(num_steps)
        return windows.super_epoch(optimizer, *arguments, num_steps=num_steps, **settings)

    def _windows(self, num_steps):
        return EveryWindow(num_steps // 2, include_final_loss=self.include_final_loss)


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
