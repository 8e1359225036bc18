"""What is measured: objectives, optimizers and how many of each."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx.objectives import MNIST, AbstractObjective, AbstractObjectiveFamily, Quadratic
from l2o_eqx.optimizers import CoordinatewiseLSTM
from l2o_eqx.preprocessors import SignedLog
from l2o_eqx.strategies import AbstractUpdateStrategy, EveryStep, EveryWindow, OncePerSuperEpoch

WINDOW = 16
HIDDEN_SIZES = (20, 20)


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to train on.

    **Fields:**

    - `name`, `title`: on the command line and in the list.
    - `family`: makes the objectives; called when the case is run.
    - `num_objectives`, `restarts`, `strategy`: of `meta_train`.
    - `num_windows`: in one measurement.
    - `is_network`: whether the optimizer has the settings for networks or for quadratics.
    - `scales`: whether it is a point of the picture of cost over coordinates.
    """

    name: str
    title: str
    family: Callable[[], AbstractObjectiveFamily]
    num_objectives: int = 1
    restarts: int | None = None
    strategy: AbstractUpdateStrategy = dataclasses.field(default_factory=lambda: EveryWindow(WINDOW))
    num_windows: int = 4
    is_network: bool = False
    scales: bool = False

    @property
    def num_steps(self) -> int:
        return WINDOW * self.num_windows

    @property
    def steps(self) -> int:
        """Inner steps in one measurement, of all objectives and restarts together."""
        return self.num_steps * self.num_objectives * (self.restarts or 1)

    def optimizer(self, key: PRNGKeyArray) -> CoordinatewiseLSTM:
        """One optimizer, or a batch of restarts."""

        def make(key: PRNGKeyArray) -> CoordinatewiseLSTM:
            if self.is_network:
                return CoordinatewiseLSTM(HIDDEN_SIZES, SignedLog(), 0.01, key=key)
            return CoordinatewiseLSTM(HIDDEN_SIZES, learning_rate=0.001, key=key)

        return make(key) if self.restarts is None else eqx.filter_vmap(make)(jr.split(key, self.restarts))

    def flops_per_step(self) -> float:
        """Floating-point operations of the LSTM's products, forward once and backward twice.

        What a program computes a second time counts once.
        """
        num_inputs, per_coordinate = 1, 0
        for size in HIDDEN_SIZES:
            per_coordinate += 2 * 4 * size * (num_inputs + size)
            num_inputs = size
        return 3.0 * per_coordinate * l2o.count_coordinates(self.family())


class Bowl(AbstractObjective):
    """f(θ) = ½ Σ a_i θ_i²: as many coordinates as one likes, at almost no cost of its own."""

    curvatures: Float[Array, " coordinates"]

    def init(self, key: PRNGKeyArray) -> Float[Array, " coordinates"]:
        return jr.normal(key, self.curvatures.shape)

    def loss(self, params: Float[Array, " coordinates"], step: object, key: PRNGKeyArray) -> Float[Array, ""]:
        del step, key
        return 0.5 * jnp.sum(self.curvatures * params**2) / self.curvatures.size


class Bowls(AbstractObjectiveFamily):
    """Bowls of `dim` coordinates with curvatures between 0 and 1."""

    dim: int = eqx.field(static=True)

    def sample(self, key: PRNGKeyArray) -> Bowl:
        return Bowl(jr.uniform(key, (self.dim,)))


def _mnist(hidden_sizes: tuple[int, ...], conv_channels: tuple[int, ...] = ()) -> AbstractObjectiveFamily:
    return MNIST(hidden_sizes, data="embedded", conv_channels=conv_channels)


def _synthetic(power: int) -> Case:
    windows = 4 if power < 6 else 1
    dim = 10**power
    return Case(
        f"synthetic-1e{power}",
        f"synthetic, 10^{power} coordinates",
        lambda: Bowls(dim),
        num_windows=windows,
        is_network=True,
        scales=True,
    )


_STRATEGIES = {
    "every-window": EveryWindow(WINDOW),
    "once-per-super-epoch": OncePerSuperEpoch(),
    "every-step": EveryStep(WINDOW),
}

CASES = {
    case.name: case
    for case in [
        *(
            Case(f"quadratic-{n}", f"quadratic, {n} objective{'s' * (n > 1)}", Quadratic, n, num_windows=w)
            for n, w in ((1, 40), (64, 20), (1024, 4))
        ),
        Case("restarts-100", "quadratic, 100 restarts", Quadratic, restarts=100, num_windows=20),
        Case("mlp-1", "MNIST 784-32-10, 1 objective", lambda: _mnist((32,)), is_network=True),
        Case(
            "mlp-8", "MNIST 784-32-10, 8 objectives", lambda: _mnist((32,)), 8, num_windows=1, is_network=True
        ),
        Case("conv", "MNIST, two convolutions", lambda: _mnist((), (8, 8)), is_network=True),
        *(_synthetic(power) for power in (4, 5, 6, 7)),
        *(
            Case(f"strategy-{name}", f"quadratic, 64 objectives, {name}", Quadratic, 64, strategy=strategy)
            for name, strategy in _STRATEGIES.items()
        ),
    ]
}
