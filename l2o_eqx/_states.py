"""States of trainings: whether one fits to go on from it, and which restarts of it are lost."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Bool, PyTree

from ._errors import ArgumentError
from ._misc import shapes_of


def refuse_misfits(verb: str, parts: Mapping[str, tuple[PyTree, PyTree]]) -> None:
    """Refuses a state that is of another training.

    **Arguments:**

    - `verb`: which is given it.
    - `parts`: by the argument that makes it, what the state would begin with, and what it has.

    **Raises:** `ArgumentError` about the first part that does not fit.
    """
    for name, (wanted, given) in parts.items():
        if shapes_of(wanted) != shapes_of(given):
            raise ArgumentError(
                f"`{verb}(state=...)` does not fit `{name}`: {_difference(wanted, given)}. It must come from "
                "a training of the same optimizer, meta-optimizer, strategy and restarts as those given.",
                argument="state",
            )


def finite_restarts(arrays: PyTree[Any], count: int) -> Bool[np.ndarray, " restarts"]:
    """Which restarts have finite numbers alone, on the host.

    **Arguments:**

    - `arrays`: a tree of arrays with the restarts on the leading axis; of a single run without it.
    - `count`: how many restarts there are, 1 for a single run.
    """
    rows = [np.isfinite(np.asarray(x)).reshape(count, -1).all(axis=1) for x in jax.tree.leaves(arrays)]
    return np.all(rows, axis=0)


def _difference(wanted, given):
    # The first array that is another one; else it is the structure, whose text may be long.
    here, there = _arrays(wanted), _arrays(given)
    for path in [*here, *(path for path in there if path not in here)]:
        one, other = here.get(path, "missing"), there.get(path, "missing")
        if one != other:
            return f"{path or 'it'} is {other} in the state, and here {one}"
    return "the arrays are alike, but what is around them is not"


def _arrays(tree):
    leaves = jtu.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jtu.keystr(path): f"{x.dtype}[{','.join(map(str, x.shape))}]" for path, x in leaves}
