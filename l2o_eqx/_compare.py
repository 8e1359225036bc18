import csv
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ._checks import check_sizes
from ._evaluate import Trajectories, evaluate, losses_on
from ._meta_train import count_meta_parameters
from .objectives import AbstractObjectiveFamily
from .optimizers import AbstractOptimizer, FromOptax, as_optimizer

# A learning rate -> the optimizer with it, e.g. `optax.adam`; the rate may be a traced array.
Tunable = Callable[[Any], optax.GradientTransformation]

# Four values per factor of ten, 1e-5 to 10.
LEARNING_RATES: tuple[float, ...] = tuple(float(f"{10**e:.3g}") for e in np.linspace(-5, 1, 25))

BASELINES: dict[str, Tunable] = {
    "SGD": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "Nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "RMSprop": optax.rmsprop,
    "Adam": optax.adam,
}
"""The hand-made optimizers that learned ones are compared with, each to be tuned by `compare`."""


class Comparison(eqx.Module):
    """The result of `compare`.

    **Fields:**

    - `trajectories`: by name, on the same draws for all.
    - `learning_rates`: by name, the tuned ones.
    - `tuning_losses`: by name, the median final loss over the tuning draws for every learning rate tried.
    - `tried`: those learning rates.
    """

    trajectories: dict[str, Trajectories]
    learning_rates: dict[str, float]
    tuning_losses: dict[str, Float[np.ndarray, " rates"]]
    tried: tuple[float, ...]

    def summary(self) -> list[dict[str, Any]]:
        """One row per optimizer, best first, to print or to store.

        Each has `name`, `median`, `q25` and `q75` of the final losses over all objectives (and restarts),
        `diverged`, the share of them that is not finite (counted as infinite in the quartiles),
        `learning_rate`, `None` if it was not tuned, and `at_edge`, true if the best learning rate is the
        first or the last of those tried, so that a wider range might be better.
        """
        rows = []
        for name, trajectories in self.trajectories.items():
            final = _as_infinite(trajectories.final_losses)
            quartiles = _quartiles(final.ravel()).tolist()
            rate = self.learning_rates.get(name)
            rows.append(
                {
                    "name": name,
                    **dict(zip(("q25", "median", "q75"), quartiles, strict=True)),
                    "diverged": float(np.mean(np.isinf(final))),
                    "learning_rate": rate,
                    "at_edge": rate in (self.tried[0], self.tried[-1]),
                }
            )
        return sorted(rows, key=lambda row: row["median"])

    def restart_medians(self, name: str) -> Float[np.ndarray, " restarts"]:
        """The median final loss over objectives of every restart of the optimizer `name`."""
        final = _as_infinite(self.trajectories[name].final_losses)
        return _quartiles(np.atleast_2d(final).T)[1]

    def share_beating(self, name: str, baseline: str) -> float:
        """The share of restarts of `name` whose median final loss is below that of `baseline`."""
        bar = self.restart_medians(baseline)[0]
        return float(np.mean(self.restart_medians(name) < bar))

    def curves(self) -> dict[str, Float[np.ndarray, "quartile steps"]]:
        """By name, the quartiles (q25, median, q75) of the loss at every step."""
        return {
            name: _quartiles(_as_infinite(t.losses).reshape(-1, t.losses.shape[-1]))
            for name, t in self.trajectories.items()
        }

    def write_curves(self, path: str | Path) -> None:
        """Writes `curves` as CSV: `optimizer,step,q25,median,q75`."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["optimizer", "step", "q25", "median", "q75"])
            for name, quartiles in self.curves().items():
                writer.writerows([name, t, *values] for t, values in enumerate(quartiles.T.tolist()))

    def write_final_losses(self, path: str | Path) -> None:
        """Writes every final loss as CSV: `optimizer,restart,objective,final_loss`."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["optimizer", "restart", "objective", "final_loss"])
            for name, trajectories in self.trajectories.items():
                final = np.atleast_2d(np.asarray(trajectories.final_losses))
                for (restart, objective), loss in np.ndenumerate(final):
                    writer.writerow([name, restart, objective, float(loss)])


