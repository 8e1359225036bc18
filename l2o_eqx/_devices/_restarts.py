from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
from jax import lax
from jaxtyping import Array, Key, PRNGKeyArray, PyTree, UInt32

from .._errors import ArgumentError, check
from ._mesh import mesh_for, replicate, sharded_over_devices, share_out

# One key, or one per restart; keys of the old kind are rows of two numbers.
RunKeys = Key[Array, "*restarts"] | UInt32[Array, "*restarts 2"]


class Restarts(eqx.Module):
    """How many independent runs lie on the leading axis of all arrays, if there is such an axis.

    What a verb does for one run, it does for a batch of them by `over` or `one_by_one`.

    **Fields:**

    - `count`: how many; `None` for a single run without the axis.
    """

    count: int | None = eqx.field(static=True)

    @classmethod
    def of(cls, verb: str, optimizer: PyTree, count: int | None) -> "Restarts":
        """Those that a verb is asked for.

        **Arguments:**

        - `verb`: whose argument `restarts` it is.
        - `optimizer`: of which there must be so many.
        - `count`: as given by the user.

        **Raises:** `ArgumentError` unless every meta-parameter has the restarts on its leading axis.
        """
        if count is None:
            return cls(None)
        check(
            f"`{verb}(restarts=...)` must be at least 1. Got restarts={count}.", restarts=(count, count >= 1)
        )
        shapes = [x.shape for x in jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array))]
        if any(shape[:1] != (count,) for shape in shapes):
            raise ArgumentError(
                f"`{verb}(restarts={count})` needs a batch of {count} optimizers, made by "
                "`eqx.filter_vmap(make_optimizer)(keys)`: every array must have the restarts on its leading "
                f"axis. Got the shapes {sorted(set(shapes))}.",
                argument="restarts",
                given=count,
            )
        return cls(count)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one number per restart."""
        return () if self.count is None else (self.count,)

    def keys(self, key: PRNGKeyArray) -> RunKeys:
        """The key of every restart."""
        return key if self.count is None else jr.split(key, self.count)

    def key_of(self, key: PRNGKeyArray, number: int | None) -> PRNGKeyArray:
        """The key of one of them; `None` is the number of a single run."""
        keys = self.keys(key)
        return keys if number is None else keys[number]

    def over(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of one run, for all of them at once and on all devices. Meant for use under jit.

        All of its arguments and results are trees of arrays.
        """
        return function if self.count is None else sharded_over_devices(jax.vmap(function), self.count)

    def one_by_one(self, function: Callable[[PyTree, bool], Any], tree: PyTree) -> Any:
        """`function` of one run after the other on every device. Meant for use under jit.

        **Arguments:**

        - `function`: `(tree of one run, whether the devices are free) -> arrays`. They are not free for what
            is inside of a run where they share out the runs.
        - `tree`: with the restarts on the leading axis of its arrays.
        """
        if self.count is None:
            return function(tree, True)
        arrays, static = eqx.partition(tree, eqx.is_array)
        # If the devices cannot share them out evenly, each run has all of them.
        shared = mesh_for(self.count) is not None

        def run(arrays):
            return lax.map(lambda own: function(eqx.combine(own, static), not shared), arrays)

        return (sharded_over_devices(run, self.count) if shared else run)(arrays)

    def placed(self, tree: PyTree, num_objectives: int) -> PyTree:
        """A tree that may come from other devices, where `one_by_one` wants it.

        **Arguments:**

        - `num_objectives`: what devices share out that do not share out restarts.
        """
        if self.count is not None and (mesh := mesh_for(self.count)) is not None:
            return share_out(tree, mesh)
        return replicate(tree, mesh_for(num_objectives))
