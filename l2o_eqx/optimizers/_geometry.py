"""Inner products between trees of arrays, tensor by tensor, layer by layer or of the whole tree.

Squares of norms leave the range of float32 long before the norms themselves do. So every direction carries
a scale, no entry being larger, and what is multiplied are the directions divided by it. Norms then come as
logarithms. Nothing here is NaN, and has no derivative that is, where a direction is exactly zero.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from .._errors import ArgumentError
from .._misc import plain, tree_dtype, wide_dtype_of
from .._types import Params
from ._per_layer import by_layer, by_leaf

Per = Literal["tensor", "layer", "tree"]
# Whether the first move's size is a length, or a multiple of the root mean square of the params.
FirstStep = Literal["absolute", "relative"]
# One number for every group of leaves.
PerGroup = Float[Array, " groups"]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which leaves, by their place in the tree, share a network; how many coordinates; and names."""

    members: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.members)

    def sum(self, per_leaf: Sequence[Float[Array, ""]], dtype: np.dtype) -> PerGroup:
        """Of one number per leaf."""
        return _stack([sum((per_leaf[i] for i in m[1:]), per_leaf[m[0]]) for m in self.members], dtype)

    def max(self, per_leaf: Sequence[Float[Array, ""]], dtype: np.dtype) -> PerGroup:
        """Of one number per leaf."""
        return _stack([jnp.max(jnp.stack([per_leaf[i] for i in m])) for m in self.members], dtype)

    def spread(self, values: PerGroup) -> list[Float[Array, ""]]:
        """For each leaf the number of its group."""
        group_of = {leaf: group for group, m in enumerate(self.members) for leaf in m}
        return [values[group_of[leaf]] for leaf in range(len(group_of))]


def _stack(numbers, dtype):
    return jnp.stack(numbers) if numbers else jnp.zeros(0, dtype)


def groups_of(tree: Params, per: Per) -> Groups:
    """The groups of a tree's leaves: one each per `"tensor"`, per `"layer"` (see `by_layer`), or one."""
    paths = jtu.tree_leaves_with_path(plain(tree))
    members: dict[object, list[int]] = {}
    names: dict[object, str] = {}
    for i, (path, leaf) in enumerate(paths):
        layer = by_layer(path, leaf)
        label = {"tensor": i, "layer": layer, "tree": 0}[per]
        members.setdefault(label, []).append(i)
        names[label] = {"tensor": by_leaf(path, leaf), "layer": layer, "tree": "all"}[per]
    sizes = tuple(max(1, sum(paths[i][1].size for i in m)) for m in members.values())
    return Groups(tuple(map(tuple, members.values())), sizes, tuple(names.values()))


def check_settings(
    where: str,
    *,
    per: str,
    first_step: str,
    below_one: dict[str, float],
    positive: dict[str, float | int],
) -> None:
    """Refuses, in the name of `where`, what no tensor-level optimizer takes.

    **Arguments:**

    - `per`, `first_step`: the settings of these names.
    - `below_one`, `positive`: settings by name that must lie between 0 and 1, or above 0.
    """
    if per not in ("tensor", "layer", "tree"):
        raise ArgumentError(
            f"`{where}(per={per!r})`: a network runs per 'tensor', per 'layer' or per 'tree'.",
            argument="per",
            given=per,
            possible=("tensor", "layer", "tree"),
        )
    if first_step not in ("absolute", "relative"):
        raise ArgumentError(
            f"`{where}(first_step={first_step!r})`: the first step can be 'absolute' or 'relative'.",
            argument="first_step",
            given=first_step,
            possible=("absolute", "relative"),
        )
    for name, value in below_one.items():
        if not 0 < value < 1:
            raise ArgumentError(
                f"`{where}({name}=...)` must lie between 0 and 1. Got {name}={value}.",
                argument=name,
                given=value,
            )
    for name, value in positive.items():
        if not value > 0:
            raise ArgumentError(
                f"`{where}({name}=...)` must be positive. Got {name}={value}.", argument=name, given=value
            )


def wide_dtype(tree: Params) -> np.dtype:
    """The dtype that geometry is done in: the widest of the leaves', float32 at least."""
    return wide_dtype_of(tree_dtype(tree))


