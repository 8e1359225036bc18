from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._axis import mean_over
from ._mesh import (
    DEVICES,
    gather,
    mesh_for,
    num_devices,
    over_devices,
    replicate,
    share_out,
    side_by_side,
    whole,
)
from ._restarts import Restarts

T = TypeVar("T")


class Placement(eqx.Module):
    """Which devices take part in a training, and what of it they share out.

    **Fields:**

    - `restarts`: how many trainings there are.
    - `mesh`: the devices; `None` if one does it all.
    - `shared`: `"restarts"`, the `"objectives"` of a super epoch, or the `"coordinates"` of all of them;
        `None` without a mesh.
    """

    restarts: Restarts
    mesh: Mesh | None = eqx.field(static=True, default=None)
    shared: Literal["restarts", "objectives", "coordinates"] | None = eqx.field(static=True, default=None)

    @property
    def coordinate_axis(self) -> str | None:
        """The name of the mesh axis that coordinates are shared out over, if they are."""
        return DEVICES if self.shared == "coordinates" else None

    def put(self, tree: PyTree) -> PyTree:
        """Arrays of the trainings, where they are needed; what is there is not moved."""
        return share_out(tree, self.mesh) if self.shared == "restarts" else replicate(tree, self.mesh)

    def put_everywhere(self, tree: PyTree) -> PyTree:
        """A copy of arrays that all trainings have in common, wherever it is needed."""
        return replicate(tree, self.mesh)

    def fetch(self, tree: T) -> T:
        """Arrays back from the devices, to be used together with any others."""
        return gather(tree, self.mesh)

    def known_everywhere(self, tree: T) -> T:
        """Results of `run` after further operations, for every process to read. Meant for use under jit."""
        return whole(tree, self.mesh)

    def mean(self, tree: PyTree) -> PyTree:
        """Means over the objectives of this device as means over those of all, inside of a training."""
        return mean_over(tree, DEVICES) if self.shared == "objectives" else tree

    def collect(self, rows: Array) -> Array:
        """The rows, one per objective, of all devices, inside of a training."""
        return lax.all_gather(rows, DEVICES, tiled=True) if self.shared == "objectives" else rows

    def run(
        self,
        train: Callable[[PyTree, tuple[PyTree, PyTree]], Any],
        own: PyTree,
        key: PRNGKeyArray,
        draw: Callable[[PRNGKeyArray], tuple[PyTree, PyTree]],
        num_coordinates: Callable[[], int],
    ) -> Any:
        """One super epoch of all trainings. Meant for use under jit.

        **Arguments:**

        - `train`: `(arrays of one training, draws) -> arrays`.
        - `own`: the arrays of the trainings.
        - `key`: of the super epoch.
        - `draw`: `key -> (draws of each objective, draws for all)` of one training; the first with the
            objectives on the leading axis.
        - `num_coordinates`: says how many one training has, all objectives together.
        """
        alike, cut = PartitionSpec(), PartitionSpec(DEVICES)
        if self.restarts.count is None:
            each = cut if self.shared == "objectives" else alike
            specs = (alike, (each, alike))
            return over_devices(train, self.mesh, specs, alike)(own, draw(key))

        def train_all(own, keys):
            together = side_by_side(len(keys), num_coordinates())
            # A batch of one would turn every product into a batched one, which takes twice the time.
            batch_size = together if together > 1 else None
            return lax.map(lambda one: train(one[0], draw(one[1])), (own, keys), batch_size=batch_size)

        return over_devices(train_all, self.mesh, cut, cut)(own, self.restarts.keys(key))


def place(runs: Restarts, num_objectives: int, worth_sharing_coordinates: Callable[[int], bool]) -> Placement:
    """What the devices share out of a training.

    Least is exchanged if that is restarts, more with objectives (a meta-gradient per update), most with
    coordinates (every update).

    **Arguments:**

    - `runs`: how many trainings there are.
    - `num_objectives`: of each.
    - `worth_sharing_coordinates`: `number of devices -> whether` coordinates can be shared out over so many,
        and are enough for them.
    """
    if runs.count is not None:
        mesh = mesh_for(runs.count)
        return Placement(runs, mesh, None if mesh is None else "restarts")
    if (mesh := mesh_for(num_objectives)) is not None:
        return Placement(runs, mesh, "objectives")
    count = num_devices()
    if count == 1 or not worth_sharing_coordinates(count):
        return Placement(runs)
    mesh = mesh_for(count)
    return Placement(runs, mesh, None if mesh is None else "coordinates")
