"""Independent work over all the devices there are."""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._errors import ArgumentError
from .._threads import available_cores, has_spare_threads, pool_size

T = TypeVar("T")
DEVICES = "devices"
"""Name of the mesh's axis."""
_BATCH = PartitionSpec(DEVICES)

# Coordinates that one batch may hold together: enough for wide operations, few enough for the optimizer's
# state to stay in the cache.
_CHUNK_COORDINATES = 2048
_CHUNK_COORDINATES_ACCELERATOR = 2**20
# Fewer if each has weights of its own beside its coordinates.
_OWN_WEIGHTS_COORDINATES = 512


def use_cores(count: int | None = None) -> int:
    """Makes a device of every core, over which trainings and evaluations are then spread.

    XLA alone gets little out of a second core, because a learned optimizer's operations are small. The
    command line calls this; call it yourself before anything is computed with JAX. On an accelerator it
    changes nothing.

    **Arguments:**

    - `count`: how many; by default one per core that this process may use.

    **Returns:** how many there are now.

    **Raises:** `ValueError` for less than one; `RuntimeError` if JAX has started already.
    """
    count = available_cores() if count is None else count
    if count < 1:
        raise ArgumentError(
            f"`use_cores(count={count})`: there must be at least one.", argument="count", given=count
        )
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise RuntimeError(
            "`use_cores()` must be called before JAX computes anything in this process."
        ) from error
    os.environ["NPROC"] = str(pool_size(count))
    return count


def num_devices() -> int:
    """How many devices work may be spread over, those of all processes of `jax.distributed` together."""
    if jax.process_count() > 1:
        return jax.device_count()
    count = jax.local_device_count()
    return 1 if jax.default_backend() == "cpu" and not has_spare_threads(count) else count


def chunk_size(num_coordinates: int) -> int:
    """How many independent runs of so many coordinates each are worth running in parallel on a device."""
    wanted = _CHUNK_COORDINATES if jax.default_backend() == "cpu" else _CHUNK_COORDINATES_ACCELERATOR
    return max(1, wanted // max(1, num_coordinates))


def side_by_side(count: int, num_coordinates: int) -> int:
    """How many optimizers to run in one batch, of `count` on a device with so many coordinates each.

    These are restarts, or one optimizer with its meta-parameters moved.
    """
    on_cpu = jax.default_backend() == "cpu"
    wanted = _OWN_WEIGHTS_COORDINATES if on_cpu else _CHUNK_COORDINATES_ACCELERATOR
    return evenly(count, wanted // max(1, num_coordinates))


def evenly(count: int, largest: int) -> int:
    """The size of the fewest batches of at most `largest`, at least one, that `count` can be cut into.

    As evenly as possible: what is left over would be a program of its own to compile.
    """
    return -(-count // -(-count // max(1, largest)))


def sharded_over_devices(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """`function` with the leading axis of all its arguments and results spread over the devices.

    For functions that treat the `size` entries of that axis independently. If the devices do not divide
    `size` evenly, the largest number of them that does is used; with one device nothing changes.
    """
    return over_devices(function, mesh_for(size), _BATCH, _BATCH)


def over_devices(
    function: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`shard_map`, or with no mesh the function itself.

    Over several processes results are on all devices whole, so that each process can read them: what a
    training exchanges for it once per super epoch is small beside what it does in one.
    """
    if mesh is None:
        return function
    if out_specs == _BATCH and mesh.is_multi_process:
        function, out_specs = _gathered(function), PartitionSpec()
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _gathered(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args):
        return jax.tree.map(_gather, function(*args))

    return run


def _gather(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(_gather(jr.key_data(x)), impl=jr.key_impl(x))
    # Not all ways to exchange have a type of one bit.
    bits = x.astype(jnp.uint8) if x.dtype == bool else x
    return lax.all_gather(bits, DEVICES, tiled=True).astype(x.dtype)


def whole(tree: T, mesh: Mesh | None) -> T:
    """Arrays of a program that are to be on all devices whole, if these are of several processes.

    XLA may have cut what it hands on from one operation to the next.
    """
    if mesh is None or not mesh.is_multi_process:
        return tree
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def share_out(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays with their leading axis shared out over the devices of a mesh; whole if not all are ours."""
    whole = mesh is not None and mesh.is_multi_process
    return _put(tree, mesh, PartitionSpec() if whole else _BATCH)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """A copy of all arrays on every device of a mesh."""
    return _put(tree, mesh, PartitionSpec())


def _put(tree, mesh, spec):
    if mesh is None:
        return tree
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, spec)), static)


def gather(tree: T, mesh: Mesh | None) -> T:
    """Arrays back from the devices of a mesh, to be used together with any others."""

    def fetch(x):
        if not eqx.is_array(x):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jr.wrap_key_data(jnp.asarray(np.asarray(jr.key_data(x))), impl=jr.key_impl(x))
        return jnp.asarray(np.asarray(x))

    return tree if mesh is None else cast(T, jax.tree.map(fetch, tree))


def mesh_for(size: int) -> Mesh | None:
    """The largest number of devices that shares out `size` entries evenly, if it is more than one.

    Of several processes every one takes part with as many; where that is not possible, each does all of the
    work on its own devices, to the same result.
    """
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    least = min(map(len, by_process.values()))
    each = max((n for n in range(1, least + 1) if size % (n * len(by_process)) == 0), default=0)
    if len(by_process) > 1 and each:
        return Mesh(np.array([d for n in sorted(by_process) for d in by_process[n][:each]]), (DEVICES,))
    most = num_devices() if len(by_process) == 1 else jax.local_device_count()
    count = max(n for n in range(1, most + 1) if size % n == 0)
    return None if count == 1 else Mesh(np.array(jax.local_devices()[:count]), (DEVICES,))
