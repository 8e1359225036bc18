"""Meta-parameters that no meta-gradient reaches."""

import dataclasses
import warnings
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ._errors import ZeroGradientWarning
from ._past import Watched
from .objectives import AbstractObjectiveFamily, params_shapes
from .optimizers import AbstractOptimizer, Groups

# Many optimizers begin with a read-out of zeros, behind which the first meta-gradient reaches nothing, and
# with features of zeros, before which the weights of the recurrence are reached one update later.
_ENOUGH_UPDATES = 4


def nonzero(grads: PyTree[Array]) -> Bool[Array, " leaves"]:
    """Which arrays of a meta-gradient have an entry that is not exactly zero; NaN is not."""
    return jnp.stack([jnp.any(g != 0) for g in jax.tree.leaves(grads)])


class GradientWatch:
    """Warns once of the meta-parameters whose gradient has been zero from the start.

    It judges after the first super epoch; if that has few meta-updates, after the one in which there have
    been enough. Every family has a turn before.

    **Arguments:**

    - `optimizer`: to be trained; perhaps a batch of restarts.
    - `families`: what it is trained on, by name. Groups that their params do not have are not expected to
        have a gradient.
    - `seen`: what another one has seen, to go on from there.
    """

    def __init__(
        self,
        optimizer: AbstractOptimizer,
        families: Mapping[str, AbstractObjectiveFamily],
        seen: Watched | None = None,
    ):
        meta_params = eqx.filter(optimizer, eqx.is_inexact_array)
        leaves = jax.tree_util.tree_leaves_with_path(meta_params)
        self.paths = [jax.tree_util.keystr(path) for path, _ in leaves]
        has_part = np.any([_with_part(optimizer, family) for family in families.values()], axis=0)
        self.expected = np.asarray([x.size > 0 for _, x in leaves]) & has_part
        self.seen = seen or Watched(np.zeros(len(leaves), bool), 0, tuple(sorted(families)))

    def after(
        self, reached: Bool[np.ndarray, "*restarts leaves"], family: str, num_updates: int
    ) -> tuple[str, ...]:
        """Takes note of a super epoch.

        **Arguments:**

        - `reached`: which arrays had an entry that was not zero.
        - `family`: the name of what it was of.
        - `num_updates`: its meta-updates.

        **Returns:** the paths of those that never had any, in all restarts; once, when it judges.
        """
        seen = self.seen
        if seen.judged:
            return ()
        reached = seen.reached | np.any(np.asarray(reached).reshape(-1, len(self.paths)), axis=0)
        to_come = tuple(name for name in seen.to_come if name != family)
        self.seen = seen = Watched(reached, seen.num_updates + num_updates, to_come)
        if to_come or seen.num_updates < _ENOUGH_UPDATES:
            return ()
        paths = tuple(self.paths[i] for i in np.flatnonzero(self.expected & ~reached))
        self.seen = dataclasses.replace(seen, judged=True, found=paths)
        if paths:
            warnings.warn(describe_zero_gradients(paths), ZeroGradientWarning, stacklevel=2)
        return paths


def describe_zero_gradients(paths: tuple[str, ...]) -> str:
    """What is said of meta-parameters with these paths."""
    return (
        f"The meta-gradient of {', '.join(f'`{path}`' for path in paths)} has been exactly zero in every "
        "meta-update so far: training does not move what is there. It is not used, or behind a "
        "`stop_gradient`, or acts on nothing but what the estimator takes for a constant, such as the "
        "gradients that the optimizer is shown where the estimator is of first order."
    )


def _with_part(optimizer, family):
    """Which leaves have a part in runs on the family: all, or those of the groups that there are."""
    leaves, treedef = jax.tree.flatten(eqx.filter(optimizer, eqx.is_inexact_array))
    layout = optimizer.layout(params_shapes(family))
    if not isinstance(layout, Groups):
        return np.ones(len(leaves), bool)
    rest = eqx.filter(optimizer, eqx.is_inexact_array, inverse=True)
    numbered = eqx.combine(treedef.unflatten([_Number(i) for i in range(len(leaves))]), rest)
    groups = [numbered.for_group(name) for name in layout.layouts]
    found = {x.value for x in jax.tree.leaves(groups) if isinstance(x, _Number)}
    return np.asarray([i in found for i in range(len(leaves))])


class _Number:
    # A leaf in the place of an array, to be recognized.
    def __init__(self, value: int):
        self.value = value
