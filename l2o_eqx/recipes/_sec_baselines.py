"""Sections 5 and 6: learned optimizers beside hand-made ones that were tuned for the same objectives."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.random as jr
import numpy as np
import optax

import l2o_eqx as l2o

from ._experiment import Experiment, Results, key_of_tests
from ._figure import Figure, Panel, PanelResults
from ._setup import Setup
from ._statistics import Estimate
from ._verdicts import Verdict, beside, combine, judge_share, judge_shares_differ, judge_some

_LEARNED = "learned"
# As the thesis has them: their learning rates are tuned, and nothing else.
_BASELINES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "SGD": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "RMSprop": optax.rmsprop,
    "Adam": optax.adam,
}
_LEARNING_RATES = tuple(float(f"{10**e:.3g}") for e in np.linspace(-5, 1, 25))
# Figure 11 has the same experiments.
_PANELS = {"quadratic": "baselines a", "MNIST": "baselines b"}


def baselines(setup: Setup) -> Figure:
    """Tuned SGD, momentum, RMSprop and Adam on what learned optimizers are trained on."""
    experiments = {"quadratic": setup.quadratic(), "MNIST": setup.network()}
    restarts = {"quadratic": setup.restarts("quadratic"), "MNIST": setup.restarts("network")}
    tuning = {"quadratic": 16, "MNIST": 4}

    def extra(seed: int) -> dict[str, Any]:
        return {
            name: run_baselines(experiment, seed=seed, num_tuning_objectives=tuning[name])
            for name, experiment in experiments.items()
        }

    def judge(results: PanelResults, extra: Mapping[str, Any]) -> list[Verdict]:
        beats, context = {}, []
        network = results[_PANELS["MNIST"]][_LEARNED].last()
        ahead = network < min(_loss(one, "last") for one in extra["MNIST"].values())
        ahead_of_all = "of restarts that beat the best tuned baseline on MNIST"
        for name, panel in _PANELS.items():
            # On minibatches the mean of the last steps.
            number = "last" if name == "MNIST" else "final"
            learned = results[panel][_LEARNED]
            losses = learned.last() if name == "MNIST" else learned.final
            beats[name] = losses < _loss(extra[name]["Adam"], number)
            if losses.size:
                context.append(Estimate(float(losses.min()), np.nan, np.nan, f"best learned on {name}"))
            context += _in_words(extra[name], number, name)
        claimed = "of restarts that beat tuned Adam on the quadratic"
        names = ("those that beat it on MNIST", "on the quadratic")
        parts = [
            judge_share(36, beats["quadratic"], claimed, at_least=0.5),
            judge_shares_differ(36, beats["MNIST"], beats["quadratic"], names, direction="less"),
            judge_some(36, ahead, f"{ahead_of_all}, in the best case"),
            judge_share(36, ahead, f"{ahead_of_all}, typically not", at_most=0.5),
        ]
        return [beside(combine(36, parts), *context)]

    return Figure(
        "Tuned standard optimizers",
        "5, 6",
        [
            Panel(_PANELS[name], name, {_LEARNED: experiment}, restarts[name])
            for name, experiment in experiments.items()
        ],
        (36,),
        judge,
        "The learned optimizers are those of figure 11. Learning rates, 25 from 1e-5 to 10, are tuned on "
        "other draws for the lowest loss after as many steps; all are tested on the same draws. On MNIST "
        "the mean of the last 20 steps counts. Working very well is to beat tuned Adam on the quadratic in "
        "half of the restarts; beaten in the best case only means that one restart on MNIST beats the best "
        "of the four, and not more than half do.",
        extra,
        30.0 if setup.quick else 90.0,
    )


def run_baselines(
    experiment: Experiment, *, seed: int, num_tuning_objectives: int
) -> dict[str, dict[str, Any]]:
    """Tunes SGD, momentum, RMSprop and Adam, and runs them on the test of an experiment.

    **Arguments:**

    - `experiment`: gives the objectives and the number of steps.
    - `seed`: that of the experiment's restarts; the test has the same draws.
    - `num_tuning_objectives`: draws for the tuning, which are others.

    **Returns:** by name: `learning_rate`; `at_edge`, whether that is the least or the largest tried;
    `final` and `last`, as in `Results`, but `None` if infinite.
    """
    family = experiment.test_family or experiment.family
    tuned = l2o.compare(
        _BASELINES,
        family,
        num_steps=experiment.test_steps,
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
            family,
            num_steps=experiment.test_steps,
            num_objectives=experiment.num_test_objectives,
            key=key_of_tests(seed),
        )
        results = Results(np.median(np.asarray(test.losses), axis=0, keepdims=True), {}, {}, 0.0)
        found[name] = {
            "learning_rate": rate,
            "at_edge": rate in (tuned.tried[0], tuned.tried[-1]),
            "final": _finite(results.final[0]),
            "last": _finite(results.last()[0]),
        }
    return found


def _in_words(found: Mapping[str, Any], number: str, objective: str) -> list[Estimate]:
    words = []
    for name, one in found.items():
        edge = ", at the edge" if one["at_edge"] else ""
        what = f"{name} on {objective} (α={one['learning_rate']:g}{edge})"
        words.append(Estimate(_loss(one, number), np.nan, np.nan, what))
    return words


def _finite(loss: float) -> float | None:
    # JSON has no infinity.
    return float(loss) if np.isfinite(loss) else None


def _loss(found: Mapping[str, Any], number: str) -> float:
    return np.inf if found[number] is None else found[number]
