"""Section 5.4.4: two losses for pretraining."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.random as jr
import numpy as np
import optax

import l2o_eqx as l2o

from ..optimizers import CoordinatewiseLSTM
from ..preprocessors import LogSign
from ._figure import Figure, PanelResults
from ._setup import Setup
from ._statistics import median_interval
from ._verdicts import Verdict, beside, combine, judge_smaller

_WEIGHTED, _SQUARED, _SQUARED_SMALL = "sign-weighted", "squared", "squared, ε = 1e-12"


def pretraining_loss(setup: Setup) -> Figure:
    """The sign-weighted loss of eq. 5.11 and the squared error."""
    restarts, num_samples = (3, 2_560) if setup.quick else (20, 200_000)
    settings: dict[str, dict[str, Any]] = {
        _WEIGHTED: {"loss": "sign-weighted"},
        _SQUARED: {"loss": "squared"},
        _SQUARED_SMALL: {"loss": "squared", "meta_optimizer": optax.adam(1e-3, eps=1e-12)},
    }

    def extra(seed: int) -> dict[str, Any]:
        ikey, pkey = jr.split(jr.key(seed))

        def make(key):
            return CoordinatewiseLSTM(preprocessor=LogSign(), learning_rate=0.01, key=key)

        optimizers = eqx.filter_vmap(make)(jr.split(ikey, restarts))
        found = {}
        for name, some in settings.items():
            report = l2o.pretrain(
                optimizers, num_samples=num_samples, restarts=restarts, key=pkey, **some
            ).report
            found[name] = {
                "sign_agreement": np.asarray(report.sign_agreement, np.float64).tolist(),
                "relative_error": np.asarray(report.relative_error, np.float64).tolist(),
            }
        return found

    def judge(results: PanelResults, extra: Mapping[str, Any]) -> list[Verdict]:
        del results
        wrong = {name: 1 - np.asarray(one["sign_agreement"]) for name, one in extra.items()}
        errors = [
            median_interval(np.asarray(one["relative_error"]), what=f"relative error, {name}")
            for name, one in extra.items()
        ]
        # All begin with the same optimizers and see the same inputs.
        parts = [
            judge_smaller(
                27, wrong[_WEIGHTED], wrong[name], (f"share of wrong signs, {_WEIGHTED}", name), paired=True
            )
            for name in (_SQUARED, _SQUARED_SMALL)
        ]
        return [beside(combine(27, parts), *errors)]

    return Figure(
        "Losses for pretraining",
        "5.4.4",
        [],
        (27,),
        judge,
        "Optimizers with ρ, α = 0.01. The gradients of the squared error are so small that the ε = 1e-7 of "
        "Adam rules their steps; a smaller ε shows what the loss itself can do.",
        extra,
        15.0 if setup.quick else 160.0,
    )
