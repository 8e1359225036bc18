"""What a run would take of the memory, before it is tried."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.random as jr

from ._errors import UsageError
from ._settings import label

# Of any that is optimized: params, gradient, updates, their states, and what a family keeps.
_BYTES_PER_COORDINATE = 64


def refuse_too_large(path: tuple[str, ...], what: str, make: Callable[[Any], Any], count: int) -> None:
    """Refuses arrays that this machine cannot hold, which the system would end the process for.

    **Arguments:**

    - `path`: of the setting to blame.
    - `what`: they are of, for people.
    - `make`: `key -> tree of arrays`; it is only traced.
    - `count`: how many of these trees there are at a time.

    **Raises:** `UsageError`.
    """
    try:
        leaves = jax.tree.leaves(eqx.filter_eval_shape(make, jr.key(0)))
    except (OverflowError, MemoryError):
        raise UsageError(f"{label(path)}: {what} has more entries than can be counted") from None
    shapes = [x.shape for x in leaves if isinstance(x, jax.ShapeDtypeStruct)]
    # In Python's integers, which do not overflow; at four bytes each.
    size, there = 4 * count * sum(math.prod(shape) for shape in shapes), total_memory()
    if there is not None and size > there:
        wanted, has = (f"{x / 2**30:,.1f} GiB" for x in (size, there))
        raise UsageError(f"{label(path)}: {what} would take {wanted}, and this machine has {has}")


def refuse_too_many(path: tuple[str, ...], dim: int) -> None:
    """Refuses more coordinates than there can be, for families that have something of Python for each.

    **Arguments:**

    - `path`: of the table with the setting `dim`.
    - `dim`: the number.

    **Raises:** `UsageError`.
    """
    there = total_memory()
    if there is not None and dim > there // _BYTES_PER_COORDINATE:
        most = there // _BYTES_PER_COORDINATE
        raise UsageError(f"{label((*path, 'dim'))}: got {dim}, and this machine has the memory for {most}")


def total_memory() -> int | None:
    """The bytes of memory that there are, or that the control group may use; `None` where it is not told."""
    found = []
    for name, unit in (("/proc/meminfo", 1024), ("/sys/fs/cgroup/memory.max", 1)):
        try:
            words = Path(name).read_text(encoding="utf-8").split()
        except OSError:
            continue
        number = next((word for word in words if word.isdigit()), None)
        if number is not None:
            found.append(int(number) * unit)
    return min(found, default=None)
