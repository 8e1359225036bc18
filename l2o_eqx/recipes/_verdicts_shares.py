"""Verdicts on shares of restarts."""

from typing import Literal

import numpy as np
from jaxtyping import Bool

from ._statistics import Estimate, fisher_p, share_difference, share_interval
from ._verdict import CONFIDENCE, Verdict, judge_threshold, not_run, status_of, verdict_of

# What happens in fewer restarts than this, if in any, does not happen.
_RARE = 0.05


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
        return not_run(claim, [f"share {name}"])
    share = share_interval(int(flags.sum()), flags.size, CONFIDENCE, what=f"share {name}")
    return judge_threshold("judge_share", claim, share, flags.size, at_least, at_most)


def judge_some(claim: int, flags: Bool[np.ndarray, " restarts"], name: str) -> Verdict:
    """Whether restarts do something at all: sometimes, or in the best case.

    It holds if one restart does it, which puts the whole Wilson interval above 0. It does not hold if none
    does and the interval ends below 5 %; of few restarts it cannot be said that none ever would.

    **Arguments:**

    - `claim`, `flags`, `name`: as in `judge_share`.
    """
    if not flags.size:
        return not_run(claim, [f"share {name}"])
    share = share_interval(int(flags.sum()), flags.size, CONFIDENCE, what=f"share {name}")
    status = status_of(holds=bool(flags.any()), fails=not flags.any() and share.high < _RARE)
    note = f"asked for is at least one restart; no is none and an interval that ends below {_RARE:g}"
    return verdict_of(claim, status, (share,), flags.size, note)


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
        return not_run(claim, names)
    estimates = _shares_and_difference(flags_a, flags_b, names)
    difference = estimates[-1]
    p = fisher_p(flags_a, flags_b)
    less, greater = difference.high < 0, difference.low > 0
    if direction == "greater":
        less, greater = greater, less
    sure = p < 1 - CONFIDENCE
    status = status_of(holds=less and sure, fails=greater and sure)
    estimates = (*estimates, Estimate(p, float("nan"), float("nan"), "Fisher's exact p"))
    return verdict_of(claim, status, estimates, min(flags_a.size, flags_b.size))


def judge_shares_similar(
    claim: int,
    flags_a: Bool[np.ndarray, " restarts"],
    flags_b: Bool[np.ndarray, " others"],
    names: tuple[str, str],
    *,
    tolerance: float = 0.2,
) -> Verdict:
    """Whether the shares of true values in `flags_a` and `flags_b` are within `tolerance` of each other.

    It holds if Newcombe's interval of their difference lies within [−`tolerance`, `tolerance`], and does not
    hold if it lies wholly outside. The interval of two equal shares of 100 restarts each reaches to ±0.14:
    much less of a tolerance they could never be found to keep.

    **Arguments:**

    - `claim`, `flags_a`, `flags_b`, `names`: as in `judge_shares_differ`.
    - `tolerance`: the largest difference.
    """
    if not (flags_a.size and flags_b.size):
        return not_run(claim, names)
    estimates = _shares_and_difference(flags_a, flags_b, names)
    low, high = estimates[-1].low, estimates[-1].high
    status = status_of(
        holds=low >= -tolerance and high <= tolerance, fails=high < -tolerance or low > tolerance
    )
    note = f"similar is a difference of at most {tolerance:g}"
    return verdict_of(claim, status, estimates, min(flags_a.size, flags_b.size), note)


def _shares_and_difference(flags_a, flags_b, names) -> tuple[Estimate, ...]:
    shares = [
        share_interval(int(flags.sum()), flags.size, CONFIDENCE, what=f"share of {name}")
        for flags, name in zip((flags_a, flags_b), names, strict=True)
    ]
    difference = share_difference(flags_a, flags_b, CONFIDENCE, what=f"{names[0]} − {names[1]}")
    return (*shares, difference)
