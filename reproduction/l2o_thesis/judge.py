"""Whether a claim of the thesis holds for the restarts that were run.

A claim is decided by one rule: an interval of 95 % lies wholly where the claim wants it, or wholly where it
must not be; otherwise the claim is undecided, as it is of fewer than five restarts. `CONSTRUCTORS` say which
interval, and where: `figures.toml` has the parts of every claim by these words.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .experiment import Results
from .figures import Figure
from .statistics import (
    CONFIDENCE,
    Estimate,
    fisher_p,
    median_interval,
    number,
    ratio_of_medians,
    share_difference,
    share_of,
)

Status = Literal["holds", "does not hold", "undecided"]
# Results by panel, then by label.
PanelResults = Mapping[str, Mapping[str, Results]]
Part = Mapping[str, Any]
Samples = Sequence[np.ndarray]
Names = Sequence[str]

MIN_RESTARTS = 5
"""Fewer restarts decide nothing. With a probability of 2/2⁴ = 12 %, the median of what four restarts are
drawn from lies outside the whole range of the four, so that no interval of theirs can be trusted to 95 %;
with five restarts it is 6 %."""

# What happens in fewer restarts than this, if in any, does not happen.
_RARE = 0.05
# A median within a factor of another, and a share within a difference, are similar. The interval of two equal
# shares of 100 restarts each reaches to ±0.14: much less of a difference could never be found to be kept.
_FACTOR, _DIFFERENCE = (1 / 1.25, 1.25), (-0.2, 0.2)
_INF = float("inf")
_BELOW_1, _BELOW_0, _ABOVE_0 = np.nextafter(1.0, 0.0), np.nextafter(0.0, -1.0), np.nextafter(0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the restarts say about a claim or a part of one: in one word, in words, and in numbers."""

    status: Status
    statement: str
    estimates: tuple[Estimate, ...] = ()
    claim: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them: numbers that are not finite are `None`."""
        fields: dict[str, Any] = {n: getattr(self, n) for n in ("claim", "status", "statement")}
        return {**fields, "estimates": [estimate.to_json() for estimate in self.estimates]}


@dataclasses.dataclass(frozen=True)
class Question:
    """What decides a part of a claim.

    **Fields:**

    - `estimates`: the last one decides, the others are what it is made of.
    - `wanted`: both ends of its interval must lie there for the part to hold.
    - `allowed`: the part does not hold if the interval lies wholly outside.
    - `note`: what is asked, in words.
    - `p`: of a test that must find a difference, too.
    """

    estimates: tuple[Estimate, ...]
    wanted: tuple[float, float]
    allowed: tuple[float, float]
    note: str = ""
    p: float | None = None

    def answer(self, restarts: int | None) -> Verdict:
        """The verdict; `restarts` are as many as the smallest group has, `None` where there are no groups."""
        found = self.estimates[-1]
        low, high = (found.value, found.value) if restarts is None else (found.low, found.high)
        enough = restarts is None or restarts >= MIN_RESTARTS
        status: Status = "undecided"
        if enough and (self.p is None or self.p < 1 - CONFIDENCE):
            if high < self.allowed[0] or low > self.allowed[1]:
                status = "does not hold"
            elif self.wanted[0] <= low and high <= self.wanted[1]:
                status = "holds"
        estimates = self.estimates + (() if self.p is None else (number(self.p, "Fisher's exact p"),))
        few = "" if enough else f"{restarts} restarts decide nothing, {MIN_RESTARTS} are needed"
        said = [*(estimate.in_words() for estimate in estimates), self.note, few]
        return Verdict(status, "; ".join(filter(None, said)), estimates)


def _medians(samples: Samples, names: Names, part: Part) -> tuple[Estimate, ...]:
    medians = [median_interval(x, f"median of {name}") for x, name in zip(samples, names, strict=True)]
    ratio = ratio_of_medians(samples[0], samples[1], " / ".join(names), paired=part.get("paired", False))
    return (*medians, ratio)


def _shares(samples: Samples, names: Names) -> tuple[Estimate, ...]:
    shares = [share_of(x, f"share of {name}") for x, name in zip(samples, names, strict=True)]
    return (*shares, share_difference(samples[0], samples[1], " − ".join(names)))


def _threshold(found: Estimate, part: Part) -> Question:
    least, most = part.get("at_least", -_INF), part.get("at_most", _INF)
    asked = f"at most {most:g}" if "at_most" in part else f"at least {least:g}"
    return Question((found,), (least, most), (least, most), f"asked for is {asked}")


def _some(samples: Samples, names: Names, part: Part) -> Question:
    # One restart puts the whole interval above 0; of few it cannot be said that none ever would.
    share, least = share_of(samples[0], f"share {names[0]}"), 0 if samples[0].any() else _RARE
    note = f"asked for is at least one restart; no is none and an interval that ends below {_RARE:g}"
    return Question((share,), (_ABOVE_0, _INF), (least, _INF), note)


# Two medians that do not differ significantly are not yet similar, and that no difference was found says
# little where the interval is wide. Newcombe's interval is too narrow for a handful of restarts, so that
# Fisher's exact test has to find a difference of shares, too.
_SIMILAR = f"similar is within {_FACTOR[1]:g} times"
_NOT_SMALLER = f"asked for is no interval below 1, and none that begins below 1/{_FACTOR[1]:g}"
_SIMILAR_SHARES = f"similar is a difference of at most {_DIFFERENCE[1]:g}"
CONSTRUCTORS: dict[str, Callable[[Samples, Names, Part], Question]] = {
    "smaller": lambda s, n, part: Question(_medians(s, n, part), (-_INF, _BELOW_1), (-_INF, 1)),
    "similar": lambda s, n, part: Question(_medians(s, n, part), _FACTOR, _FACTOR, _SIMILAR),
    "not_smaller": lambda s, n, part: Question(
        _medians(s, n, part), (_FACTOR[0], _INF), (1, _INF), _NOT_SMALLER
    ),
    "median": lambda s, n, part: _threshold(median_interval(s[0], f"median of {n[0]}"), part),
    "share": lambda s, n, part: _threshold(share_of(s[0], f"share {n[0]}"), part),
    "exactly": lambda s, n, part: _threshold(number(s[0].item(), n[0]), part),
    "some": _some,
    "fewer": lambda s, n, part: Question(
        _shares(s, n), (-_INF, _BELOW_0), (-_INF, 0), p=fisher_p(s[0], s[1])
    ),
    "more": lambda s, n, part: Question(_shares(s, n), (_ABOVE_0, _INF), (0, _INF), p=fisher_p(s[0], s[1])),
    "similar_shares": lambda s, n, part: Question(_shares(s, n), _DIFFERENCE, _DIFFERENCE, _SIMILAR_SHARES),
}
"""By the word of a part: from one or two samples, their names, and the part, to what is asked."""

# What may be said beside, of one sample.
_BESIDE: dict[str, Callable[[np.ndarray, str], Estimate]] = {
    "median": lambda sample, what: median_interval(sample, f"median of {what}"),
    "share": lambda sample, what: share_of(sample, f"share {what}"),
    "least": lambda sample, what: number(sample.min(), what),
}


def judge(figure: Figure, results: PanelResults, measured: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts on a figure's claims: of several parts all must hold.

    **Arguments:**

    - `figure`: says the claims.
    - `results`: by panel and label, of what has been run.
    - `measured`: the numbers of the figure's measurement.
    """
    verdicts = []
    for claim, parts in figure.claims.items():
        found = [_verdict(part, results, measured) for part in parts]
        statuses = {verdict.status for verdict in found}
        status: Status = "holds" if statuses == {"holds"} else "undecided"
        status = "does not hold" if "does not hold" in statuses else status
        said = " / ".join(f"[{verdict.status}] {verdict.statement}" for verdict in found)
        others = [e for part in figure.beside.get(claim, ()) for e in _beside(part, results, measured)]
        words = [said if len(found) > 1 else found[0].statement, *(e.in_words() for e in others)]
        estimates = (*(e for verdict in found for e in verdict.estimates), *others)
        verdicts.append(Verdict(status, "; ".join(words), estimates, claim))
    return verdicts


