from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._checks import check_sizes
from ._engine._inner import show
from ._engine._layout import add_axis, begin_at
from ._engine._windows import Window, follow
from ._errors import ArgumentError
from ._misc import cast_like, plain
from ._types import Scalar, State
from .objectives import AbstractObjectiveFamily
from .objectives._batch import params_shapes
from .optimizers import (
    AbstractLayout,
    AbstractOptimizer,
    Blocks,
    Seen,
    Whole,
    as_optimizer,
    by_leaf,
    take_step,
)

_GRADIENTS = tuple(np.linspace(-3, 3, 25).tolist())


class UpdateProbes(eqx.Module):
    """How an optimizer updates a coordinate, as a function of its gradient and of the last few before.

    A probe is one coordinate of one objective, in units of its own: for gradients the root mean square of its
    last `past` gradients, for updates that of the updates which it got for these. NaN where there is no such
    unit, because all of them were zero.

    **Fields:**

    - `tensor`: whose coordinates were probed.
    - `past`: how many gradients before the current one were replaced.
    - `steps`: at which runs were stopped.
    - `pasts`: what those gradients were replaced by, in units.
    - `gradients`: what the current one was replaced by, in units.
    - `updates`: what the optimizer answered, in units.
    - `gradient_units`, `update_units`: the units.
    """

    tensor: str = eqx.field(static=True)
    past: int = eqx.field(static=True)
    steps: Int[Array, " steps"]
    pasts: Float[Array, " pasts"]
    gradients: Float[Array, " gradients"]
    updates: Float[Array, "steps pasts gradients probes"]
    gradient_units: Float[Array, "steps probes"]
    update_units: Float[Array, "steps probes"]


def probe_updates(
    optimizer: AbstractOptimizer | optax.GradientTransformation,
    family: AbstractObjectiveFamily,
    *,
    num_steps: int,
    steps: Sequence[int] | None = None,
    past: int = 10,
    pasts: Sequence[float] = (-1.0, 0.0, 1.0),
    gradients: Sequence[float] = _GRADIENTS,
    tensor: str | None = None,
    num_objectives: int = 4,
    num_coordinates: int = 8,
    key: PRNGKeyArray,
) -> UpdateProbes:
    """Reads an optimizer's updates as a function of a coordinate's gradient and of its recent past.

    The optimizer runs on objectives of a family. Its runs are stopped at a few steps, and at each, some
    coordinates are drawn among those that had a gradient. For one coordinate at a time, the last `past`
    gradients and the current one are replaced by multiples of their root mean square, while the gradients of
    all others and the params stay as they were; the optimizer sees these steps again from the state that it
    had before them, and its update of that coordinate is read.

    So what is read is a cut through the update where runs really go. Of an optimizer that looks at whole
    tensors it is the answer to one coordinate that does what the others do not. Only of a coordinatewise one
    it is all of the update, and probes then differ by their states alone.

    It is one compiled program. A coordinatewise optimizer sees a probed coordinate alone, which is the same.

    **Arguments:**

    - `optimizer`: a learned one, or one of optax.
    - `family`: what it runs on.
    - `num_steps`: of a run, which learned and scheduled optimizers may ask for.
    - `steps`: where to stop, from 1 to `num_steps` − 1; by default after a twentieth, a half and nine tenths.
    - `past`: how many gradients are replaced before the current one, in steps.
    - `pasts`: by what, in units of the root mean square of those `past` gradients.
    - `gradients`: by what the current one is replaced, in the same units.
    - `tensor`: whose coordinates are probed, by its path, e.g. `"layers.0.weight"`; by default the largest.
    - `num_objectives`: how many are drawn.
    - `num_coordinates`: of each of them, at most.
    - `key`: draws objectives, starting points, minibatches and coordinates, the same ones for any optimizer.

    **Returns:** `UpdateProbes`, with `num_objectives` times `num_coordinates` probes.

    **Raises:** `ValueError` for an optimizer that never looks at a gradient, sizes below 1, a run of one
    step, steps that are not in it, and an unknown tensor.

    Reference: Maheswaranathan et al. 2021, "Reverse engineering learned optimizers reveals known and novel
    mechanisms" (arXiv:2011.02159), who draw updates over gradients for states along a run; Andrychowicz et
    al. 2016 (arXiv:1606.04474), who draw them for pasts.
    """
    check_sizes("probe_updates", past=past, num_objectives=num_objectives, num_coordinates=num_coordinates)
    stops = _stops(num_steps, steps)
    made = as_optimizer(optimizer)
    if made.is_black_box():
        raise ArgumentError(
            f"`probe_updates(optimizer)`: a {type(made).__name__} never looks at a gradient.",
            argument="optimizer",
            given=made,
        )
    leaf, label = _find(family, tensor)
    dtype = jnp.result_type(float)
    values = jnp.asarray(pasts, dtype), jnp.asarray(gradients, dtype)
    where = _Where(stops, past, num_steps, leaf, num_coordinates)
    read = _probe(where, made, family, values, jr.split(key, num_objectives))
    return UpdateProbes(label, past, jnp.asarray(stops), *values, *read)


