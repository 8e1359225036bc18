"""Whether a claim of the thesis holds for the restarts that were run.

A claim holds, or does not, only if a whole confidence interval says so; otherwise it is undecided. So it
is where there are no restarts yet, as in a figure that was interrupted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from ._statistics import (
    Estimate,
    fisher_p,
    median_interval,
    ratio_of_medians,
    share_difference,
    share_interval,
)

Status = Literal["holds", "does not hold", "undecided"]

MIN_RESTARTS = 5
"""Fewer restarts decide nothing. With a probability of 2/2⁴ = 12 %, the median of what four restarts are
drawn from lies outside the whole range of the four, so that no interval of theirs can be trusted to 95 %;
with five restarts it is 6 %."""

_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the restarts say about one claim.

    **Fields:**

    - `claim`: the number of the claim, a key of `CLAIMS`.
    - `status`: `"holds"`, `"does not hold"` or `"undecided"`.
    - `statement`: the numbers in words.
    - `estimates`: the numbers.
    """

    claim: int
    status: Status
    statement: str
    estimates: tuple[Estimate, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them: numbers that are not finite are `None`."""
        estimates = [estimate.to_json() for estimate in self.estimates]
        return {
            "claim": self.claim,
            "status": self.status,
            "statement": self.statement,
            "estimates": estimates,
        }


def judge_smaller(
    claim: int,
    a: Float[np.ndarray, " restarts"],
    b: Float[np.ndarray, " others"],
    names: tuple[str, str],
    *,
    paired: bool = False,
    seed: int = 0,
) -> Verdict:
    """Whether the median of `a` is smaller than that of `b`.

    It holds if the interval of their ratio lies below 1, and does not hold if it lies above.

    **Arguments:**

    - `claim`: its number.
    - `a`, `b`: one number per restart, such as its final loss; infinite if it diverged.
    - `names`: what to call `a` and `b`.
    - `paired`, `seed`: as in `ratio_of_medians`.

    **Raises:** `ValueError` as `ratio_of_medians` does for pairs.
    """
    if not (a.size and b.size):
        return _not_run(claim, names)
    estimates = _medians_and_ratio(a, b, names, paired, seed)
    ratio = estimates[-1]
    status = _status(holds=ratio.high < 1, fails=ratio.low > 1)
    return _verdict(claim, status, estimates, min(a.size, b.size))


def judge_similar(
    claim: int,
    a: Float[np.ndarray, " restarts"],
    b: Float[np.ndarray, " others"],
    names: tuple[str, str],
    *,
    tolerance: float = 1.25,
    paired: bool = False,
    seed: int = 0,
) -> Verdict:
    """Whether the medians of `a` and `b` are within a factor of `tolerance` of each other.

    It holds if the interval of their ratio lies within [1/`tolerance`, `tolerance`], and does not hold if it
    lies wholly outside. Two medians that do not differ significantly are not yet similar.

    **Arguments:**

    - `claim`, `a`, `b`, `names`, `paired`, `seed`: as in `judge_smaller`.
    - `tolerance`: the factor, above 1.

    **Raises:** `ValueError` as `ratio_of_medians` does for pairs, and for a `tolerance` that is not above 1.
    """
    if not tolerance > 1:
        raise ValueError(f"`judge_similar(tolerance=...)` must be above 1. Got tolerance={tolerance}.")
    if not (a.size and b.size):
        return _not_run(claim, names)
    estimates = _medians_and_ratio(a, b, names, paired, seed)
    low, high = estimates[-1].low, estimates[-1].high
    status = _status(
        holds=low >= 1 / tolerance and high <= tolerance,
        fails=high < 1 / tolerance or low > tolerance,
    )
    return _verdict(claim, status, estimates, min(a.size, b.size), f"similar is within {tolerance:g} times")


def judge_share(
    claim: int,
    flags: Bool[np.ndarray, " restarts"],
    name: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Verdict:
    """Whether at least, or at most, some share of the restarts does something.

    It holds if the Wilson interval of the share lies on that side of the threshold, and does not hold if it
    lies on the other.

    **Arguments:**

    - `claim`: its number.
    - `flags`: whether each restart does it.
    - `name`: what it does, in words.
    - `at_least`, `at_most`: the threshold; one of the two.

    **Raises:** `ValueError` unless just one threshold is given.
    """
    if not flags.size:
        return _not_run(claim, [f"share {name}"])
    share = share_interval(int(flags.sum()), flags.size, _CONFIDENCE, what=f"share {name}")
    return _judge_threshold("judge_share", claim, share, flags.size, at_least, at_most)


def judge_median(
    claim: int,
    values: Float[np.ndarray, " restarts"],
    name: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Verdict:
    """Whether the median of some numbers is at least, or at most, a threshold.

    It holds if the interval of the median lies on that side of the threshold, and does not hold if it lies
    on the other.

    **Arguments:**

    - `claim`: its number.
    - `values`: one per restart, or whatever else was repeated.
    - `name`: what they are, in words.
    - `at_least`, `at_most`: the threshold; one of the two.

    **Raises:** `ValueError` unless just one threshold is given.
    """
    if not values.size:
        return _not_run(claim, [name])
    median = median_interval(values, _CONFIDENCE, what=f"median of {name}")
    return _judge_threshold("judge_median", claim, median, values.size, at_least, at_most)


def judge_shares_differ(
    claim: int,
    flags_a: Bool[np.ndarray, " restarts"],
    flags_b: Bool[np.ndarray, " others"],
    names: tuple[str, str],
    *,
    direction: Literal["less", "greater"],
) -> Verdict:
    """Whether the share of true values in `flags_a` is less, or greater, than that in `flags_b`.

    It holds if the interval of the difference lies on that side of zero, and does not hold if it lies on the
    other. Newcombe's interval is too narrow for a handful of restarts, so that Fisher's exact test has to
    find a difference, too.

    **Arguments:**

    - `claim`: its number.
    - `flags_a`, `flags_b`: one per restart; independent samples.
    - `names`: what to call the two.
    - `direction`: `"less"` or `"greater"`.

    **Raises:** `ValueError` for another `direction`.
    """
    if direction not in ("less", "greater"):
        raise ValueError(
            f"`judge_shares_differ(direction=...)` must be 'less' or 'greater'. Got direction={direction!r}."
        )
    if not (flags_a.size and flags_b.size):
        return _not_run(claim, names)
    shares = [
        share_interval(int(flags.sum()), flags.size, _CONFIDENCE, what=f"share of {name}")
        for flags, name in zip((flags_a, flags_b), names, strict=True)
    ]
    difference = share_difference(flags_a, flags_b, _CONFIDENCE, what=f"{names[0]} − {names[1]}")
    p = fisher_p(flags_a, flags_b)
    less, greater = difference.high < 0, difference.low > 0
    if direction == "greater":
        less, greater = greater, less
    sure = p < 1 - _CONFIDENCE
    status = _status(holds=less and sure, fails=greater and sure)
    estimates = (*shares, difference, Estimate(p, float("nan"), float("nan"), "Fisher's exact p"))
    return _verdict(claim, status, estimates, min(flags_a.size, flags_b.size))


def combine(claim: int, verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim of several parts.

    It holds if all parts hold, does not hold if any part does not, and is undecided otherwise.

    **Arguments:**

    - `claim`: its number.
    - `verdicts`: on the parts.

    **Raises:** `ValueError` if there are no parts.
    """
    if not verdicts:
        raise ValueError("`combine(verdicts=...)` needs at least one part. Got none.")
    statuses = [verdict.status for verdict in verdicts]
    status = _status(holds=all(s == "holds" for s in statuses), fails="does not hold" in statuses)
    statement = " / ".join(f"[{verdict.status}] {verdict.statement}" for verdict in verdicts)
    return Verdict(claim, status, statement, tuple(e for verdict in verdicts for e in verdict.estimates))


def beside(verdict: Verdict, *estimates: Estimate) -> Verdict:
    """The verdict with more numbers, which do not decide it but help to understand it.

    **Arguments:**

    - `verdict`: as it was decided.
    - `estimates`: the numbers.
    """
    statement = "; ".join([verdict.statement, *(estimate.in_words() for estimate in estimates)])
    return dataclasses.replace(verdict, statement=statement, estimates=(*verdict.estimates, *estimates))


def _medians_and_ratio(a, b, names, paired, seed) -> tuple[Estimate, ...]:
    medians = [
        median_interval(values, _CONFIDENCE, seed, what=f"median of {name}")
        for values, name in zip((a, b), names, strict=True)
    ]
    what = f"{names[0]} / {names[1]}"
    ratio = ratio_of_medians(a, b, paired, confidence=_CONFIDENCE, seed=seed, what=what)
    return (*medians, ratio)


def _not_run(claim: int, names: Sequence[str]) -> Verdict:
    return Verdict(claim, "undecided", f"{' against '.join(names)}: not run yet", ())


def _judge_threshold(
    function: str, claim: int, found: Estimate, restarts: int, at_least: float | None, at_most: float | None
) -> Verdict:
    if (at_least is None) == (at_most is None):
        raise ValueError(
            f"`{function}` needs either `at_least` or `at_most`. Got at_least={at_least}, at_most={at_most}."
        )
    if at_least is not None:
        status = _status(holds=found.low >= at_least, fails=found.high < at_least)
        asked = f"asked for is at least {at_least:g}"
    else:
        assert at_most is not None
        status = _status(holds=found.high <= at_most, fails=found.low > at_most)
        asked = f"asked for is at most {at_most:g}"
    return _verdict(claim, status, (found,), restarts, asked)


def _status(*, holds: bool, fails: bool) -> Status:
    if fails:
        return "does not hold"
    return "holds" if holds else "undecided"


def _verdict(
    claim: int, status: Status, estimates: tuple[Estimate, ...], restarts: int, note: str = ""
) -> Verdict:
    notes = [note] if note else []
    if restarts < MIN_RESTARTS:
        status = "undecided"
        notes.append(f"{restarts} restarts decide nothing, {MIN_RESTARTS} are needed")
    statement = "; ".join([*(estimate.in_words() for estimate in estimates), *notes])
    return Verdict(claim, status, statement, estimates)
