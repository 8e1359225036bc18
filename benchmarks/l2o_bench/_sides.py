"""The ways to do the same work that are compared."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import l2o_eqx as l2o
from l2o_eqx.strategies import EveryStep

from ._cases import WINDOW, Case

OURS = "l2o_eqx"
# Settings of the plain sides: with Equinox's cells, with steps computed again, with this package's cell.
_PLAIN: dict[str, dict[str, bool]] = {
    "scan + grad": {},
    "scan + grad, checkpoint": {"checkpoint": True},
    "scan + grad, our cell": {"our_cell": True},
}
SIDES = (OURS, *_PLAIN, "PyTorch", "Keras")

# What a plain derivative keeps of one coordinate and step, in bytes, measured on the MNIST network; and what
# it keeps if steps are computed again.
_PLAIN_BYTES = 2600
_CARRIED_BYTES = 350
_PLAIN_LIMIT = 4 * 2**30


def make_side(side: str, case: Case) -> tuple[Callable[[], Any], int | None]:
    """A function that does one measurement's worth of training, and the bytes of temporaries if known."""
    if side == OURS:
        from . import _ours

        return _ours.make(case)
    if side in _PLAIN:
        from . import _plain

        return _plain.make(case, **_PLAIN[side])
    module = importlib.import_module({"PyTorch": "._torch", "Keras": "._keras"}[side], __package__)
    return module.make(case), None


def why_not(side: str, case: Case) -> str | None:
    """Why a side cannot or should not run a case; `None` if it can."""
    if side == OURS:
        return None
    if side in ("PyTorch", "Keras"):
        package = {"PyTorch": "torch", "Keras": "tensorflow"}[side]
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install 'l2o-eqx[bench-peers]')"
        if case.name not in ("quadratic-1", "mlp-1"):
            return "only on quadratic-1 and mlp-1"
        return None
    if isinstance(case.strategy, EveryStep):
        return "no plain form"
    steps = case.num_steps if case.name == "strategy-once-per-super-epoch" else WINDOW
    per_coordinate = _PLAIN_BYTES + steps * _CARRIED_BYTES if "checkpoint" in side else steps * _PLAIN_BYTES
    needed = per_coordinate * _coordinates(case)
    if needed > _PLAIN_LIMIT:
        return f"needs about {needed / 2**30:.0f} GiB"
    return None


@functools.cache
def _per_objective(name: str) -> int:
    from ._cases import CASES

    return l2o.count_coordinates(CASES[name].family())


def _coordinates(case: Case) -> int:
    return _per_objective(case.name) * case.num_objectives * (case.restarts or 1)