class Direction(eqx.Module):
    """The leaves of a tree in one dtype, and a bound on the absolute entries of each group.

    The bound is a positive constant to derivatives; where all entries are zero it means nothing.
    """

    leaves: list[Float[Array, "..."]]
    scale: PerGroup

    def scaled(self, groups: Groups) -> list[Float[Array, "..."]]:
        """The leaves with no entry above 1."""
        inverse = groups.spread(1 / self.scale)
        return [x * s for x, s in zip(self.leaves, inverse, strict=True)]


def zero_direction(groups: Groups, tree: Params) -> Direction:
    dtype = wide_dtype(tree)
    leaves = [jnp.zeros(x.shape, dtype) for x in jax.tree.leaves(tree)]
    return Direction(leaves, jnp.full(len(groups), jnp.finfo(dtype).tiny, dtype))


def direction(groups: Groups, tree: Params) -> Direction:
    """A tree as a direction; one more pass over it finds its largest entries."""
    dtype = wide_dtype(tree)
    leaves = [x.astype(dtype) for x in jax.tree.leaves(tree)]
    largest = groups.max([jnp.max(jnp.abs(x), initial=0.0) for x in leaves], dtype)
    return Direction(leaves, _bound(largest))


def difference(a: Direction, b: Direction) -> Direction:
    """a − b, taken before anything is multiplied: as a difference of products it would cancel."""
    leaves = [x - y for x, y in zip(a.leaves, b.leaves, strict=True)]
    return Direction(leaves, jnp.maximum(a.scale, b.scale))


def combination(groups: Groups, weights: Sequence[PerGroup], directions: Sequence[Direction]) -> Direction:
    """Σ w_k·D_k, each D_k divided by its scale. Bounded without another pass."""
    rows = []
    for weight, d in zip(weights, directions, strict=True):
        spread = groups.spread(weight)
        rows.append([w * x for w, x in zip(spread, d.scaled(groups), strict=True)])
    leaves = [functools.reduce(jnp.add, terms) for terms in zip(*rows, strict=True)]
    return Direction(leaves, _bound(sum(jnp.abs(w) for w in weights[1:]) + jnp.abs(weights[0])))


def _bound(scale):
    return lax.stop_gradient(jnp.maximum(scale, jnp.finfo(scale.dtype).tiny))


# Indices of two directions.
Pair = tuple[int, int]


def inner_products(
    groups: Groups, directions: Sequence[Direction], pairs: tuple[Pair, ...]
) -> dict[Pair, PerGroup]:
    """⟨D_i, D_j⟩ for some pairs of directions, each divided by its scale; in one pass over memory."""
    scaled = zip(*(d.scaled(groups) for d in directions), strict=True)
    per_leaf = [_sums_of_products(pairs, rows) for rows in scaled]
    dtype = directions[0].scale.dtype
    return {pair: groups.sum([sums[k] for sums in per_leaf], dtype) for k, pair in enumerate(pairs)}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sums_of_products(pairs, rows):
    # A reduction for each pair would read its two arrays again: at 10^6 coordinates that takes four times as
    # long. XLA does not fuse them by itself, and JAX has no derivative of a reduction of several arrays.
    products = tuple(rows[i] * rows[j] for i, j in pairs)
    zeros = tuple(jnp.zeros((), x.dtype) for x in products)
    return lax.reduce(products, zeros, _add_each, tuple(range(rows[0].ndim)))


def _add_each(xs, ys):
    return tuple(x + y for x, y in zip(xs, ys, strict=True))


@_sums_of_products.defjvp
def _sums_of_products_jvp(pairs, primals, tangents):
    (rows,), (moved,) = primals, tangents
    changes = tuple(jnp.sum(rows[i] * moved[j] + moved[i] * rows[j]) for i, j in pairs)
    return _sums_of_products(pairs, rows), changes


def cosine(product: PerGroup, square_a: PerGroup, square_b: PerGroup) -> PerGroup:
    """⟨a, b⟩/(‖a‖‖b‖) from `inner_products`; 0 where one of them is zero."""
    both = (square_a > 0) & (square_b > 0)
    # Root by root: the product of the squares could underflow.
    lengths = jnp.sqrt(jnp.where(both, square_a, 1.0)) * jnp.sqrt(jnp.where(both, square_b, 1.0))
    return jnp.where(both, product / lengths, 0.0)


