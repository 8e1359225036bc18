"""Whether a claim of the thesis holds for the restarts that were run.

A claim holds, or does not, only if a whole confidence interval says so; otherwise it is undecided. So it
is where there are no restarts yet, as in a figure that was interrupted.
"""

import numpy as np
from jaxtyping import Float

from ._statistics import Estimate, median_interval, ratio_of_medians
from ._verdict import CONFIDENCE, judge_threshold, not_run, status_of, verdict_of
from ._verdict import MIN_RESTARTS as MIN_RESTARTS
from ._verdict import Status as Status
from ._verdict import Verdict as Verdict
from ._verdict import beside as beside
from ._verdict import combine as combine
from ._verdicts_shares import judge_share as judge_share
from ._verdicts_shares import judge_shares_differ as judge_shares_differ
from ._verdicts_shares import judge_shares_similar as judge_shares_similar
from ._verdicts_shares import judge_some as judge_some


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
        return not_run(claim, names)
    estimates = _medians_and_ratio(a, b, names, paired, seed)
    ratio = estimates[-1]
    status = status_of(holds=ratio.high < 1, fails=ratio.low > 1)
    return verdict_of(claim, status, estimates, min(a.size, b.size))


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
    _check_tolerance("judge_similar", tolerance)
    if not (a.size and b.size):
        return not_run(claim, names)
    estimates = _medians_and_ratio(a, b, names, paired, seed)
    low, high = estimates[-1].low, estimates[-1].high
    status = status_of(
        holds=low >= 1 / tolerance and high <= tolerance,
        fails=high < 1 / tolerance or low > tolerance,
    )
    return verdict_of(claim, status, estimates, min(a.size, b.size), f"similar is within {tolerance:g} times")


def judge_not_smaller(
    claim: int,
    a: Float[np.ndarray, " restarts"],
    b: Float[np.ndarray, " others"],
    names: tuple[str, str],
    *,
    tolerance: float = 1.25,
    paired: bool = False,
    seed: int = 0,
) -> Verdict:
    """Whether the median of `a` is not below that of `b`: one side of `judge_similar`.

    It does not hold if the interval of their ratio lies below 1. Otherwise it holds if the interval leaves
    out everything below 1/`tolerance`: that no difference was found says little where the interval is wide.

    **Arguments:**

    - `claim`, `a`, `b`, `names`, `paired`, `seed`: as in `judge_smaller`.
    - `tolerance`: the factor, above 1.

    **Raises:** `ValueError` as `judge_similar` does.
    """
    _check_tolerance("judge_not_smaller", tolerance)
    if not (a.size and b.size):
        return not_run(claim, names)
    estimates = _medians_and_ratio(a, b, names, paired, seed)
    ratio = estimates[-1]
    status = status_of(holds=ratio.low >= 1 / tolerance, fails=ratio.high < 1)
    note = f"asked for is no interval below 1, and none that begins below 1/{tolerance:g}"
    return verdict_of(claim, status, estimates, min(a.size, b.size), note)


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
        return not_run(claim, [name])
    median = median_interval(values, CONFIDENCE, what=f"median of {name}")
    return judge_threshold("judge_median", claim, median, values.size, at_least, at_most)


def _medians_and_ratio(a, b, names, paired, seed) -> tuple[Estimate, ...]:
    medians = [
        median_interval(values, CONFIDENCE, seed, what=f"median of {name}")
        for values, name in zip((a, b), names, strict=True)
    ]
    what = f"{names[0]} / {names[1]}"
    ratio = ratio_of_medians(a, b, paired, confidence=CONFIDENCE, seed=seed, what=what)
    return (*medians, ratio)


def _check_tolerance(function: str, tolerance: float) -> None:
    if not tolerance > 1:
        raise ValueError(f"`{function}(tolerance=...)` must be above 1. Got tolerance={tolerance}.")
