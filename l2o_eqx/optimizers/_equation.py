"""An optimizer that is one equation: a sum of directions that have names, each with a coefficient."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._errors import ArgumentError, check
from .._misc import at_least_float32, root_mean_square, tree_norm
from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractOptimizer
from ._decay import decay_factor
from ._newton_schulz import near_orthogonal

# What a term remembers of a tensor: running means by these names, and the rest by others.
_MEANS = {"m0.5": 0.5, "m0.9": 0.9, "m0.99": 0.99}
_SQUARE_DECAY, _CURVATURE_DECAY, _FIRST_MOVE = 0.99, 0.99, 1e-3
_UNIT = 0.01
_NEWTON_SCHULZ_STEPS, _MUON_FLOOR = 3, 0.01
# Before the name of a term: what it is multiplied by.
_COSINE, _FAN_IN, _LENGTH = "cos*", "fan*", "run*"
_FAN_IN_UNIT, _LENGTH_UNIT = 1000, 100

Past = dict[str, Float[Array, "..."]]


class _Seen(NamedTuple):
    """What a direction is made of: of one tensor, with the gradient of this step in the running means."""

    grad: Float[Array, "*shape"]
    param: Float[Array, "*shape"]
    past: Past
    steps: Float[Array, ""]

    def mean(self, name: str) -> Float[Array, "*shape"]:
        return self.grad if name == "g" else self.past[name] / (1 - _MEANS[name] ** self.steps)

    def over_root(self, name: str) -> Float[Array, "*shape"]:
        square = self.past["v"] / (1 - _SQUARE_DECAY**self.steps)
        return self.mean(name) * lax.rsqrt(square + 1e-6 * jnp.mean(square) + 1e-37)

    def of_length_one(self, name: str) -> Float[Array, "*shape"]:
        return _of_length_one(self.mean(name))

    def over_curvature(self) -> Float[Array, "*shape"]:
        largest = self.past["L"]
        first = _FIRST_MOVE * self.of_length_one("g")
        return jnp.where(largest > 0, self.grad / jnp.where(largest > 0, largest, 1), first)

    def adamuon(self) -> Float[Array, "*shape"]:
        square = self.past["w"] / (1 - _SQUARE_DECAY**self.steps)
        return _muon(self.mean("m0.5")) * lax.rsqrt(square + _MUON_FLOOR)


class _Term(NamedTuple):
    direction: Callable[[_Seen], Float[Array, "*shape"]]
    remembers: tuple[str, ...] = ()


def _terms() -> dict[str, _Term]:
    found = {"g": _Term(lambda seen: seen.grad)}
    for name in _MEANS:
        found[name] = _Term(lambda seen, name=name: seen.mean(name), (name,))
    for name in ("g", *_MEANS):
        own = () if name == "g" else (name,)
        found[f"{name}/sqrt(v)"] = _Term(lambda seen, name=name: seen.over_root(name), ("v", *own))
    for name in ("g", "m0.9"):
        own = () if name == "g" else (name,)
        found[f"sign({name})"] = _Term(lambda seen, name=name: jnp.sign(seen.mean(name)), own)
        found[f"{name}/rms({name})"] = _Term(lambda seen, name=name: seen.of_length_one(name), own)
    for name in ("m0.5", "m0.9"):
        found[f"muon({name})"] = _Term(lambda seen, name=name: _muon(seen.mean(name)), (name,))
    found["adamuon(m0.5)"] = _Term(_Seen.adamuon, ("m0.5", "w"))
    found["g/L"] = _Term(_Seen.over_curvature, ("last g", "last u", "L"))
    found["u"] = _Term(lambda seen: seen.past["last u"], ("last u",))
    found["theta"] = _Term(lambda seen: seen.param)
    return found


_TERMS = _terms()
TERMS = tuple(f"{cosine}{name}" for cosine in ("", _COSINE) for name in _TERMS)


def _name(term: str) -> str:
    for factor in (_COSINE, _FAN_IN, _LENGTH):
        term = term.removeprefix(factor)
    return term


class EquationState(eqx.Module):
    """What `Equation` carries: how many steps there were and will be, and what its terms remember.

    `pasts` are of each tensor, by name.
    """

    step: Int[Array, ""]
    horizon: Float[Array, ""]
    pasts: list[Past]


class Equation(AbstractOptimizer):
    """Σ_k c_k·D_k: directions that are known by name, each times a coefficient, which are meta-parameters.

    `l2o_eqx.distill` fits one to what a trained optimizer does. With a single term it is a hand-designed
    optimizer whose rate `meta_train` learns: `Equation(("m0.9/sqrt(v)",), (-0.01,))` begins as Adam.

    The terms, of each tensor, with running means m_β and v of g and g² that are corrected for their start
    at zero:

    - `"g"`, `"m0.5"`, `"m0.9"`, `"m0.99"`;
    - `"g/sqrt(v)"`, `"m0.9/sqrt(v)"` and those of the other means, with v at 0.99;
    - `"sign(g)"`, `"sign(m0.9)"`; `"g/rms(g)"`, `"m0.9/rms(m0.9)"`, of root mean square 1;
    - `"muon(m0.5)"`, `"muon(m0.9)"`: a matrix with its singular values brought near one and root mean
        square 1; any other tensor over its root mean square. `"adamuon(m0.5)"`: the same over √(w + 1/100), w
        the running mean of its square at 0.99;
    - `"g/L"`, with the running largest curvature L = max(0.99·L, ‖g_t − g_{t−1}‖/‖u‖); as long as there is
        none, g/(1000·rms(g));
    - `"u"`, the last update, and `"theta"`, the params.

    Before its name may stand, in this order, what a term is multiplied by: `cos*`, (1 + cos πs)/2 + 1/100, s
    the share of the steps done; `fan*`, (1000/fan-in)^¼, fan-in being all axes but the first of a tensor with
    several, and 1000 otherwise; `run*`, (100/H)^¼ for a run of H steps.

    **Arguments:**

    - `terms`: names of these.
    - `coefficients`: c_k, as many. What is trained is c_k in units of |c_k| as given here (of 0.01 where that
        is zero), so that one learning rate suits all.
    - `num_steps`: how many steps there will be, where `init` is not told.

    **Raises:** `ValueError` for no terms, unknown ones or one twice, another number of coefficients, a number
    of steps below 1; in `update`, without params where a term needs them.

    Reference: terms as in Bello et al. 2017, "Neural optimizer search with reinforcement learning"
    (arXiv:1709.07417), and the optimizers that `LearnedMomentum` and `AdamMLP` cite.
    """

    weights: Float[Array, " terms"]
    terms: tuple[str, ...] = eqx.field(static=True)
    units: tuple[float, ...] = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __init__(
        self,
        terms: tuple[str, ...] = ("m0.9/sqrt(v)",),
        coefficients: tuple[float, ...] = (-0.01,),
        *,
        num_steps: int = 100,
    ):
        terms = check_terms("Equation", terms)
        check(
            "`Equation(...)` needs one coefficient for each term, and a step. Got "
            f"terms={terms}, coefficients={tuple(coefficients)}, num_steps={num_steps}.",
            coefficients=(coefficients, len(coefficients) == len(terms)),
            num_steps=(num_steps, num_steps >= 1),
        )
        units = tuple(abs(float(c)) or _UNIT for c in coefficients)
        weights = [c / unit for c, unit in zip(coefficients, units, strict=True)]
        self.weights = jnp.asarray(weights, jnp.result_type(float))
        self.terms = terms
        self.units = units
        self.num_steps = num_steps

    @property
    def coefficients(self) -> Float[Array, " terms"]:
        """c_k."""
        return self.weights * jnp.asarray(self.units, self.weights.dtype)

    def __str__(self) -> str:
        products = " ".join(
            f"{'-' if c < 0 else '+'} {abs(c):.3g} {term}"
            for c, term in zip(self.coefficients.tolist(), self.terms, strict=True)
        )
        return f"update = {products.removeprefix('+ ')}"

    def init(self, params: Params, num_steps: StepNumber | None = None) -> State:
        """The state before the first of `num_steps` steps, by default as many as the constructor was told."""
        horizon = jnp.asarray(self.num_steps if num_steps is None else num_steps, jnp.result_type(float))
        pasts = [no_past(self.terms, leaf) for leaf in jax.tree.leaves(params)]
        return EquationState(jnp.zeros((), jnp.int32), horizon, pasts)

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        return self.init(params, num_steps)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        if params is None and any(_name(term) == "theta" for term in self.terms):
            raise ArgumentError(
                "This `Equation` has the params in it: hand them to `update`.", argument="params"
            )
        leaves, treedef = jax.tree.flatten(grads)
        updates, pasts = [], []
        points, coefficients = jax.tree.leaves(grads if params is None else params), self.coefficients
        for g, p, past in zip(leaves, points, state.pasts, strict=True):
            found, past = directions(self.terms, g, p, past, state.step, state.horizon)
            products = zip(coefficients.astype(found[0].dtype), found, strict=True)
            update = functools.reduce(jnp.add, [c * d for c, d in products])
            updates.append(update.astype(g.dtype))
            pasts.append(with_update(past, update))
        state = EquationState(state.step + 1, state.horizon, pasts)
        return treedef.unflatten(updates), state


def check_terms(where: str, terms: Sequence[str]) -> tuple[str, ...]:
    """The terms as a tuple.

    **Raises:** `ArgumentError`, in the name of `where`, for none, unknown ones, or one twice.
    """
    odd = [term for i, term in enumerate(terms) if _name(term) not in _TERMS or term in terms[:i]]
    if odd or not terms:
        raise ArgumentError(
            f"`{where}(terms={tuple(terms)})` needs different ones of {', '.join(_TERMS)}, or one of "
            f"these behind some of {_COSINE}, {_FAN_IN} and {_LENGTH}.",
            argument="terms",
            given=tuple(terms),
            possible=TERMS,
        )
    return tuple(terms)


def no_past(terms: Sequence[str], leaf: Float[Array, "*shape"]) -> Past:
    """What terms remember of a tensor before the first step."""
    zeros = jnp.zeros(leaf.shape, at_least_float32(leaf).dtype)
    names = dict.fromkeys(name for t in terms for name in _TERMS[_name(t)].remembers)
    return {name: jnp.zeros((), zeros.dtype) if name == "L" else zeros for name in names}


def directions(
    terms: Sequence[str],
    grad: Float[Array, "*shape"],
    param: Float[Array, "*shape"],
    past: Past,
    step: Int[Array, ""],
    horizon: Float[Array, ""],
) -> tuple[list[Float[Array, "*shape"]], Past]:
    """The directions of some terms, in at least float32, and what they remember then, but for the update."""
    g, past = at_least_float32(grad), dict(past)
    seen = _Seen(g, at_least_float32(param), past, (step + 1).astype(g.dtype))
    for name, beta in _MEANS.items():
        if name in past:
            past[name] = beta * past[name] + (1 - beta) * g
    if "v" in past:
        past["v"] = _SQUARE_DECAY * past["v"] + (1 - _SQUARE_DECAY) * jnp.square(g)
    if "w" in past:
        square = jnp.square(_muon(seen.mean("m0.5")))
        past["w"] = _SQUARE_DECAY * past["w"] + (1 - _SQUARE_DECAY) * square
    if "L" in past:
        moved, changed = tree_norm(past["last u"]), tree_norm(g - past["last g"])
        slope = jnp.where(moved > 0, changed / jnp.where(moved > 0, moved, 1), 0)
        past["L"] = jnp.maximum(_CURVATURE_DECAY * past["L"], slope)
        past["last g"] = g
    decay = decay_factor("cosine", step, horizon).astype(g.dtype)
    fan_in = max(1, math.prod(g.shape[1:])) if g.ndim > 1 else _FAN_IN_UNIT
    found = []
    for term in terms:
        direction = _TERMS[_name(term)].direction(seen)
        if _FAN_IN in term:
            direction = (_FAN_IN_UNIT / fan_in) ** 0.25 * direction
        if _LENGTH in term:
            direction = ((_LENGTH_UNIT / horizon) ** 0.25).astype(g.dtype) * direction
        found.append(decay * direction if term.startswith(_COSINE) else direction)
    return found, past


def with_update(past: Past, update: Float[Array, "*shape"]) -> Past:
    """The same with the update that was taken."""
    return {**past, "last u": at_least_float32(update)} if "last u" in past else past


def _of_length_one(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    rms = root_mean_square(x)
    return jnp.where(rms > 0, x / jnp.where(rms > 0, rms, 1), 0)


def _muon(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    if x.ndim < 2 or x.shape[0] < 2 or x.size == x.shape[0]:
        return _of_length_one(x)
    norm = tree_norm(x)
    return near_orthogonal(x, jnp.where(norm > 0, norm, 1), _NEWTON_SCHULZ_STEPS)