def _verdict(part: Part, results: PanelResults, measured: Mapping[str, Any]) -> Verdict:
    (word,) = part.keys() & CONSTRUCTORS
    samples, names = _samples(word, part, results, measured), _names(word, part)
    if not all(sample.size for sample in samples):
        return Verdict("undecided", f"{' against '.join(names)}: no such restarts yet")
    restarts = None if word == "exactly" else min(sample.size for sample in samples)
    return CONSTRUCTORS[word](samples, names, part).answer(restarts)


def _beside(part: Part, results: PanelResults, measured: Mapping[str, Any]) -> list[Estimate]:
    if "values" in part:
        return [number(_INF if x is None else x, what) for what, x in measured[part["values"]].items()]
    (word,) = part.keys() & _BESIDE
    (sample,) = _samples(word, part, results, measured)
    return [_BESIDE[word](sample, part["what"])] if sample.size else []


def _names(word: str, part: Part) -> list[str]:
    # Two samples are named by `names`, or else by their series; a single one, or what both are of, by `what`.
    if "names" in part or word in _BESIDE or isinstance(part[word], str):
        return part.get("names") or [part["what"]]
    first, second = (series.partition("/")[2] for series in part[word])
    return [f"{part['what']}, {first}" if "what" in part else first, second]


def _samples(word: str, part: Part, results: PanelResults, measured: Mapping[str, Any]) -> list[np.ndarray]:
    series = [part[word]] if isinstance(part[word], str) else part[word]
    samples = []
    for i, name in enumerate(series):
        of, where = (x[i] if isinstance(x, list) else x for x in (part["of"], part.get("where", "")))
        panel, _, label = name.partition("/")
        one = (measured if panel == "measured" else results[panel]).get(label)
        values = np.zeros(0) if one is None else _quantity(of, one, measured)
        samples.append(values[_quantity(where, one, measured)] if where and one is not None else values)
    # Several series may make one sample.
    return [np.concatenate(samples)] if word in _BESIDE and len(samples) > 1 else samples


