"""Independent work over all the devices there are."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

_BATCH = PartitionSpec("batch")

# Coordinates that one batch may hold together: enough for wide operations, few enough for the optimizer's
# state to stay in the cache.
_CHUNK_COORDINATES = 2048
_CHUNK_COORDINATES_ACCELERATOR = 2**20


def chunk_size(num_coordinates: int) -> int:
    """How many independent runs of so many coordinates each are worth running side by side on a device."""
    wanted = _CHUNK_COORDINATES if jax.default_backend() == "cpu" else _CHUNK_COORDINATES_ACCELERATOR
    return max(1, wanted // max(1, num_coordinates))


def sharded_over_devices(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """`function` with the leading axis of all its arguments and results spread over the devices.

    For functions that treat the `size` entries of that axis independently. If the devices do not divide
    `size` evenly, the largest number of them that does is used; with one device nothing changes.
    """
    mesh = _mesh(size)
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=_BATCH, out_specs=_BATCH, check_vma=False)


def place(tree: PyTree, size: int) -> PyTree:
    """Arrays with a leading axis of `size`, placed as `sharded_over_devices` leaves its results."""
    mesh = _mesh(size)
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, _BATCH))


def _mesh(size):
    # Several devices made of one host share a pool of as many threads as cores, and can all wait for a free
    # one for ever (jaxlib 0.10.2 did, on two cores), unless the variable NPROC asks for more. XLA's own
    # threads use the cores at least as well (docs/performance.md), so that nothing is lost.
    if jax.default_backend() == "cpu" and "NPROC" not in os.environ:
        return None
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if size % n == 0)
    return None if count == 1 else Mesh(np.array(devices[:count]), ("batch",))
