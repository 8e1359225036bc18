from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import check
from .._types import Scalar
from ._few_shot import FewShot
from ._mnist import MakeMLP

Points = tuple[Float[Array, "points 1"], Float[Array, "points 1"]]
Query = tuple[Float[Array, "queries 1"], Float[Array, "queries 1"]]


class SineTask(eqx.Module):
    """Draws points of a·sin(x − φ), with one a and φ for each task; the arguments are those of `Sinusoid`.

    Sizes of the two sets change neither a and φ nor each other's points.
    """

    num_support: int = eqx.field(static=True)
    num_query: int = eqx.field(static=True)
    amplitude: tuple[float, float] = eqx.field(static=True)
    phase: tuple[float, float] = eqx.field(static=True)
    interval: tuple[float, float] = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> tuple[Points, Query]:
        ckey, skey, qkey = jr.split(key, 3)
        # Together, since what draws takes long to compile.
        least, most = jnp.asarray([self.amplitude, self.phase]).T
        amplitude, phase = jr.uniform(ckey, (2,), minval=least, maxval=most)

        def draw(key, count):
            x = jr.uniform(key, (count, 1), minval=self.interval[0], maxval=self.interval[1])
            return x, amplitude * jnp.sin(x - phase)

        return draw(skey, self.num_support), draw(qkey, self.num_query)

    def variations(self) -> Mapping[str, "SineTask"]:
        counts = {"shots / 2": self.num_support // 2, "shots × 2": 2 * self.num_support}
        return {
            name: SineTask(count, self.num_query, self.amplitude, self.phase, self.interval)
            for name, count in counts.items()
            if count
        }


def squared_error(model: eqx.Module, batch: Points) -> Scalar:
    """The mean squared error of a model of one point.

    **Arguments:**

    - `model`: maps `(1,)` to `(1,)`.
    - `batch`: inputs and targets, of shape `(points, 1)`.
    """
    inputs, targets = batch
    return jnp.mean((jax.vmap(model)(inputs) - targets) ** 2)  # pyright: ignore[reportArgumentType]


def Sinusoid(
    num_support: int = 10,
    num_query: int | None = None,
    hidden_sizes: tuple[int, ...] = (40, 40),
    *,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, 3.141592653589793),
    interval: tuple[float, float] = (-5.0, 5.0),
) -> FewShot:
    """Sine curves from a few points, MAML's regression: a ReLU network learns a curve in a few steps.

    A task is y = a·sin(x − φ) with a and φ drawn uniformly. Its loss is the mean squared error on
    `num_support` points of it, its outer loss that on others.

    **Arguments:**

    - `num_support`: K, the points that a network sees.
    - `num_query`: the points that it is judged by; by default as many.
    - `hidden_sizes`: widths of the hidden layers, with ReLU; Glorot-uniform weights.
    - `amplitude`, `phase`, `interval`: from where to where a, φ and x are drawn.

    **Returns:** a `FewShot` family.

    **Raises:** `ValueError` for sizes below 1 and intervals that end before they begin.

    Reference: Finn et al. 2017 (arXiv:1703.03400), sec. 5.1.
    """
    num_query = num_support if num_query is None else num_query
    ranges = {"amplitude": amplitude, "phase": phase, "interval": interval}
    check(
        "`Sinusoid(...)` needs at least one point and unit of each, and intervals from the smaller to the "
        f"larger number. Got num_support={num_support}, num_query={num_query}, hidden_sizes={hidden_sizes}, "
        f"amplitude={amplitude}, phase={phase}, interval={interval}.",
        num_support=(num_support, num_support >= 1),
        num_query=(num_query, num_query >= 1),
        hidden_sizes=(hidden_sizes, min(hidden_sizes, default=1) >= 1),
        **{name: (given, given[0] <= given[1]) for name, given in ranges.items()},
    )
    task = SineTask(num_support, num_query, amplitude, phase, interval)
    return FewShot(MakeMLP((1, *hidden_sizes, 1), "relu"), squared_error, task)
