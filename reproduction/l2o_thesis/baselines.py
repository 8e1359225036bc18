"""Sections 5 and 6: tuned SGD, momentum, RMSprop and Adam on what learned optimizers are trained on."""

import functools
from collections.abc import Callable
from typing import Any

import jax.random as jr
import numpy as np
import optax

import l2o_eqx as l2o

from .experiment import Experiment, key_of_tests

# As the thesis has them: their learning rates are tuned, and nothing else.
_BASELINES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "SGD": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "RMSprop": optax.rmsprop,
    "Adam": optax.adam,
}
_LEARNING_RATES = tuple(float(f"{10**e:.3g}") for e in np.linspace(-5, 1, 25))


def baselines(experiment: Callable[..., Experiment], quick: bool, seed: int) -> dict[str, Any]:
    """The losses of tuned baselines on the quadratic and on MNIST.

    **Returns:** for each of the two, by name of the baseline: `learning_rate`; `at_edge`, whether that is the
    least or the largest tried; `final` and `last`, as in `Results`, but `None` if infinite; `best` has the
    least of these. And the same in words.
    """
    del quick
    found: dict[str, Any] = {}
    # On minibatches the mean of the last steps is told.
    for objective, kind, draws, told in (
        ("quadratic", "quadratic", 16, "final"),
        ("MNIST", "network", 4, "last"),
    ):
        some = run_baselines(experiment(kind), seed=seed, num_tuning_objectives=draws)
        words = {}
        for name, one in some.items():
            edge = ", at the edge" if one["at_edge"] else ""
            words[f"{name} on {objective} (α={one['learning_rate']:g}{edge})"] = one[told]
        best = {
            number: min((one[number] for one in some.values() if one[number] is not None), default=None)
            for number in ("final", "last")
        }
        found |= {objective: {**some, "best": best}, f"{objective} in words": words}
    return found


def run_baselines(
    experiment: Experiment, *, seed: int, num_tuning_objectives: int
) -> dict[str, dict[str, Any]]:
    """Tunes baselines, and runs them on the test of an experiment.

    **Arguments:**

    - `experiment`: gives the objectives and the number of steps.
    - `seed`: that of the experiment's restarts; the test has the same draws.
    - `num_tuning_objectives`: draws for the tuning, which are others.
    """
    spec = experiment.spec
    tuned = l2o.compare(
        _BASELINES,
        experiment.test_family,
        num_steps=spec["test_steps"],
        num_objectives=1,
        num_tuning_objectives=num_tuning_objectives,
        learning_rates=_LEARNING_RATES,
        tuning="full",
        key=jr.fold_in(key_of_tests(seed), 1),
    )
    found = {}
    for name, rate in tuned.learning_rates.items():
        test = l2o.evaluate(
            _BASELINES[name](rate),
            experiment.test_family,
            num_steps=spec["test_steps"],
            num_objectives=spec["num_test_objectives"],
            key=key_of_tests(seed),
        )
        losses = np.median(np.asarray(test.losses), axis=0)
        found[name] = {
            "learning_rate": rate,
            "at_edge": rate in (tuned.tried[0], tuned.tried[-1]),
            "final": _finite(losses[-1]),
            "last": _finite(np.mean(losses[-20:])),
        }
    return found


def _finite(loss: float) -> float | None:
    # JSON has no infinity.
    return float(loss) if np.isfinite(loss) else None