def compare(
    optimizers: Mapping[str, AbstractOptimizer | optax.GradientTransformation | Tunable],
    family: AbstractObjectiveFamily,
    *,
    num_steps: int,
    num_objectives: int = 64,
    num_tuning_objectives: int = 16,
    learning_rates: Sequence[float] = LEARNING_RATES,
    restarts: int | None = None,
    key: PRNGKeyArray,
) -> Comparison:
    """Runs optimizers on the same draws from a family, after tuning those that can be tuned.

    **Arguments:**

    - `optimizers`: by name. A function from a learning rate to an optax transformation, such as
        `optax.adam`, is tuned; learned optimizers and ready transformations run as they are.
        `{"learned": optimizer, **BASELINES}` is the usual choice.
    - `family`: what to run them on.
    - `num_steps`: inner steps on each objective.
    - `num_objectives`: draws for the comparison.
    - `num_tuning_objectives`: other draws, for the tuning; the rate with the lowest median final loss on
        them is taken.
    - `learning_rates`: those to try, in ascending order.
    - `restarts`: if given, every learned optimizer is a batch of that many.
    - `key`: picks all draws.

    **Returns:** a `Comparison`.

    **Raises:** `ValueError` for sizes below 1 or no learning rates.
    """
    check_sizes(
        "compare",
        num_steps=num_steps,
        num_objectives=num_objectives,
        num_tuning_objectives=num_tuning_objectives,
    )
    tried = tuple(map(float, learning_rates))
    if not tried:
        raise ValueError("`compare(learning_rates=...)` needs at least one learning rate to try.")
    tkey, ekey = jr.split(key)
    tuning_keys = jr.split(tkey, num_tuning_objectives)
    keys = jr.split(ekey, num_objectives)
    rates = jnp.asarray(tried, jnp.result_type(float))

    trajectories, tuned, tuning_losses = {}, {}, {}
    for name, optimizer in optimizers.items():
        if isinstance(optimizer, AbstractOptimizer | optax.GradientTransformation):
            learned = count_meta_parameters(as_optimizer(optimizer)) > 0
            trajectories[name] = evaluate(
                optimizer,
                family,
                num_steps=num_steps,
                num_objectives=num_objectives,
                restarts=restarts if learned else None,
                key=ekey,
            )
            continue
        medians, best, losses = _tune_and_run(
            optimizer, family, rates, tuning_keys, keys, num_steps=num_steps
        )
        trajectories[name] = Trajectories(losses)
        tuned[name] = tried[int(best)]
        tuning_losses[name] = np.asarray(medians)
    return Comparison(trajectories, tuned, tuning_losses, tried)


@eqx.filter_jit
def _tune_and_run(make_optimizer, family, rates, tuning_keys, keys, *, num_steps):
    def run(rate, keys) -> Float[Array, "objectives steps"]:
        optimizer = FromOptax(make_optimizer(rate))
        return losses_on(optimizer, family, keys, num_steps=num_steps)

    final = lax.map(lambda rate: run(rate, tuning_keys)[:, -1], rates)
    medians = jnp.median(jnp.where(jnp.isfinite(final), final, jnp.inf), axis=1)
    best = jnp.argmin(medians)
    return medians, best, run(rates[best], keys)


def _as_infinite(losses):
    losses = np.asarray(losses)
    return np.where(np.isfinite(losses), losses, np.inf)


def _quartiles(values):
    # Interpolating between infinite entries would give NaN, so they are very large numbers meanwhile.
    finite = np.where(np.isinf(values), 1e300, values.astype(np.float64))
    quartiles = np.quantile(finite, (0.25, 0.5, 0.75), axis=0)
    return np.where(quartiles > 1e200, np.inf, quartiles)
