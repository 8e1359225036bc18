"""Numbers of a figure that are no experiment's: measured once for a version and a device, and kept."""

import json
import re
import time
from pathlib import Path
from typing import Any

from ._artifacts import describe_environment
from ._figure import Figure
from ._files import write_json
from ._runner import Plan
from ._setup import Setup


def measurements(
    plan: Plan, setup: Setup, name: str, figure: Figure, *, measure: bool
) -> dict[str, Any] | None:
    """What a figure's `extra` gives, from the disk if it was measured by this version on such a device.

    **Arguments:**

    - `plan`: says where it is kept, and the seed.
    - `setup`: that the figure was made of.
    - `name`, `figure`: whose measurement.
    - `measure`: whether to measure what is not kept.

    **Returns:** `numbers`, the `seconds` they took and the `environment` they are from; `None` if the figure
    has no `extra`, or if it is not kept and not to be measured.
    """
    if figure.extra is None:
        return None
    environment = describe_environment()
    kept = _path(plan, setup, name, environment)
    if not kept.exists():
        if not measure:
            return None
        begin = time.perf_counter()
        numbers = figure.extra(plan.seed)
        seconds = time.perf_counter() - begin
        write_json(kept, {"numbers": numbers, "seconds": seconds, "environment": environment})
    return json.loads(kept.read_text(encoding="utf-8"))


def _path(plan: Plan, setup: Setup, name: str, environment: dict[str, Any]) -> Path:
    made_by = (f"v{environment['versions']['l2o-eqx']}", environment["device"])
    words = ["extra", name, setup.scale, setup.source, setup.digits.sha256[:8], *map(_slug, made_by)]
    return plan.folder / "-".join([*words, f"seed{plan.seed}.json"])


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text)
