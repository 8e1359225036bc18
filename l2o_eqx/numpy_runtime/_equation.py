import math
import re
from dataclasses import dataclass

from ._arrays import Array, Arrays, State, cast, in_order, library, norm_of, own_dtype, shapes_of, zeros
from ._horizon import cosine_decay, horizon_of
from ._matrices import MUON_FAN_IN, MUON_FLOOR, is_matrix, near_orthogonal

# As in l2o_eqx.optimizers.Equation.
_MEANS, _FIRST_MOVE, _UNIT_STEPS, _SQUARE_DECAY = {"m0.5": 0.5, "m0.9": 0.9, "m0.99": 0.99}, 1e-3, 100, 0.99
_FACTORS = ("cos*", "fan*", "run*")


@dataclass
class Equation:
    """`l2o_eqx.optimizers.Equation`; the fields are those of the file."""

    weights: Array
    terms: list[str]
    units: list[float]
    num_steps: int

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first of `num_steps` steps, by default as many as it was trained for.

        **Raises:** `ValueError` for a number of steps below 1.
        """
        horizon, pasts = horizon_of("Equation", self.num_steps, num_steps), {}
        names = " ".join(self.terms)
        kept = [mean for mean in _MEANS if mean in re.findall(r"m0\.\d+", names)]
        kept += [own for own, where in (("v", "/sqrt(v)"), ("w", "adamuon")) if where in names]
        if any(_without_factors(term) in ("u", "g/L") for term in self.terms):
            kept.append("last u")
        if "g/L" in names:
            kept.append("last g")
        for name, x in params.items():
            pasts[name] = {own: zeros(x) for own in kept}
            if "g/L" in names:
                pasts[name]["L"] = zeros(x).sum()
        return {"shapes": shapes_of(params), "step": 0, "horizon": horizon, "pasts": pasts}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state.

        **Raises:** `ValueError` without params where a term needs them.
        """
        if params is None and any(_without_factors(term) == "theta" for term in self.terms):
            raise ValueError("this Equation has the params in it: hand them to `update`")
        grads = in_order(grads, state)
        updates, pasts = {}, {}
        for name, x in grads.items():
            past = dict(state["pasts"][name])
            if not math.prod(x.shape):
                updates[name], pasts[name] = x, past
                continue
            param = x if params is None else params[name]
            update = self._update_tensor(cast(x, own_dtype(x)), cast(param, own_dtype(x)), past, state)
            if "last u" in past:
                past["last u"] = update
            updates[name], pasts[name] = cast(update, x.dtype), past
        return updates, {**state, "step": state["step"] + 1, "pasts": pasts}

    def _update_tensor(self, g: Array, param: Array, past: State, state: State) -> Array:
        # `past` is filled with what follows, but for the update.
        xp, steps, horizon = library(g), state["step"] + 1, state["horizon"]
        for own in _MEANS.keys() & past.keys():
            past[own] = _MEANS[own] * past[own] + (1 - _MEANS[own]) * g
        found = {own: past[own] / (1 - b**steps) for own, b in _MEANS.items() if own in past}
        found |= {"g": g, "theta": param}
        correction = 1 - _SQUARE_DECAY**steps
        if "v" in past:
            past["v"] = _SQUARE_DECAY * past["v"] + (1 - _SQUARE_DECAY) * xp.square(g)
            square = past["v"] / correction
            found["1/sqrt(v)"] = 1 / xp.sqrt(square + 1e-6 * square.mean() + 1e-37)
        if "w" in past:
            muon = _muon(found["m0.5"])
            past["w"] = _SQUARE_DECAY * past["w"] + (1 - _SQUARE_DECAY) * xp.square(muon)
            found["adamuon(m0.5)"] = muon / xp.sqrt(past["w"] / correction + MUON_FLOOR)
        if "L" in past:
            moved, changed = norm_of(past["last u"]), norm_of(g - past["last g"])
            slope = xp.where(moved > 0, changed / xp.where(moved > 0, moved, 1.0), 0.0)
            past["L"], past["last g"] = xp.maximum(_SQUARE_DECAY * past["L"], slope), g
            some = past["L"] > 0
            found["g/L"] = xp.where(some, g / xp.where(some, past["L"], 1.0), _FIRST_MOVE * _of_rms_one(g))
        if "last u" in past:
            found["u"] = past["last u"]

        share, fan_in = min(state["step"] / horizon, 1.0), math.prod(g.shape[1:])
        factors = {
            "cos*": cosine_decay(share),
            "fan*": (MUON_FAN_IN / max(1, fan_in)) ** 0.25 if len(g.shape) > 1 else 1.0,
            "run*": (_UNIT_STEPS / horizon) ** 0.25,
        }
        total = 0 * g
        for weight, unit, term in zip(self.weights, self.units, self.terms, strict=True):
            factor = math.prod(x for name, x in factors.items() if name in term)
            direction = _direction(_without_factors(term), found)
            total = total + cast(weight, g.dtype) * (unit * factor) * direction
        return total


def _without_factors(term: str) -> str:
    for factor in _FACTORS:
        term = term.removeprefix(factor)
    return term


def _direction(term: str, found: Arrays) -> Array:
    # Those that are made of others are computed here: x/sqrt(v), sign(x), x/rms(x) and muon(x).
    if term in found:
        return found[term]
    if term.endswith("/sqrt(v)"):
        return found[term.removesuffix("/sqrt(v)")] * found["1/sqrt(v)"]
    function, _, name = term.removesuffix(")").rpartition("(")
    x = found[name]
    if function == "sign":
        return library(x).sign(x)
    return _muon(x) if function == "muon" else _of_rms_one(x)


def _of_rms_one(x: Array) -> Array:
    xp = library(x)
    rms = xp.sqrt(xp.square(x).mean())
    return xp.where(rms > 0, x / xp.where(rms > 0, rms, 1.0), 0.0)


def _muon(x: Array) -> Array:
    if not is_matrix(x):
        return _of_rms_one(x)
    norm = norm_of(x)
    return near_orthogonal(x, library(x).where(norm > 0, norm, 1.0))