def as_tree(d: Direction, like: Params) -> Params:
    """The leaves as a tree with the dtypes of another."""
    leaves, treedef = jax.tree.flatten(like)
    return treedef.unflatten([x.astype(y.dtype) for x, y in zip(d.leaves, leaves, strict=True)])


class Lengths(eqx.Module):
    """Squares of norms, of what is divided by the scale, logs of norms, and where norms are not zero."""

    square: PerGroup
    log: PerGroup
    positive: Bool[Array, " groups"]

    @property
    def inverse(self) -> PerGroup:
        """What a direction, divided by its scale, is multiplied by to have norm 1; 0 where it is zero."""
        return jnp.where(self.positive, lax.rsqrt(jnp.where(self.positive, self.square, 1.0)), 0.0)


def lengths(d: Direction, square: PerGroup) -> Lengths:
    """Of a direction whose `inner_products` with itself are known. A log is finite where there is none."""
    positive = square > 0
    return Lengths(square, 0.5 * jnp.log(jnp.where(positive, square, 1.0)) + jnp.log(d.scale), positive)


def zero_lengths(groups: Groups, dtype: np.dtype) -> Lengths:
    """Those of `zero_direction`."""
    zeros = jnp.zeros(len(groups), dtype)
    return Lengths(zeros, zeros, jnp.zeros(len(groups), bool))


def log_ratio(a: Lengths, b: Lengths, limit: float = 10.0) -> PerGroup:
    """log(‖a‖/‖b‖), cut to ±`limit`; 0 where one of them is zero."""
    return cut_log(a.log - b.log, a.positive & b.positive, limit)


def cut_log(value: PerGroup, where: Bool[Array, " groups"], limit: float = 10.0) -> PerGroup:
    """A logarithm as the networks see it: cut to ±`limit`, 0 where there is none."""
    return jnp.where(where, jnp.clip(value, -limit, limit), 0.0)


def running_curvature(
    log_curvature: PerGroup, known: Bool[Array, " groups"], y: Lengths, u: Lengths, log_decay: float
) -> tuple[PerGroup, Bool[Array, " groups"]]:
    """log of L = max(decay·L, ‖y‖/‖u‖), and where there is one.

    Where nothing was measured, because the gradient has not changed or the params have not moved, L stays.
    """
    measured = y.positive & u.positive
    now = jnp.where(measured, y.log - u.log, 0.0)
    later = jnp.where(measured, jnp.maximum(log_curvature + log_decay, now), log_curvature)
    return jnp.where(known, later, now), known | measured


def first_of(first: Lengths, now: Lengths) -> Lengths:
    """The lengths of the first gradient that is not zero."""
    return jax.tree.map(lambda x, y: jnp.where(first.positive, x, y), first, now)


def has_grown(g: Lengths, first: Lengths) -> Bool[Array, " groups"]:
    """Where a gradient is longer than the first one was: what the networks answer then is not trusted."""
    return g.positive & first.positive & (g.log > first.log)


def first_move(groups: Groups, u: Lengths, log_size: Float[Array, ""], log_reference: PerGroup) -> PerGroup:
    """log of the length of a move as long as no curvature is known.

    Its RMS is what `log_size` says, times the reference; after a move that has not changed the gradient at
    all, twice that of the last update, up to a million times the first one.
    """
    half_log_n = 0.5 * jnp.log(jnp.asarray(groups.sizes, u.log.dtype))
    shortest = log_size.astype(u.log.dtype) + log_reference + half_log_n
    again = jnp.clip(u.log + math.log(2), shortest, shortest + math.log(1e6))
    return jnp.where(u.positive, again, shortest)


def bounded_exp(x: PerGroup) -> PerGroup:
    """exp without infinities."""
    return jnp.exp(jnp.minimum(x, 85.0))


def sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Without XLA's own division, which takes a third longer on a CPU."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def log_rms(tree: Params, groups: Groups) -> PerGroup:
    """The log of the root mean square of a whole tree, for every group; 0 if all is zero."""
    whole = groups_of(tree, "tree")
    if not len(whole):
        return jnp.zeros(0, wide_dtype(tree))
    d = direction(whole, tree)
    length = lengths(d, inner_products(whole, [d], ((0, 0),))[0, 0])
    value = jnp.where(length.positive, length.log - 0.5 * np.log(whole.sizes[0]), 0.0)
    return jnp.broadcast_to(value, (len(groups),))
