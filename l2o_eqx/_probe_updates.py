from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

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
    """How optimizers update a coordinate, as a function of its gradient and of the last few before.

    A probe is one coordinate of one objective. It has units of its own: for gradients the root mean square of
    its last `past` gradients, for an optimizer's updates that of the updates which that optimizer gave for
    these. NaN where there is no such unit, because all of them were zero.

    **Fields:**

    - `names`: of the optimizers; the first one is that whose run was followed.
    - `tensor`: whose coordinates were probed.
    - `past`: how many gradients before the current one were replaced.
    - `steps`: at which runs were stopped.
    - `pasts`: what those gradients were replaced by, in units.
    - `gradients`: what the current one was replaced by, in units.
    - `updates`: what the optimizers answered, in their units.
    - `gradient_units`, `update_units`: the units.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    tensor: str = eqx.field(static=True)
    past: int = eqx.field(static=True)
    steps: Int[Array, " steps"]
    pasts: Float[Array, " pasts"]
    gradients: Float[Array, " gradients"]
    updates: Float[Array, "optimizers steps pasts gradients probes"]
    gradient_units: Float[Array, "steps probes"]
    update_units: Float[Array, "optimizers steps probes"]


def probe_updates(
    optimizers: Mapping[str, AbstractOptimizer | optax.GradientTransformation],
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
    """Reads optimizers' updates as a function of a coordinate's gradient and of its recent past.

    The first optimizer runs on objectives of a family; the others are shown the same gradients and points,
    and would like to move, too. The runs are stopped at a few steps, and at each, some coordinates are drawn
    among those that had a gradient. For one coordinate at a time, the last `past` gradients and the current
    one are replaced by multiples of their root mean square, those of all others and the points stay as they
    were, every optimizer sees these steps again from the state that it had before them, and its update of
    that coordinate is read.

    So what is shown is a cut through the update where runs really go. Of an optimizer that looks at whole
    tensors it is the answer to a single coordinate that does what the others do not. It is the same function
    at all coordinates only where the optimizer is coordinatewise, and the probes then differ by their states.

    Compiled as one program. Coordinatewise optimizers see a probed coordinate alone.

    **Arguments:**

    - `optimizers`: by name; learned ones, or optax's.
    - `family`: what the first one runs on.
    - `num_steps`: of a run, which learned and scheduled optimizers may ask for.
    - `steps`: where to stop, from 1 to `num_steps` − 1; by default at a twentieth, a half, and the last.
    - `past`: how many gradients are replaced before the current one, in steps.
    - `pasts`: by what, in units of the root mean square of those `past` gradients.
    - `gradients`: by what the current one is replaced, in the same units.
    - `tensor`: whose coordinates are probed, by its path, e.g. `"layers.0.weight"`; by default the largest.
    - `num_objectives`: how many are drawn.
    - `num_coordinates`: of each of them, at most.
    - `key`: draws objectives, starting points, minibatches and coordinates.

    **Returns:** `UpdateProbes`, with `num_objectives` times `num_coordinates` probes.

    **Raises:** `ValueError` for no optimizers, one that never looks at a gradient, sizes below 1, a run of
    one step, steps that are not in it, and an unknown tensor.

    Reference: updates as functions of gradients after Maheswaranathan et al. 2021, "Reverse engineering
    learned optimizers reveals known and novel mechanisms" (arXiv:2011.02159), fig. 2 to 4, where states are
    varied; gradients of the past are varied as in Andrychowicz et al. 2016 (arXiv:1606.04474), appendix.
    """
    check_sizes("probe_updates", past=past, num_objectives=num_objectives, num_coordinates=num_coordinates)
    stops = _stops(num_steps, steps)
    made = {name: as_optimizer(one) for name, one in optimizers.items()}
    if not made:
        raise ArgumentError("`probe_updates(optimizers)` needs at least one.", argument="optimizers")
    for name, one in made.items():
        if one.is_black_box():
            raise ArgumentError(
                f"`probe_updates(optimizers)`: {name!r}, a {type(one).__name__}, never looks at a gradient.",
                argument="optimizers",
                given=one,
            )
    leaf, label = _find(family, tensor)
    dtype = jnp.result_type(float)
    values = jnp.asarray(pasts, dtype), jnp.asarray(gradients, dtype)
    where = _Where(stops, past, num_steps, leaf, num_coordinates)
    keys = jr.split(key, num_objectives)
    read = _probe(where, tuple(made.values()), family, values, keys)
    return UpdateProbes(tuple(made), label, past, jnp.asarray(stops), *values, *read)


def _stops(num_steps: int, steps: Sequence[int] | None) -> tuple[int, ...]:
    if num_steps < 2:
        raise ArgumentError(
            f"`probe_updates(num_steps={num_steps})`: a step needs one before it.",
            argument="num_steps",
            given=num_steps,
        )
    if steps is None:
        steps = (max(1, num_steps // 20), num_steps // 2, num_steps - 1)
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
def _probe(where, optimizers, family, values, keys):
    # Updates and both units, the probes of all objectives on the last axis.
    def of_objective(key):
        okey, ikey, lkey, ckey = jr.split(key, 4)
        objective = family.sample(okey)
        windows, layouts = follow(
            optimizers,
            objective,
            begin_at(optimizers[0], add_axis(objective.init(ikey))),
            add_axis(objective.init_state(ikey)),
            where.stops,
            where.past + 1,
            num_steps=where.num_steps,
            key=lkey,
        )
        valid = windows.steps[:, :-1] >= 0
        units = _rms(jax.tree.leaves(windows.grads)[where.leaf], valid)
        # Drawn among those that had a gradient, as long as there are enough.
        drawn = jnp.where(units > 0, jr.uniform(ckey, units.shape[1:])[None], -1.0)
        chosen = lax.top_k(drawn, min(where.num_coordinates, units.shape[1]))[1]
        units = jnp.take_along_axis(units, chosen, axis=1)
        updates, update_units = [], []
        for number, (optimizer, layout) in enumerate(zip(optimizers, layouts, strict=True)):
            own = _rms(jax.tree.leaves(windows.updates[number])[where.leaf], valid)
            own = jnp.take_along_axis(own, chosen, axis=1)

            def at_stop(each, number=number, optimizer=optimizer, layout=layout):
                window, chosen, units = each
                reader = _Reader(optimizer, layout, window, number, where.leaf, lkey)
                return lax.map(lambda one: reader.read(*one, *values), (chosen, units))

            read = jnp.moveaxis(lax.map(at_stop, (windows, chosen, units)), 1, -1)
            known = (units > 0) & (own > 0)
            scaled = read / jnp.where(known, own, 1.0)[:, None, None]
            updates.append(jnp.where(known[:, None, None], scaled, jnp.nan))
            update_units.append(own)
        return jnp.stack(updates), units, jnp.stack(update_units)

    def together(x):
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)

    return jax.tree.map(together, lax.map(of_objective, keys))


def _rms(
    x: Float[Array, "stops window *shape"], valid: Bool[Array, "stops past"]
) -> Float[Array, "stops entries"]:
    # Over the steps that there were before the last one; scaled by the largest, because squares would vanish.
    x = x[:, :-1].reshape(*valid.shape, -1)
    x = jnp.where(valid[..., None], x, 0)
    largest = jnp.max(jnp.abs(x), axis=1)
    scale = jnp.where(largest > 0, largest, 1)
    mean = jnp.sum((x / scale[:, None]) ** 2, axis=1) / jnp.sum(valid, axis=1, keepdims=True)
    return jnp.where(largest > 0, scale * jnp.sqrt(mean), 0)


class _Reader(eqx.Module):
    """Reads the updates that an optimizer gives for one window.

    `number` is that of the optimizer in the window, `leaf` that of the probed tensor.
    """

    optimizer: AbstractOptimizer
    layout: AbstractLayout
    window: Window
    number: int = eqx.field(static=True)
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
        window, state = self.window, self.layout.to_one(self.window.states[self.number])
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
