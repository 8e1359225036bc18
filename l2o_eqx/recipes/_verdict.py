"""What a verdict on a claim is, and how verdicts on its parts become one."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from ._statistics import Estimate

Status = Literal["holds", "does not hold", "undecided"]

MIN_RESTARTS = 5
"""Fewer restarts decide nothing. With a probability of 2/2⁴ = 12 %, the median of what four restarts are
drawn from lies outside the whole range of the four, so that no interval of theirs can be trusted to 95 %;
with five restarts it is 6 %."""

CONFIDENCE = 0.95


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
    status = status_of(holds=all(s == "holds" for s in statuses), fails="does not hold" in statuses)
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


def not_run(claim: int, names: Sequence[str]) -> Verdict:
    return Verdict(claim, "undecided", f"{' against '.join(names)}: not run yet", ())


def judge_threshold(
    function: str, claim: int, found: Estimate, restarts: int, at_least: float | None, at_most: float | None
) -> Verdict:
    if (at_least is None) == (at_most is None):
        raise ValueError(
            f"`{function}` needs either `at_least` or `at_most`. Got at_least={at_least}, at_most={at_most}."
        )
    if at_least is not None:
        status = status_of(holds=found.low >= at_least, fails=found.high < at_least)
        asked = f"asked for is at least {at_least:g}"
    else:
        assert at_most is not None
        status = status_of(holds=found.high <= at_most, fails=found.low > at_most)
        asked = f"asked for is at most {at_most:g}"
    return verdict_of(claim, status, (found,), restarts, asked)


def status_of(*, holds: bool, fails: bool) -> Status:
    if fails:
        return "does not hold"
    return "holds" if holds else "undecided"


def verdict_of(
    claim: int, status: Status, estimates: tuple[Estimate, ...], restarts: int, note: str = ""
) -> Verdict:
    notes = [note] if note else []
    if restarts < MIN_RESTARTS:
        status = "undecided"
        notes.append(f"{restarts} restarts decide nothing, {MIN_RESTARTS} are needed")
    statement = "; ".join([*(estimate.in_words() for estimate in estimates), *notes])
    return Verdict(claim, status, statement, estimates)
