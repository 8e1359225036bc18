"""What NumPy and PyTorch call differently, and arrays by name."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

# NumPy's, or tensors of PyTorch.
Array = Any
# By name; "layers.0.weight" and "layers.0.bias" are of one layer.
Arrays = Mapping[str, Array]
State = dict[str, Any]


def in_order(grads: Arrays, state: State) -> Arrays:
    # That of `init`, which the state is in.
    shapes, of_init = shapes_of(grads), state["shapes"]
    if shapes != of_init:
        raise ValueError(f"`update` needs the names and shapes of `init`, {of_init}. Got {shapes}")
    return {name: grads[name] for name in of_init}


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    # By name.
    if not isinstance(arrays, Mapping) or not arrays:
        raise ValueError(f"arrays must be in a dict by name, at least one. Got {type(arrays).__name__}")
    for name, x in arrays.items():
        if "float" not in str(getattr(x, "dtype", "")):
            found = getattr(x, "dtype", type(x).__name__)
            raise ValueError(f"{name!r} must be an array of real floating-point numbers. Got {found}")
    return {name: tuple(x.shape) for name, x in arrays.items()}


def library(x: Array) -> Any:
    return np if isinstance(x, np.ndarray | np.generic) else sys.modules["torch"]


def cast(x: Array, dtype: Any) -> Array:
    return x.astype(dtype, copy=False) if isinstance(x, np.ndarray | np.generic) else x.to(dtype)


def to_numpy(x: Array, dtype: Any = None) -> np.ndarray:
    return np.asarray(x if library(x) is np else x.detach().cpu().double().numpy(), dtype)


def wide(x: Array) -> Any:
    # The dtype of norms and networks. Apple's GPUs have no float64.
    xp = library(x)
    return xp.float32 if xp is not np and x.device.type == "mps" else xp.float64


def own_dtype(x: Array) -> Any:
    # The dtype of what there is for every entry.
    xp = library(x)
    return np.float64 if xp is np else xp.promote_types(x.dtype, xp.float32)


def zeros(like: Array) -> Array:
    return library(like).zeros_like(cast(like, own_dtype(like)))


def sigmoid(x: Array) -> Array:
    return 0.5 * library(x).tanh(0.5 * x) + 0.5


def norm_of(x: Array) -> Array:
    xp = library(x)
    return xp.sqrt(xp.square(x).sum())
