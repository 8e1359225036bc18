"""Files of `l2o_eqx.save`, read without that package."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from ._adam_mlp import AdamMLP
from ._arrays import Arrays
from ._black_box_rnn import BlackBoxRNN
from ._coordinatewise_lstm import FEATURES, CoordinatewiseLSTM
from ._equation import Equation
from ._hierarchical_rnn import HierarchicalRNN
from ._learned_momentum import LearnedMomentum
from ._learned_start import GradientDescent, LearnedStart
from ._per_layer import PerLayer

_FORMAT = 1
_GALLERY = Path(__file__).parents[1] / "gallery"


Optimizer = (
    AdamMLP
    | BlackBoxRNN
    | CoordinatewiseLSTM
    | Equation
    | GradientDescent
    | HierarchicalRNN
    | LearnedMomentum
    | LearnedStart
    | PerLayer
)


class _NewerError(ValueError):
    # Of a file that is neither damaged nor from elsewhere.
    pass


# Of arrays, and of keys.
_KINDS = {"jax", "numpy", "scalar", "threefry2x32"}


def load(path: str | os.PathLike[str]) -> Optimizer:
    """The optimizer in a file of `l2o_eqx.save`.

    All have `init` and `update`, except for a `BlackBoxRNN`, which has `init`, `ask` and `tell`.

    **Arguments:**

    - `path`: the file; a folder with an `optimizer.safetensors`, such as that of a run or of `l2o export`;
        or, where this folder is in its package, a name of the gallery.

    **Raises:** `FileNotFoundError`; `ValueError` for files that are damaged or from elsewhere, and for
    optimizers that this module does not know.
    """
    header, arrays = _read(_file_of(path))
    if others := {*header["kinds"].values()} - _KINDS:
        raise ValueError(f"{path}: random numbers of {', '.join(sorted(others))} are not known without JAX")
    try:
        return _rule(_value(header["structure"], arrays))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def _rule(found: Any) -> Any:
    found = dict(found) if isinstance(found, dict) else {}
    name = found.pop("class", "no class")
    known: dict[str, Any] = {kind.__name__: kind for kind in get_args(Optimizer)}
    if name not in known:
        raise ValueError(f"holds {name}; without JAX there are {', '.join(known)}")
    if found.pop("output", None) is not None:
        raise ValueError(f"a {name} with an `output` is not known without JAX")
    features = found.get("preprocessor", {"class": "Identity"})["class"]
    if features not in FEATURES:
        raise ValueError(f"a {name} with the preprocessor {features} is not known without JAX")
    if name == "LearnedStart":
        found["inner"] = _rule(found["inner"])
    if name == "PerLayer":
        found["optimizers"] = {label: _rule(one) for label, one in found["optimizers"].items()}
    try:
        return known[name](**found)
    except TypeError as e:
        raise ValueError(f"its {name} has other settings than this module knows: {e}") from e


def _file_of(path: Any) -> Path:
    path = Path(path)
    inside, named = path / "optimizer.safetensors", _GALLERY / f"{path}.safetensors"
    if inside.is_file():
        return inside
    return named if not path.exists() and path.name == str(path) and named.is_file() else path


def _read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["l2o_eqx"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if header["format"] > _FORMAT:
            raise _NewerError(f"{path}: format {header['format']} is newer than this package")
        if header.pop("sha256") != _digest(header, arrays):
            raise ValueError("the content does not match its sha256")
    except (FileNotFoundError, _NewerError):
        raise
    except (SafetensorError, LookupError, OSError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"{path} is damaged or not from `l2o_eqx.save`: {e}") from e
    return header, arrays


def _digest(header: Mapping[str, Any], arrays: Arrays) -> str:
    dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    digest = hashlib.sha256(dumps(header).encode())
    for name, x in sorted(arrays.items()):
        digest.update(dumps([name, x.dtype.name, x.shape]).encode() + x.tobytes())
    return digest.hexdigest()


def _value(node: Any, arrays: Arrays) -> Any:
    # Modules become dicts with their class's name; arrays float64.
    if not isinstance(node, dict):
        return node
    ((tag, value),) = node.items()
    if tag == "array":
        return np.asarray(arrays[value], np.float64)
    if tag in ("list", "tuple"):
        return [_value(x, arrays) for x in value]
    if tag == "class":
        name, fields = value
        own = {field: _value(x, arrays) for field, x in fields.items()}
        return {"class": name.rpartition(":")[2], **own}
    if tag == "dict":
        return {key: _value(x, arrays) for key, x in value.items()}
    return value
