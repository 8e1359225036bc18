"""Distillation: the equation that says best what a trained optimizer does."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._checks import check_sizes
from ._errors import ArgumentError
from ._misc import tree_norm
from ._types import Keys, Params, Scalar, State, StepNumber
from ._unroll import unroll
from .objectives import AbstractObjectiveFamily
from .optimizers import (
    AbstractOptimizer,
    AbstractWrapper,
    Equation,
    LearnedStart,
    PerLayer,
    Seen,
    as_optimizer,
    take_step,
)
from .optimizers._equation import TERMS, Past, check_terms, directions, no_past, with_update
from .optimizers._per_layer import Label, labels_of


class Fit(NamedTuple):
    """The best equation of so many terms, with R² on the runs that it was fitted to, and on others."""

    terms: tuple[str, ...]
    coefficients: tuple[float, ...]
    r2: float
    held_out_r2: float


class FittedEquation(eqx.Module):
    """An equation, and how well it says what the tensors of a group do.

    **Fields:**

    - `equation`: with its coefficients.
    - `fits`: the best equations of one term, two, …; of these it is the last.
    - `r2`, `held_out_r2`: 1 if all updates are as the equation says, 0 if it says nothing.
    - `all_terms_r2`: of all candidates together, on the runs fitted to: the most that these can say.
    """

    equation: Equation
    fits: tuple[Fit, ...]
    r2: float
    held_out_r2: float
    all_terms_r2: float

    def __str__(self) -> str:
        return f"{self.equation}   (R² {self.r2:.3f}, on other runs {self.held_out_r2:.3f})"


class Distillation(eqx.Module):
    """The result of `distill`.

    **Fields:**

    - `optimizer`: the equation, or with a `label` a `PerLayer` of them; of a `LearnedStart` in one of the
        same start; an optimizer like any other, for `as_optax`, `evaluate`, `compare`, `save`, and even
        `meta_train`.
    - `groups`: the equations by label; a single one is called `"all"`.
    """

    optimizer: Equation | PerLayer | LearnedStart
    groups: dict[str, FittedEquation]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {one}" for name, one in self.groups.items())


def distill(
    optimizer: AbstractOptimizer | optax.GradientTransformation,
    family: AbstractObjectiveFamily,
    *,
    num_steps: int,
    num_objectives: int = 16,
    max_terms: int = 4,
    min_gain: float = 0.01,
    terms: Sequence[str] = TERMS,
    label: Label | None = None,
    key: PRNGKeyArray,
) -> Distillation:
    """Fits an equation to the updates of an optimizer along its own runs.

    The optimizer runs on objectives of the family. By least squares, Σ_k c_k·D_k with constant c_k is fitted
    to its updates u, with those terms of the candidates that say most: the best choice of up to three, and
    from there on the term that adds most. It has `max_terms`, or as many as there are before the next one
    adds less than `min_gain` to R². Every tensor of every step weighs the same, however short its update:

        R² = 1 − mean of ‖u − Σ_k c_k·D_k‖² / ‖u‖²

    over steps, tensors and objectives, those without an update left out. An R² near 1 does not say that the
    equation is as good an optimizer: small errors of one direction add up along a run. So compare their
    losses, `compare({"network": optimizer, "equation": found.optimizer}, family, ...)`; `l2o distill` does.

    A learned start is no update: of a `LearnedStart` itself, the equation's runs begin at the same one.

    **Arguments:**

    - `optimizer`: learned, or of optax.
    - `family`: what it runs on.
    - `num_steps`: inner steps of each run; also of the equation, if one of its terms depends on that.
    - `num_objectives`: how many runs it is fitted to; as many others are there for `held_out_r2`.
    - `max_terms`, `min_gain`: when to stop; the first term is taken in any case.
    - `terms`: the candidates.
    - `label`: if given, an equation of its own for every group of tensors: `optimizers.by_leaf`, `by_layer`,
        `by_rank`, … as for `PerLayer`.
    - `key`: draws the objectives.

    **Returns:** a `Distillation`. One compiled program; it keeps sums over steps, not the steps.

    **Raises:** `ValueError` for sizes below 1, a gain outside [0, 1), unknown terms, a black-box optimizer,
    or one that never moves or is not finite.

    Reference: Zheng et al. 2022, "Symbolic learning to optimize" (arXiv:2203.06578); Maheswaranathan et al.
    2021, "Reverse engineering learned optimizers reveals known and novel mechanisms" (arXiv:2011.02159).
    """
    check_sizes("distill", num_steps=num_steps, num_objectives=num_objectives, max_terms=max_terms)
    if not 0 <= min_gain < 1:
        raise ArgumentError(
            f"`distill(min_gain=...)` must lie in [0, 1). Got {min_gain}.",
            argument="min_gain",
            given=min_gain,
        )
    candidates, learned = check_terms("distill", terms), as_optimizer(optimizer)
    if learned.is_black_box():
        raise ArgumentError(
            f"`distill(optimizer)`: a {type(learned).__name__} looks at no gradient.", argument="optimizer"
        )
    keys = jr.split(key, 2 * num_objectives)
    observed = _observe(learned, family, keys, num_steps, candidates, label or _all)
    groups = {
        name: _fit_equation(sums, num_objectives, num_steps, candidates, max_terms, min_gain)
        for name, sums in observed.items()
    }
    equations = {name: one.equation for name, one in groups.items()}
    found = equations[_ALL] if label is None else PerLayer(equations, label)
    begun = LearnedStart(found, learned.start) if isinstance(learned, LearnedStart) else found
    return Distillation(begun, groups)


_ALL = "all"
# Largest entries of a direction, in lengths of the update.
_LONGEST = 1e12


def _all(path: tuple[Any, ...], leaf: Any) -> str:
    del path, leaf
    return _ALL


def _fit_equation(
    sums: "_Sums",
    num_fitted: int,
    num_steps: int,
    candidates: tuple[str, ...],
    max_terms: int,
    min_gain: float,
) -> FittedEquation:
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
    fitted, others = (
        jax.tree.map(lambda x, part=part: x[part].sum(0), wide)
        for part in (slice(num_fitted), slice(num_fitted, None))
    )
    if not fitted.count > 0 or not others.count > 0:
        raise ArgumentError(
            "`distill(optimizer)`: it never moves, or its updates are not finite.", argument="optimizer"
        )
    subsets: list[tuple[int, ...]] = []
    fits: list[Fit] = []
    for size in range(1, min(max_terms, len(candidates)) + 1):
        best = _best_subset(fitted, size, subsets[-1] if subsets else ())
        coefficients = _fit(fitted, best)
        r2, held_out_r2 = (float(_r2(sums, best, coefficients)) for sums in (fitted, others))
        if fits and r2 - fits[-1].r2 < min_gain:
            break
        subsets.append(best)
        fits.append(Fit(tuple(candidates[k] for k in best), tuple(coefficients.tolist()), r2, held_out_r2))
    equation = Equation(fits[-1].terms, fits[-1].coefficients, num_steps=num_steps)
    every = tuple(range(len(candidates)))
    most = max(fits[-1].r2, float(_r2(fitted, every, _fit(fitted, every))))
    return FittedEquation(equation, tuple(fits), fits[-1].r2, fits[-1].held_out_r2, most)


class _Sums(eqx.Module):
    # Over tensors and steps, of what is divided by ‖u‖²: D_k·D_l, D_k·u and u·u.
    products: Float[Array, "*batch terms terms"]
    along: Float[Array, "*batch terms"]
    count: Float[Array, "*batch"]


class _ObservedState(eqx.Module):
    inner: State
    step: Int[Array, ""]
    horizon: Float[Array, ""]
    pasts: list[Past]
    sums: dict[str, _Sums]


class _Observed(AbstractWrapper):
    """Does what the inner optimizer does, and sums up how that lies to the directions of some terms."""

    inner: AbstractOptimizer
    terms: tuple[str, ...] = eqx.field(static=True)
    label: Label = eqx.field(static=True)

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        count = len(self.terms)
        nothing = _Sums(jnp.zeros((count, count)), jnp.zeros(count), jnp.zeros(()))
        pasts = [no_past(self.terms, leaf) for leaf in jax.tree.leaves(params)]
        horizon = jnp.asarray(num_steps, jnp.result_type(float))
        sums = dict.fromkeys(jax.tree.leaves(labels_of(params, self.label)), nothing)
        inner = self.inner.init_for(params, num_steps)
        return _ObservedState(inner, jnp.zeros((), jnp.int32), horizon, pasts, sums)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        updates, inner = take_step(self.inner, Seen(grads, value, key), state.inner, params)
        sums, pasts = dict(state.sums), []
        trees = (grads, params, updates, labels_of(grads, self.label))
        for g, p, u, name, past in zip(*map(jax.tree.leaves, trees), state.pasts, strict=True):
            found, past = directions(self.terms, g, p, past, state.step, state.horizon)
            sums[name] = jax.tree.map(jnp.add, sums[name], _products(found, u))
            pasts.append(with_update(past, u))
        return updates, _ObservedState(inner, state.step + 1, state.horizon, pasts, sums)


def _products(found: list[Float[Array, "*shape"]], update: Float[Array, "*shape"]) -> _Sums:
    length = tree_norm(update.astype(found[0].dtype))
    moves = length > 0
    scale = jnp.where(moves, length, 1)
    unit = update.astype(found[0].dtype).ravel() / scale
    rows = jnp.stack([d.ravel() for d in found]) / scale
    # Of a direction that is so much longer than the update that sums would overflow, this step tells nothing.
    comparable = jnp.max(jnp.abs(rows), axis=1, keepdims=True, initial=0) < _LONGEST
    rows = jnp.where(comparable, rows, 0)
    sums = _Sums(rows @ rows.T, rows @ unit, unit @ unit)
    sound = moves & jnp.isfinite(length)
    return jax.tree.map(lambda x: jnp.where(sound, x, 0).astype(jnp.float32), sums)


@eqx.filter_jit
def _observe(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    keys: Keys,
    num_steps: int,
    terms: tuple[str, ...],
    label: Label,
) -> dict[str, _Sums]:
    observed = _Observed(optimizer, terms, label)

    def one(key):
        okey, pkey, skey = jr.split(key, 3)
        objective = family.sample(okey)
        params = observed.initial_params(objective.init(pkey))
        state = observed.init_for(params, num_steps)
        return unroll(observed, objective, params, state, num_steps, key=skey).state.sums

    return lax.map(one, keys)


# Up to as many terms all choices are tried.
_EXHAUSTIVE = 3


def _best_subset(sums: _Sums, size: int, smaller: tuple[int, ...]) -> tuple[int, ...]:
    rest = [k for k in range(len(sums.along)) if k not in smaller]
    if size <= _EXHAUSTIVE:
        subsets = list(itertools.combinations(range(len(sums.along)), size))
    else:
        subsets = [(*smaller, k) for k in rest]
    coefficients = _fit(sums, np.array(subsets))
    return subsets[int(np.argmax(_r2(sums, np.array(subsets), coefficients)))]


def _fit(sums: _Sums, chosen: Any) -> Float[np.ndarray, "*choices terms"]:
    # Columns of length one first: directions have lengths of many decades.
    products, along = _restricted(sums, chosen)
    lengths = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    lengths = np.where(lengths > 0, lengths, 1.0)
    scaled = products / (lengths[..., :, None] * lengths[..., None, :])
    # The sums are of float32, so what lies below its resolution is no direction of its own.
    inverse = np.linalg.pinv(scaled, rcond=1e-6, hermitian=True)
    return np.einsum("...kl,...l->...k", inverse, along / lengths) / lengths


def _r2(sums: _Sums, chosen: Any, coefficients: Float[np.ndarray, "*choices terms"]) -> Any:
    products, along = _restricted(sums, chosen)
    explained = 2 * np.sum(coefficients * along, axis=-1)
    explained -= np.einsum("...k,...kl,...l->...", coefficients, products, coefficients)
    return explained / sums.count


def _restricted(sums: _Sums, chosen: Any) -> tuple[np.ndarray, np.ndarray]:
    k = np.asarray(chosen)
    return np.asarray(sums.products)[k[..., :, None], k[..., None, :]], np.asarray(sums.along)[k]
