"""What public names of earlier versions are called today, for files and imports that have the old ones."""

import importlib
import warnings
from typing import Any

# Old public place -> today's.
RENAMED = {
    "l2o_eqx.preprocessors:LogSign": "l2o_eqx.preprocessors:SignedLog",
    "l2o_eqx.preprocessors:TwoFeature": "l2o_eqx.preprocessors:LogAndSign",
}
# Public places of earlier versions that have no successor of the same arrays, and what to do.
REMOVED = {
    "l2o_eqx.optimizers:Hierarchical": "`HierarchicalRNN` is what takes its place, and is trained anew.",
}


def renamed(module: str, name: str) -> Any:
    """What `module.name` is today, for the `__getattr__` of a module that had that name once.

    **Arguments:**

    - `module`, `name`: e.g. `"l2o_eqx.preprocessors"` and `"LogSign"`.

    **Returns:** the object, after a `DeprecationWarning` that says its name.

    **Raises:** `AttributeError` for a name that it never had, or that is no more.
    """
    today = RENAMED.get(f"{module}:{name}")
    if f"{module}:{name}" in REMOVED:
        raise AttributeError(f"`{module}.{name}` is no more. {REMOVED[f'{module}:{name}']}")
    if today is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    home, _, attribute = today.partition(":")
    warnings.warn(f"`{module}.{name}` is called `{attribute}` now.", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(home), attribute)
