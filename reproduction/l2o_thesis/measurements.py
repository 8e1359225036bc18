"""Numbers of figures that are no experiment's: measured once for a version and a device, and kept.

A measurement is a function of an experiment by kind and changes, of whether to be quick, and of a seed; it
gives numbers as JSON has them, lists of one number per repetition or single ones.
"""

import functools
import json
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.random as jr
import numpy as np
import optax

import l2o_eqx as l2o

from .build import make_optimizer
from .costs import windows
from .experiment import Experiment, key_of_tests
from .figures import Figure, experiment_settings
from .gradients import gradients
from .kept import write_json

if TYPE_CHECKING:
    from .reproduce import Request


# As the thesis has them: their learning rates are tuned, and nothing else.
_BASELINES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "SGD": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "RMSprop": optax.rmsprop,
    "Adam": optax.adam,
}
_LEARNING_RATES = tuple(float(f"{10**e:.3g}") for e in np.linspace(-5, 1, 25))

_PRETRAINING: dict[str, dict[str, Any]] = {
    "sign-weighted": {"loss": "sign-weighted"},
    "squared": {"loss": "squared"},
    "squared, ε = 1e-12": {"loss": "squared", "meta_optimizer": optax.adam(1e-3, eps=1e-12)},
}


def pretraining_losses(experiment: Callable[..., Experiment], quick: bool, seed: int) -> dict[str, Any]:
    """Section 5.4.4: how far optimizers are from gradient descent after pretraining with each loss.

    All begin with the same optimizers and see the same inputs.

    **Returns:** by loss, one number per restart: `wrong_signs`, the share of updates with another sign than
    the target's, and `relative_error`, as in `l2o_eqx.PretrainReport`.
    """
    restarts, num_samples = (3, 2_560) if quick else (20, 200_000)
    network, (ikey, pkey) = experiment("network"), jr.split(jr.key(seed))
    optimizers = eqx.filter_vmap(make_optimizer(network.spec, network.family))(jr.split(ikey, restarts))
    common = {"num_samples": num_samples, "restarts": restarts, "key": pkey}
    found = {}
    for name, settings in _PRETRAINING.items():
        report = l2o.pretrain(optimizers, **common, **settings).report
        found[name] = {
            "wrong_signs": (1 - np.asarray(report.sign_agreement, np.float64)).tolist(),
            "relative_error": np.asarray(report.relative_error, np.float64).tolist(),
        }
    return found


def baselines(experiment: Callable[..., Experiment], quick: bool, seed: int) -> dict[str, Any]:
    """Sections 5 and 6: losses of tuned baselines on the quadratic and on MNIST.

    **Returns:** for each of the two, by name of the baseline: `learning_rate`; `at_edge`, whether that is the
    least or the largest tried; `final` and `last`, as in `Results`, but `None` if infinite; `best` has the
    least of these. And the same in words, where on minibatches `last` is told.
    """
    del quick
    found: dict[str, Any] = {}
    kinds = (("quadratic", "quadratic", 16, "final"), ("MNIST", "network", 4, "last"))
    for objective, kind, draws, told in kinds:
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


def run_baselines(experiment: Experiment, *, seed: int, num_tuning_objectives: int) -> dict[str, Any]:
    """Tunes baselines on other draws, and runs them on the test of an experiment's restarts of that seed."""
    steps = experiment.spec["test_steps"]
    tuned = l2o.compare(
        _BASELINES,
        experiment.test_family,
        num_steps=steps,
        num_objectives=1,
        num_tuning_objectives=num_tuning_objectives,
        learning_rates=_LEARNING_RATES,
        tuning="full",
        key=jr.fold_in(key_of_tests(seed), 1),
    )
    found = {}
    for name, rate in tuned.learning_rates.items():
        num, key = experiment.spec["num_test_objectives"], key_of_tests(seed)
        optimizer, family = _BASELINES[name](rate), experiment.test_family
        test = l2o.evaluate(optimizer, family, num_steps=steps, num_objectives=num, key=key)
        losses = np.median(np.asarray(test.losses), axis=0)
        # JSON has no infinity.
        final, last = (float(x) if np.isfinite(x) else None for x in (losses[-1], np.mean(losses[-20:])))
        edge = rate in (tuned.tried[0], tuned.tried[-1])
        found[name] = {"learning_rate": rate, "at_edge": edge, "final": final, "last": last}
    return found


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "gradients": gradients,
    "pretraining_losses": pretraining_losses,
    "windows": windows,
    "baselines": baselines,
}
"""By the name that a figure gives."""


def measurement(request: "Request", figure: Figure, *, measure: bool) -> dict[str, Any] | None:
    """What a figure's measurement gives, from the disk if it was made by this version on such a device.

    **Returns:** `numbers`, the `seconds` they took and the `environment` they are from; `None` if the figure
    has no measurement, or if it is not kept and not to be measured.
    """
    if figure.measurement is None:
        return None
    environment = describe_environment()
    made_by = (f"v{environment['versions']['l2o-eqx']}", environment["device"])
    words = [figure.name, request.scale, request.source, request.digits.sha256[:8], *made_by]
    name = "-".join(re.sub(r"[^\w.]+", "_", word) for word in (*words, f"seed{request.seed}"))
    kept = Path(request.folder) / "measured" / f"{name}.json"
    if not kept.exists():
        if not measure:
            return None

        def experiment(kind: str, **changes: Any) -> Experiment:
            spec = experiment_settings(kind, request.scale, request.source, changes)
            return Experiment(spec, request.digits)

        begin = time.perf_counter()
        numbers = MEASUREMENTS[figure.measurement](experiment, request.scale == "quick", request.seed)
        seconds = time.perf_counter() - begin
        write_json(kept, {"numbers": numbers, "seconds": seconds, "environment": environment})
    return json.loads(kept.read_text(encoding="utf-8"))


def describe_environment() -> dict[str, Any]:
    """The versions and the machine that numbers and times may depend on."""
    found = l2o.environment(("scipy",))
    return {
        "versions": {"python": found["python"], **found["versions"]},
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": found["cores"],
        "device": found["device_kind"],
    }
