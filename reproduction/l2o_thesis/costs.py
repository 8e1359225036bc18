"""Sections 5.5.1 and 5.5.2: what the length T of a window costs, in memory and in time."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx.weightings import Constant

from .build import ORDERS, make_optimizer, make_strategy, make_weighting
from .experiment import Experiment

_GIB = 2**30
# One epoch, and the ten of the thesis's longest super epoch.
_SUPER_EPOCHS = (375, 3750)


def windows(experiment: Callable[..., Experiment], quick: bool, seed: int) -> dict[str, Any]:
    """Memory and time against the length of the window.

    **Returns:** `GiB`, of temporaries by order and length, such as `first_16`, beyond the longest window
    measured as if it went on linearly; `seconds_per_step` by length, such as `T=16`, for one super epoch
    after the other; and both in words.
    """
    key = jr.key(seed)
    found = window_memory(experiment("network"), (16, 64) if quick else (16, 64, 256), key=key)
    lengths = (16, 64) if quick else (8, 16, 32, 64)
    experiments = {f"T={t}": experiment("quadratic", window=t) for t in lengths}
    seconds = window_times(experiments, runs=5 if quick else 25, key=key)
    gib, words = {}, {}
    for order, sizes in found.items():
        (before, less), (longest, more) = list(sizes.items())[-2:]
        slope = (more - less) / (longest - before)
        for t, size in (*sizes.items(), *((t, more + slope * (t - longest)) for t in _SUPER_EPOCHS)):
            gib[f"{order}_{t}"] = size / _GIB
            words[f"GiB for T={t}, order {order}{', extrapolated' if t > longest else ''}"] = size / _GIB
    medians = {f"median of µs per inner step at {t}": 1e6 * float(np.median(s)) for t, s in seconds.items()}
    return {"GiB": gib, "GiB in words": words, "seconds_per_step": seconds, "µs in words": medians}


def window_memory(
    experiment: Experiment, lengths: Sequence[int], *, key: PRNGKeyArray
) -> dict[str, dict[int, int]]:
    """Bytes of temporaries of one `meta_gradient`, compiled but not run, by its order and the length."""
    okey, ikey, lkey, mkey = jr.split(key, 4)
    objective = experiment.family.sample(okey)
    params = objective.init(ikey)
    optimizer = make_optimizer(experiment.spec, experiment.family)(mkey)
    arrays, static = eqx.partition((optimizer, objective, params, optimizer.init(params)), eqx.is_array)

    def temporaries(settings: dict[str, Any], length: int) -> int:
        def gradient(arrays, key):
            parts = eqx.combine(arrays, static)
            result = l2o.meta_gradient(*parts, window=length, weighting=Constant(), key=key, **settings)
            return eqx.filter(result, eqx.is_array)

        analysis = jax.jit(gradient).lower(arrays, lkey).compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    return {order: {t: temporaries(settings, t) for t in lengths} for order, settings in ORDERS.items()}


def window_times(
    experiments: Mapping[str, Experiment], *, runs: int, key: PRNGKeyArray
) -> dict[str, list[float]]:
    """Seconds per inner step of meta-training, for one super epoch after the other.

    All lengths take turns, so that what else the machine does meets all of them.
    """
    meta_optimizer = l2o.default_meta_optimizer()

    def super_epoch(experiment: Experiment) -> float:
        optimizer = make_optimizer(experiment.spec, experiment.family)(key)
        state = l2o.init_meta_state(optimizer, meta_optimizer)
        steps = experiment.spec["num_steps"]
        settings: dict[str, Any] = {"num_steps": steps, "num_objectives": 1, "restarts": None, "key": key}
        settings |= {"weighting": make_weighting(experiment.spec), "meta_optimizer": meta_optimizer}
        begin = time.perf_counter()
        result = l2o.meta_step(state, experiment.family, make_strategy(experiment.spec), **settings)
        jax.block_until_ready(eqx.filter(result, eqx.is_array))
        return (time.perf_counter() - begin) / steps

    for experiment in experiments.values():
        super_epoch(experiment)  # compiles
    rows = [{name: super_epoch(e) for name, e in experiments.items()} for _ in range(runs)]
    return {name: [row[name] for row in rows] for name in rows[0]}
