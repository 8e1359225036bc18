"""Whether a claim of the thesis holds for the restarts that were run.

A claim is decided by one rule: an interval of 95 % lies wholly where the claim wants it, or wholly where it must
not be; otherwise the claim is undecided, as it is of fewer than five restarts. The entries of `CONSTRUCTORS` say
which interval, and where: `figures.toml` has the parts of every claim by these words.
"""

import dataclasses
import math
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

MIN_RESTARTS = 5
"""Fewer restarts decide nothing. With a probability of 2/2⁴ = 12 %, the median of what four restarts are
drawn from lies outside the whole range of the four, so that no interval of theirs can be trusted to 95 %;
with five restarts it is 6 %."""

# What happens in fewer restarts than this, if in any, does not happen.
_RARE = 0.05
# A median within a factor of another, and a share within a difference, are similar. The interval of two equal
# shares of 100 restarts each reaches to ±0.14: much less of a difference could never be found to be kept.
_FACTOR, _DIFFERENCE = 1.25, 0.2
_BELOW_1, _BELOW_0, _ABOVE_0 = np.nextafter(1.0, 0.0), np.nextafter(0.0, -1.0), np.nextafter(0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the restarts say about a claim, or a part of one.

    **Fields:**

    - `status`: `"holds"`, `"does not hold"` or `"undecided"`.
    - `statement`: the numbers in words.
    - `estimates`: the numbers.
    - `claim`: its number.
    """

    status: Status
    statement: str
    estimates: tuple[Estimate, ...] = ()
    claim: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them: numbers that are not finite are `None`."""
        return {
            "claim": self.claim,
            "status": self.status,
            "statement": self.statement,
            "estimates": [estimate.to_json() for estimate in self.estimates],
        }


@dataclasses.dataclass(frozen=True)
class Question:
    """What decides a part of a claim.

    **Fields:**

    - `estimates`: the last one decides, the others are what it is made of.
    - `wanted`: both ends of its interval must lie there for the part to hold.
    - `allowed`: the part does not hold if the interval lies wholly outside.
    - `note`: what is asked, in words.
    - `more`: estimates after the one that decides.
    - `sure`: whether something else lets it be decided.
    """

    estimates: tuple[Estimate, ...]
    wanted: tuple[float, float]
    allowed: tuple[float, float]
    note: str = ""
    more: tuple[Estimate, ...] = ()
    sure: bool = True

    def answer(self, restarts: int | None) -> Verdict:
        """The verdict; `restarts` are as many as the smallest group has, `None` where there are no groups."""
        found = self.estimates[-1]
        low, high = (found.value, found.value) if restarts is None else (found.low, found.high)
        status: Status = "undecided"
        if self.sure and (high < self.allowed[0] or low > self.allowed[1]):
            status = "does not hold"
        elif self.sure and self.wanted[0] <= low and high <= self.wanted[1]:
            status = "holds"
        notes = [self.note] if self.note else []
        if restarts is not None and restarts < MIN_RESTARTS:
            status = "undecided"
            notes.append(f"{restarts} restarts decide nothing, {MIN_RESTARTS} are needed")
        estimates = (*self.estimates, *self.more)
        return Verdict(status, "; ".join([*(e.in_words() for e in estimates), *notes]), estimates)


def _smaller(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    # The interval of the ratio of the medians lies below 1, or above.
    return Question(_medians_and_ratio(samples, names, part), (-math.inf, _BELOW_1), (-math.inf, 1))


def _similar(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    # Two medians that do not differ significantly are not yet similar.
    band = (1 / _FACTOR, _FACTOR)
    return Question(
        _medians_and_ratio(samples, names, part), band, band, f"similar is within {_FACTOR:g} times"
    )


def _not_smaller(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    # One side of `similar`: that no difference was found says little where the interval is wide.
    note = f"asked for is no interval below 1, and none that begins below 1/{_FACTOR:g}"
    estimates = _medians_and_ratio(samples, names, part)
    return Question(estimates, (1 / _FACTOR, math.inf), (1, math.inf), note)


def _median(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    return _threshold(median_interval(samples[0], f"median of {names[0]}"), part)


def _share(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    return _threshold(share_of(samples[0], f"share {names[0]}"), part)


def _exactly(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    return _threshold(number(samples[0].item(), names[0]), part)


def _some(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    # One restart puts the whole interval above 0; of few it cannot be said that none ever would.
    share = share_of(samples[0], f"share {names[0]}")
    note = f"asked for is at least one restart; no is none and an interval that ends below {_RARE:g}"
    return Question((share,), (_ABOVE_0, math.inf), (0 if samples[0].any() else _RARE, math.inf), note)


def _fewer(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    return _differ(samples, names, (-math.inf, _BELOW_0), (-math.inf, 0))


def _more(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    return _differ(samples, names, (_ABOVE_0, math.inf), (0, math.inf))


def _similar_shares(samples: Sequence[np.ndarray], names: Sequence[str], part: Part) -> Question:
    band = (-_DIFFERENCE, _DIFFERENCE)
    note = f"similar is a difference of at most {_DIFFERENCE:g}"
    return Question(_shares_and_difference(samples, names), band, band, note)


CONSTRUCTORS: dict[str, Callable[[Sequence[np.ndarray], Sequence[str], Part], Question]] = {
    "smaller": _smaller,
    "similar": _similar,
    "not_smaller": _not_smaller,
    "median": _median,
    "share": _share,
    "exactly": _exactly,
    "some": _some,
    "fewer": _fewer,
    "more": _more,
    "similar_shares": _similar_shares,
}
"""By the word of a part: from one or two samples, their names, and the part, to what is asked."""


def _threshold(found: Estimate, part: Part) -> Question:
    if "at_most" in part:
        band, note = (-math.inf, part["at_most"]), f"asked for is at most {part['at_most']:g}"
    else:
        band, note = (part["at_least"], math.inf), f"asked for is at least {part['at_least']:g}"
    return Question((found,), band, band, note)


def _differ(samples, names, wanted, allowed) -> Question:
    # Newcombe's interval is too narrow for a handful of restarts, so that Fisher's exact test has to find a
    # difference, too.
    p = fisher_p(*samples)
    estimates = _shares_and_difference(samples, names)
    more = (number(p, "Fisher's exact p"),)
    return Question(estimates, wanted, allowed, more=more, sure=p < 1 - CONFIDENCE)


def _medians_and_ratio(samples, names, part) -> tuple[Estimate, ...]:
    medians = [median_interval(x, f"median of {name}") for x, name in zip(samples, names, strict=True)]
    ratio = ratio_of_medians(*samples, " / ".join(names), paired=part.get("paired", False))
    return (*medians, ratio)


def _shares_and_difference(samples, names) -> tuple[Estimate, ...]:
    shares = [share_of(x, f"share of {name}") for x, name in zip(samples, names, strict=True)]
    return (*shares, share_difference(*samples, " − ".join(names)))


def judge(figure: Figure, results: PanelResults, measured: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts on a figure's claims: of several parts all must hold.

    **Arguments:**

    - `figure`: says the claims.
    - `results`: by panel and label; of experiments that have not been run, those of no restarts.
    - `measured`: the numbers of the figure's measurement.
    """
    verdicts = []
    for claim, parts in figure.claims.items():
        found = [_verdict(part, results, measured) for part in parts]
        statuses = [verdict.status for verdict in found]
        status: Status = "holds" if set(statuses) == {"holds"} else "undecided"
        if "does not hold" in statuses:
            status = "does not hold"
        statement = found[0].statement
        if len(found) > 1:
            statement = " / ".join(f"[{verdict.status}] {verdict.statement}" for verdict in found)
        others = [e for part in figure.beside.get(claim, ()) for e in _beside(part, results, measured)]
        statement = "; ".join([statement, *(estimate.in_words() for estimate in others)])
        estimates = (*(e for verdict in found for e in verdict.estimates), *others)
        verdicts.append(Verdict(status, statement, estimates, claim))
    return verdicts


def _verdict(part: Part, results: PanelResults, measured: Mapping[str, Any]) -> Verdict:
    (word,) = part.keys() & CONSTRUCTORS
    samples = _samples(part, part[word], results, measured)
    names = _names(part, part[word])
    if not all(sample.size for sample in samples):
        return Verdict("undecided", f"{' against '.join(names)}: no such restarts yet")
    restarts = None if word == "exactly" else min(sample.size for sample in samples)
    return CONSTRUCTORS[word](samples, names, part).answer(restarts)


def _beside(part: Part, results: PanelResults, measured: Mapping[str, Any]) -> list[Estimate]:
    if "values" in part:
        return [number(np.inf if x is None else x, what) for what, x in measured[part["values"]].items()]
    (word,) = part.keys() & {"median", "share", "least"}
    (sample,) = _samples(part, part[word], results, measured)
    if not sample.size:
        return []
    if word == "share":
        return [share_of(sample, f"share {part['what']}")]
    if word == "median":
        return [median_interval(sample, f"median of {part['what']}")]
    return [number(sample.min(), part["what"])]


def _names(part: Part, chosen: Any) -> list[str]:
    # Two samples are named by `names`, or else by their series; a single one, or what both are of, by `what`.
    if "names" in part:
        return part["names"]
    if not isinstance(chosen, list) or len(part.keys() & {"share", "median"}):
        return [part["what"]]
    first, second = (series.partition("/")[2] for series in chosen)
    return [f"{part['what']}, {first}" if "what" in part else first, second]


def _samples(
    part: Part, chosen: str | list[str], results: PanelResults, measured: Mapping[str, Any]
) -> list[np.ndarray]:
    series = [chosen] if isinstance(chosen, str) else chosen
    of, where = (
        given if isinstance(given, list) else [given] * len(series)
        for given in (part["of"], part.get("where"))
    )
    samples = []
    for name, quantity, condition in zip(series, of, where, strict=True):
        panel, _, label = name.partition("/")
        one = measured.get(label, {}) if panel == "measured" else results[panel].get(label)
        values = np.zeros(0) if one is None else _quantity(quantity, one, measured)
        if condition is not None and one is not None:
            values = values[_quantity(condition, one, measured)]
        samples.append(values)
    # Several series of one sample.
    if part.keys() & {"share", "median"} and len(samples) > 1:
        return [np.concatenate(samples)]
    return samples


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

    Names are those of `_QUANTITIES`, or of what was measured; `at 80` is the loss at a step, `@a/b` a number of
    the measurement, and a number before a name a factor.
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
        return np.inf if found is None else found
    if first in _QUANTITIES:
        return _QUANTITIES[first](of)
    if first.replace(".", "").isdigit():
        return float(first) * _quantity(rest, of, measured) if rest else float(first)
    return np.asarray(of[words] if isinstance(of, Mapping) else of.numbers(words), float)
