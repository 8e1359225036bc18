"""Numbers of figures that are no experiment's: measured once for a version and a device, and kept."""

import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from .baselines import baselines
from .costs import windows
from .experiment import Experiment
from .figures import Figure, Spec, experiment_settings
from .files import write_json
from .gradients import gradients
from .pretraining import pretraining_losses

if TYPE_CHECKING:
    from .reproduce import Request

MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "gradients": gradients,
    "pretraining_losses": pretraining_losses,
    "windows": windows,
    "baselines": baselines,
}
"""Functions of an experiment by kind and changes, of whether to be quick, and of a seed; they give numbers as JSON
has them: lists of one number per repetition, or single ones."""

_PACKAGES = ("l2o-eqx", "jax", "jaxlib", "equinox", "optax", "numpy", "scipy")


def measurement(request: "Request", figure: Figure, *, measure: bool) -> dict[str, Any] | None:
    """What a figure's measurement gives, from the disk if it was made by this version on such a device.

    **Arguments:**

    - `request`, `figure`: whose measurement.
    - `measure`: whether to measure what is not kept.

    **Returns:** `numbers`, the `seconds` they took and the `environment` they are from; `None` if the figure
    has no measurement, or if it is not kept and not to be measured.
    """
    if figure.measurement is None:
        return None
    environment = describe_environment()
    made_by = (f"v{environment['versions']['l2o-eqx']}", environment["device"])
    words = [figure.name, request.source, request.digits.sha256[:8], *map(_slug, made_by)]
    kept = Path(request.folder) / "measured" / "-".join([*words, f"seed{request.seed}.json"])
    if not kept.exists():
        if not measure:
            return None

        def experiment(kind: str, **changes: Any) -> Experiment:
            spec: Spec = experiment_settings(kind, request.scale, request.source, changes)
            return Experiment(spec, request.digits)

        begin = time.perf_counter()
        numbers = MEASUREMENTS[figure.measurement](experiment, request.scale == "quick", request.seed)
        seconds = time.perf_counter() - begin
        write_json(kept, {"numbers": numbers, "seconds": seconds, "environment": environment})
    return json.loads(kept.read_text(encoding="utf-8"))


def describe_environment() -> dict[str, Any]:
    """The versions and the machine that numbers and times may depend on."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text)
