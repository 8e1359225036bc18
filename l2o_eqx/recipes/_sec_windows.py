"""Sections 5.5.1 and 5.5.2: what the length T of a window costs, in memory and in time."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

import l2o_eqx as l2o

from ..estimators import Backprop, Replay
from ..objectives import AbstractObjectiveFamily
from ..optimizers import CoordinatewiseLSTM
from ..preprocessors import LogSign
from ._experiment import Experiment
from ._figure import Figure, PanelResults
from ._setup import Setup
from ._statistics import Estimate
from ._verdicts import Verdict, beside, judge_median

_GIB = 2**30
# More than most accelerators have.
_TOO_MUCH = 16 * _GIB
_ORDERS = ("first", "second")
# One epoch, and the ten of the thesis's longest super epoch.
_SUPER_EPOCHS = (375, 3750)


def windows(setup: Setup) -> Figure:
    """Memory and time against the length of the window."""
    family = setup.network().family
    lengths = (16, 64) if setup.quick else (8, 16, 32, 64)
    experiments = {t: setup.quadratic(strategy=setup.every_window(t)) for t in lengths}

    def extra(seed: int) -> dict[str, Any]:
        return {
            "bytes": window_memory(family, (16, 64) if setup.quick else (16, 64, 256), key=jr.key(seed)),
            "seconds_per_step": window_times(experiments, runs=5 if setup.quick else 25, key=jr.key(seed)),
        }

    def judge(results: PanelResults, extra: Mapping[str, Any]) -> list[Verdict]:
        del results
        seconds = {int(t): np.asarray(runs) for t, runs in extra["seconds_per_step"].items()}
        # Runs that were made one after the other.
        ratio = seconds[64] / seconds[16]
        times = judge_median(32, ratio, "time per inner step, T=64 / T=16", at_least=2.0)
        medians = [
            Estimate(1e6 * float(np.median(runs)), np.nan, np.nan, f"median of µs per inner step at T={t}")
            for t, runs in seconds.items()
        ]
        return [_judge_memory(extra["bytes"]), beside(times, *medians)]

    return Figure(
        "What a window costs",
        "5.5.1, 5.5.2",
        [],
        (29, 32),
        judge,
        "Memory is what XLA sets aside for the temporaries of one `meta_gradient` on MNIST; beyond the "
        "longest window measured it is taken to go on linearly. Order `second` keeps all that automatic "
        "differentiation needs; order `first` the gradients, and the rest for one block of coordinates "
        "(256 on a CPU). Times are those of meta-training on the quadratic, a super epoch of 320 steps per "
        "run.",
        extra,
        30.0 if setup.quick else 55.0,
    )


def window_memory(
    family: AbstractObjectiveFamily, lengths: Sequence[int], *, key: PRNGKeyArray
) -> dict[str, dict[str, int]]:
    """Bytes of temporaries of one `meta_gradient`, compiled but not run.

    **Arguments:**

    - `family`: what the thesis's LSTM is trained on.
    - `lengths`: of the window.
    - `key`: draws an objective and an optimizer.

    **Returns:** by order of the meta-gradient, then by length.
    """
    okey, ikey, lkey, mkey = jr.split(key, 4)
    objective = family.sample(okey)
    params = objective.init(ikey)
    optimizer = CoordinatewiseLSTM(preprocessor=LogSign(), learning_rate=0.01, key=mkey)
    arrays, static = eqx.partition((optimizer, objective, params, optimizer.init(params)), eqx.is_array)

    def temporaries(order: str, length: int) -> int:
        def gradient(arrays, key):
            parts = eqx.combine(arrays, static)
            result = l2o.meta_gradient(
                *parts,
                window=length,
                weighting=l2o.weightings.Constant(),
                key=key,
                estimator=Replay() if order == "first" else Backprop(()),
            )
            return eqx.filter(result, eqx.is_array)

        analysis = jax.jit(gradient).lower(arrays, lkey).compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    return {order: {str(t): temporaries(order, t) for t in lengths} for order in _ORDERS}


def window_times(
    experiments: Mapping[int, Experiment], *, runs: int, key: PRNGKeyArray
) -> dict[str, list[float]]:
    """Seconds per inner step of meta-training, for one super epoch after the other.

    **Arguments:**

    - `experiments`: by the length of the window.
    - `runs`: of each, in turn, so that what else the machine does meets all of them.
    - `key`: draws the optimizer and the objectives.
    """
    meta_optimizer = l2o.default_meta_optimizer()

    def super_epoch(experiment: Experiment) -> float:
        state = l2o.init_meta_state(experiment.make_optimizer(key), meta_optimizer)
        begin = time.perf_counter()
        result = l2o.meta_step(
            state,
            experiment.family,
            experiment.strategy,
            weighting=experiment.weighting,
            meta_optimizer=meta_optimizer,
            num_steps=experiment.num_steps,
            num_objectives=experiment.num_objectives,
            restarts=None,
            key=key,
        )
        jax.block_until_ready(eqx.filter(result, eqx.is_array))
        return (time.perf_counter() - begin) / experiment.num_steps

    for experiment in experiments.values():
        super_epoch(experiment)  # compiles
    rows = [{str(t): super_epoch(e) for t, e in experiments.items()} for _ in range(runs)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _judge_memory(found: Mapping[str, Mapping[str, int]]) -> Verdict:
    estimates = []
    needed = {}
    for order in _ORDERS:
        sizes = sorted((int(t), size) for t, size in found[order].items())
        (before, less), (longest, more) = sizes[-2:]
        slope = (more - less) / (longest - before)
        needed[order] = {t: more + slope * (t - longest) for t in _SUPER_EPOCHS}
        for t, size in (*sizes, *needed[order].items()):
            extrapolated = ", extrapolated" if t > longest else ""
            what = f"GiB for T={t}, order {order}{extrapolated}"
            estimates.append(Estimate(size / _GIB, np.nan, np.nan, what))
    holds = needed["first"][_SUPER_EPOCHS[-1]] > _TOO_MUCH
    words = "; ".join(estimate.in_words() for estimate in estimates)
    statement = f"{words}; too much is more than {_TOO_MUCH // _GIB} GiB for the order trained with, first"
    return Verdict(29, "holds" if holds else "does not hold", statement, tuple(estimates))
