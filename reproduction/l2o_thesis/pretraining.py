"""Section 5.4.4: the sign-weighted loss of eq. 5.11 and the squared error for pretraining."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.random as jr
import numpy as np
import optax

import l2o_eqx as l2o

from .build import make_optimizer
from .experiment import Experiment

_SETTINGS: dict[str, dict[str, Any]] = {
    "sign-weighted": {"loss": "sign-weighted"},
    "squared": {"loss": "squared"},
    "squared, ε = 1e-12": {"loss": "squared", "meta_optimizer": optax.adam(1e-3, eps=1e-12)},
}


def pretraining_losses(experiment: Callable[..., Experiment], quick: bool, seed: int) -> dict[str, Any]:
    """How far optimizers are from gradient descent after pretraining with each loss.

    All begin with the same optimizers and see the same inputs.

    **Returns:** by loss, one number per restart: `wrong_signs`, the share of updates with another sign than
    the target's, and `relative_error`, as in `l2o_eqx.PretrainReport`.
    """
    restarts, num_samples = (3, 2_560) if quick else (20, 200_000)
    network = experiment("network")
    ikey, pkey = jr.split(jr.key(seed))
    optimizers = eqx.filter_vmap(make_optimizer(network.spec, network.family))(jr.split(ikey, restarts))
    found = {}
    for name, settings in _SETTINGS.items():
        report = l2o.pretrain(
            optimizers, num_samples=num_samples, restarts=restarts, key=pkey, **settings
        ).report
        found[name] = {
            "wrong_signs": (1 - np.asarray(report.sign_agreement, np.float64)).tolist(),
            "relative_error": np.asarray(report.relative_error, np.float64).tolist(),
        }
    return found
