"""Where a training's first NaN arises: the super epoch once more, with every operation checked."""

import os
import sysconfig
import traceback
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jax.experimental import checkify

from ._devices import Placement, Restarts
from ._meta_step import MetaState, compiled_step
from .estimators import _window
from .objectives import AbstractObjectiveFamily

# Where NaN is what a meta-gradient is made if no objective is finite any more.
_MARKING = os.path.abspath(_window.__file__)
_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_INSTALLED = tuple({sysconfig.get_paths()[name] + os.sep for name in ("purelib", "platlib", "stdlib")})


class NanPlace(eqx.Module):
    """Where a number arose that is none, in the run of an objective or in its derivative.

    **Fields:**

    - `super_epoch`: counted from 1.
    - `primitive`: JAX's name of the operation, e.g. `"div"`; empty if there was none: then numbers have
        become infinite.
    - `file`, `line`, `function`, `code`: where it is called, in the innermost code that is neither JAX's, nor
        another installed package's, nor this one's, if there is any; empty without a `primitive`.
    """

    super_epoch: int
    primitive: str = ""
    file: str = ""
    line: int = 0
    function: str = ""
    code: str = ""

    def __str__(self) -> str:
        if not self.primitive:
            return (
                f"In super epoch {self.super_epoch} no operation makes a NaN of other numbers: losses "
                "or gradients have become infinite, as of steps that are too large."
            )
        return (
            f"In super epoch {self.super_epoch} the first NaN is made by `{self.primitive}` in {self.file}:"
            f"{self.line}, in `{self.function}`: `{self.code}`. It may be of the derivative of what stands "
            "there."
        )


def find_nan(
    state: MetaState, family: AbstractObjectiveFamily, runs: Restarts, settings: dict[str, Any]
) -> tuple[MetaState, NanPlace | None]:
    """A super epoch on one device, with every operation checked.

    **Arguments:**

    - `state`: before it.
    - `family`: whose objectives it draws.
    - `runs`: how many trainings there are.
    - `settings`: further ones of `compiled_step`.

    **Returns:** the state after it, and the place, `None` if nothing became NaN.
    """
    arrays, static = eqx.partition((state.alone(), family, settings), eqx.is_array)
    error, arrays_after, rest = _checked(arrays, (static, runs))
    after = eqx.combine(arrays_after, rest)
    try:
        error.throw()
    except checkify.JaxRuntimeError as found:
        number = int(state.super_epoch) + 1
        cause = found if found.__cause__ is None else found.__cause__
        return after, _place(number, str(error.get()), traceback.extract_tb(cause.__traceback__))
    return after, None


@eqx.filter_jit
def _checked(arrays, unchanged):
    static, runs = unchanged
    rest: Any = None

    def step(arrays):
        nonlocal rest
        state, family, settings = eqx.combine(arrays, static)
        run: Callable[..., Any] = getattr(compiled_step, "__wrapped__")  # noqa: B009
        next_state, *_ = run(state, family, Placement(runs), **settings)
        after, rest = eqx.partition(next_state, eqx.is_array)
        return after

    error, after = checkify.checkify(step, errors=checkify.nan_checks)(arrays)
    return error, after, rest


def _place(number: int, message: str, frames: traceback.StackSummary) -> NanPlace:
    primitive = message.partition("primitive: ")[2].partition(".")[0].strip()
    ranks = [_rank(os.path.abspath(frame.filename)) for frame in frames]
    if not ranks:
        return NanPlace(number, primitive or message)
    # Of the best rank the innermost.
    best = max(range(len(frames)), key=lambda i: (ranks[i], i))
    frame = frames[best]
    if os.path.abspath(frame.filename) == _MARKING:
        return NanPlace(number)
    return NanPlace(number, primitive, frame.filename, frame.lineno or 0, frame.name, frame.line or "")


def _rank(file: str) -> int:
    if file == os.path.abspath(__file__):
        return 0
    return 1 if file.startswith(_INSTALLED) else 2 if file.startswith(_OWN) else 3