def _stops(num_steps: int, steps: Sequence[int] | None) -> tuple[int, ...]:
    if num_steps < 2:
        raise ArgumentError(
            f"`probe_updates(num_steps={num_steps})`: a step needs one before it.",
            argument="num_steps",
            given=num_steps,
        )
    if steps is None:
        steps = (max(1, num_steps // 20), num_steps // 2, max(1, 9 * num_steps // 10))
    stops = tuple(sorted({int(step) for step in steps}))
    if not stops or stops[0] < 1 or stops[-1] >= num_steps:
        raise ArgumentError(
            f"`probe_updates(steps=...)` must lie between 1 and {num_steps - 1}, the last of num_steps="
            f"{num_steps}, and be at least one. Got {tuple(steps)}.",
            argument="steps",
            given=tuple(steps),
        )
    return stops


def _find(family: AbstractObjectiveFamily, tensor: str | None) -> tuple[int, str]:
    # The number of the tensor among the leaves, and its name.
    paths = jtu.tree_leaves_with_path(plain(params_shapes(family)))
    names = [by_leaf(*each) for each in paths]
    if tensor is None:
        number = int(np.argmax([leaf.size for _, leaf in paths]))
    elif tensor in names:
        number = names.index(tensor)
    else:
        raise ArgumentError(
            f"`probe_updates(tensor={tensor!r})`: the params have {', '.join(names)}.",
            argument="tensor",
            given=tensor,
            possible=names,
        )
    return number, names[number]


class _Where(eqx.Module):
    # What is static of the arguments of `probe_updates`; `leaf` is the number of the tensor.
    stops: tuple[int, ...] = eqx.field(static=True)
    past: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    leaf: int = eqx.field(static=True)
    num_coordinates: int = eqx.field(static=True)


@eqx.filter_jit
def _probe(where, optimizer, family, values, keys):
    # Updates and both units, the probes of all objectives on the last axis.
    def of_objective(key):
        okey, ikey, lkey, ckey = jr.split(key, 4)
        objective = family.sample(okey)
        windows, layout = follow(
            optimizer,
            objective,
            begin_at(optimizer, add_axis(objective.init(ikey))),
            add_axis(objective.init_state(ikey)),
            where.stops,
            where.past + 1,
            num_steps=where.num_steps,
            key=lkey,
        )
        units, update_units = (
            _rms(jax.tree.leaves(x)[where.leaf], windows.steps) for x in (windows.grads, windows.updates)
        )
        # Drawn among those that had a gradient, as long as there are enough.
        drawn = jnp.where(units > 0, jr.uniform(ckey, units.shape[1:])[None], -1.0)
        chosen = lax.top_k(drawn, min(where.num_coordinates, units.shape[1]))[1]
        units, update_units = (jnp.take_along_axis(x, chosen, axis=1) for x in (units, update_units))

        def at_stop(each):
            window, chosen, units = each
            reader = _Reader(optimizer, layout, window, where.leaf, lkey)
            return lax.map(lambda one: reader.read(*one, *values), (chosen, units))

        updates = jnp.moveaxis(lax.map(at_stop, (windows, chosen, units)), 1, -1)
        known = (units > 0) & (update_units > 0)
        scaled = updates / jnp.where(known, update_units, 1.0)[:, None, None]
        return jnp.where(known[:, None, None], scaled, jnp.nan), units, update_units

    def together(x):
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)

    return jax.tree.map(together, lax.map(of_objective, keys))


def _rms(
    x: Float[Array, "stops window *shape"], steps: Int[Array, "stops window"]
) -> Float[Array, "stops entries"]:
    # Before the last step, where there were steps; scaled by the largest, because squares would vanish.
    valid = steps[:, :-1] >= 0
    x = jnp.where(valid[..., None], x[:, :-1].reshape(*valid.shape, -1), 0)
    largest = jnp.max(jnp.abs(x), axis=1)
    scale = jnp.where(largest > 0, largest, 1)
    mean = jnp.sum((x / scale[:, None]) ** 2, axis=1) / jnp.sum(valid, axis=1, keepdims=True)
    return jnp.where(largest > 0, scale * jnp.sqrt(mean), 0)


class _Reader(eqx.Module):
    """Reads the updates that an optimizer gives for one window; `leaf` is the number of the probed tensor."""

    optimizer: AbstractOptimizer
    layout: AbstractLayout
    window: Window
    leaf: int = eqx.field(static=True)
    key: PRNGKeyArray

    def read(
        self,
        coordinate: Int[Array, ""],
        unit: Scalar,
        pasts: Float[Array, " pasts"],
        gradients: Float[Array, " gradients"],
    ) -> Float[Array, "pasts gradients"]:
        """The updates of a coordinate with its gradients replaced by multiples of a unit."""
        state, shown, place = self._of_coordinate(coordinate)
        past, last = (jax.tree.map(lambda x, i=i: x[i], shown) for i in (slice(-1), -1))

        def of_past(own):
            def again(state, step):
                _, new = self._update(state, step, place, own * unit)
                # Where there was such a step.
                return jax.tree.map(lambda x, y: jnp.where(step[-1] >= 0, x, y), new, state), None

            before, _ = lax.scan(again, state, past)
            return jax.vmap(lambda x: self._update(before, last, place, x * unit)[0])(gradients)

        return jax.vmap(of_past)(pasts)

    def _of_coordinate(self, coordinate):
        # A state, what the steps of the window show, and where the coordinate is in that: tensor and entry.
        window, state = self.window, self.layout.to_one(self.window.state)
        trees = (window.grads, window.params)
        place = (self.leaf, coordinate)
        if self._apart:
            # A part of the coordinates gets that part of the updates; all of them would cost much more.
            sizes = [x[0].size for x in jax.tree.leaves(window.params)]
            first = sum(sizes[: self.leaf]) + coordinate
            state = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, 1, -1), state)
            flat = [jax.tree.leaves(x)[self.leaf].reshape(len(window.steps), -1) for x in trees]
            trees = tuple(lax.dynamic_slice_in_dim(x, coordinate, 1, 1) for x in flat)
            place = (0, jnp.zeros((), jnp.int32))
        return state, (*trees, window.values, window.steps), place

    @property
    def _apart(self) -> bool:
        return isinstance(self.layout, Blocks)

    def _update(
        self, state: State, shown: PyTree, place: tuple[int, Int[Array, ""]], gradient: Scalar
    ) -> tuple[Scalar, State]:
        # The update of the coordinate where its gradient is this one, and the next state.
        grads, params, value, step = shown
        number, entry = place
        leaves, treedef = jax.tree.flatten(grads)
        flat = leaves[number].ravel().at[entry].set(gradient.astype(leaves[number].dtype))
        leaves[number] = flat.reshape(leaves[number].shape)
        seen = show(self.optimizer, Whole(), treedef.unflatten(leaves), value[None], step, self.key[None])
        # A value of its own for each coordinate where these are apart.
        values = seen.value if self._apart or seen.value is None else seen.value[0]
        seen = Seen(seen.grads, values, None if seen.key is None else seen.key[0])
        updates, new = take_step(self.optimizer, seen, state, params)
        return jax.tree.leaves(updates)[number].ravel()[entry], cast_like(new, state)
