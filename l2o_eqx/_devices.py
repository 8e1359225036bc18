"""Independent work over all the devices there are."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec


def sharded_over_devices(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """`function` with the leading axis of all its arguments and results spread over the devices.

    For functions that treat the `size` entries of that axis independently. If the devices do not divide
    `size` evenly, the largest number of them that does is used; with one device nothing changes.

    On a host, one device is best: XLA's own threads spread wide operations over the cores, and several
    host devices were measured slower (docs/performance.md).
    """
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if size % n == 0)
    if count == 1:
        return function
    mesh = Mesh(np.array(devices[:count]), ("batch",))
    spec = PartitionSpec("batch")
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