_OPERATIONS = {"<": np.less, ">=": np.greater_equal, ">": np.greater, "/": np.divide}
_QUANTITIES: dict[str, Callable[[Results], np.ndarray]] = {
    "final": Results.final,
    "last": Results.last,
    "early": Results.early,
    "first": lambda r: r.at(0),
    "fluctuation": Results.fluctuation,
    "near": Results.near_chance,
    "near_in_loss": lambda r: r.near_chance(in_loss=True),
    "errors": lambda r: 1.0 - r.numbers("accuracy").astype(float),
    "lost_first": lambda r: r.numbers("zero_share/layers.0") > 0,
    "kept_first": lambda r: r.numbers("zero_share/layers.0") == 0,
}


def _quantity(words: str, of: Any, measured: Mapping[str, Any]) -> Any:
    """What a part is about, of results or of measured numbers: for example `final < 0.9 first`.

    Names are those of `_QUANTITIES`, or of what was measured; `at 80` is the loss at a step, `@a/b` a number
    of the measurement, and a number before a name a factor.
    """
    for sign, operation in _OPERATIONS.items():
        left, found, right = words.partition(f" {sign} ")
        if found:
            return operation(_quantity(left, of, measured), _quantity(right, of, measured))
    first, _, rest = words.partition(" ")
    if first == "at":
        return of.at(int(rest))
    if first.startswith("@"):
        found = measured
        for name in first[1:].split("/"):
            found = found[name]
        return _INF if found is None else found
    if first in _QUANTITIES:
        return _QUANTITIES[first](of)
    if first.replace(".", "").isdigit():
        return float(first) * _quantity(rest, of, measured) if rest else float(first)
    return np.asarray(of[words] if isinstance(of, Mapping) else of.numbers(words), float)
