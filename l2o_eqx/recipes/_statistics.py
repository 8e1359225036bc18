"""Estimates with intervals, from one number per restart.

A loss that is not finite counts as infinite throughout: a restart that diverged is a bad restart, not a
missing one.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from ._thesis import BIN_EDGES, CHANCE_LOSS

# Stands for infinity while we calculate: its square is still finite, and averages with it are not NaN.
_HUGE = 1e150
_INFINITE = 1e140
_TINY = 1e-150
_LOG_INFINITE = math.log(1e120)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    **Fields:**

    - `value`: the number.
    - `low`, `high`: the ends of the interval; NaN if there is none.
    - `what`: what the number is, in words.
    """

    value: float
    low: float
    high: float
    what: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them: what is not finite is `None`."""
        fields = dataclasses.asdict(self)
        return {k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in fields.items()}

    def in_words(self) -> str:
        """For example `median of T=8: 2.85 (2.7 to 3.01)`."""
        if math.isnan(self.value):
            return f"{self.what}: undefined"
        interval = "" if math.isnan(self.low) else f" ({_number(self.low)} to {_number(self.high)})"
        return f"{self.what}: {_number(self.value)}{interval}"


@dataclasses.dataclass(frozen=True)
class HistogramCounts:
    """Final losses sorted into the thesis's bins.

    **Fields:**

    - `counts`: how many lie in each of the six bins; those that are not finite are in the last.
    - `not_finite`: how many of them there are.
    """

    counts: tuple[int, ...]
    not_finite: int


@dataclasses.dataclass(frozen=True, eq=False)
class ChanceSplit:
    """Which restarts ended below, near, and above the loss of guessing, ln 10.

    Every restart is in exactly one of the three; those that are not finite are in `above`.
    """

    below: Bool[np.ndarray, " restarts"]
    near: Bool[np.ndarray, " restarts"]
    above: Bool[np.ndarray, " restarts"]

    def shares(self) -> dict[str, Estimate]:
        """The share of restarts in each of the three, by its name."""
        return {
            name: share_interval(int(flags.sum()), flags.size, what=f"share {name} chance")
            for name, flags in (("below", self.below), ("near", self.near), ("above", self.above))
        }


def median_interval(
    values: Float[np.ndarray, " restarts"],
    confidence: float = 0.95,
    seed: int = 0,
    *,
    what: str = "median",
) -> Estimate:
    """The median over restarts and its interval, by the percentiles of the bootstrap.

    **Arguments:**

    - `values`: one per restart.
    - `confidence`: of the interval.
    - `seed`: of the bootstrap.
    - `what`: of the estimate.

    **Returns:** an `Estimate`; with a single restart it has no interval.

    **Raises:** `ValueError` if there are no restarts.
    """
    finite = _as_huge("median_interval", values=values)[0]
    low, high = _bootstrap((finite,), np.median, paired=False, confidence=confidence, seed=seed)
    return Estimate(_restored(float(np.median(finite))), _restored(low), _restored(high), what)


def share_interval(successes: int, n: int, confidence: float = 0.95, *, what: str = "share") -> Estimate:
    """A share and its Wilson interval.

    **Arguments:**

    - `successes`, `n`: the share is `successes / n`.
    - `confidence`: of the interval.
    - `what`: of the estimate.

    **Raises:** `ValueError` unless 0 <= `successes` <= `n` and `n` is at least 1.
    """
    if not (n >= 1 and 0 <= successes <= n):
        raise ValueError(
            "`share_interval(successes, n)` needs at least one restart and no more successes than restarts. "
            f"Got successes={successes}, n={n}."
        )
    interval = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), what)


def ratio_of_medians(
    a: Float[np.ndarray, " restarts"],
    b: Float[np.ndarray, " others"],
    paired: bool = False,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    what: str = "ratio of medians",
) -> Estimate:
    """median(a) / median(b) and its interval, by the percentiles of the bootstrap.

    **Arguments:**

    - `a`, `b`: one number per restart, none of them negative. Two medians of zero have the ratio 1.
    - `paired`: whether restart i of `a` and restart i of `b` share their draws, so that they must be drawn
        together in the bootstrap.
    - `confidence`, `seed`, `what`: as in `median_interval`.

    **Returns:** an `Estimate`; its value is NaN, without an interval, if both medians are infinite. There is
    no interval either if `a` or `b` has a single restart.

    **Raises:** `ValueError` if there are no restarts, a number is negative, or there are unequally many in
    `a` and `b` with `paired`.
    """
    first, second = _as_huge("ratio_of_medians", a=a, b=b)
    for name, values in (("a", first), ("b", second)):
        if np.any(values < 0):
            raise ValueError(
                f"`ratio_of_medians({name}=...)` needs numbers that are not negative. Got {values.min():g}."
            )
    if paired and first.size != second.size:
        raise ValueError(
            "`ratio_of_medians(paired=True)` needs the same restarts in `a` and `b`. "
            f"Got {first.size} and {second.size}."
        )
    if min(np.median(first), np.median(second)) > _INFINITE:
        return Estimate(math.nan, math.nan, math.nan, what)
    low, high = _bootstrap((first, second), _log_ratio, paired=paired, confidence=confidence, seed=seed)
    value = float(_log_ratio(first, second))
    return Estimate(_exponential(value), _exponential(low), _exponential(high), what)


def share_difference(
    flags_a: Bool[np.ndarray, " restarts"],
    flags_b: Bool[np.ndarray, " others"],
    confidence: float = 0.95,
    *,
    what: str = "difference of shares",
) -> Estimate:
    """The share of true values in `flags_a` less that in `flags_b`, with Newcombe's interval.

    **Arguments:**

    - `flags_a`, `flags_b`: one per restart; independent samples.
    - `confidence`, `what`: as in `median_interval`.

    **Raises:** `ValueError` if there are no restarts.

    Reference: Newcombe 1998, "Interval estimation for the difference between independent proportions",
    method 10.
    """
    a, b = (share_interval(int(flags.sum()), flags.size, confidence) for flags in (flags_a, flags_b))
    difference = a.value - b.value
    low = difference - math.hypot(a.value - a.low, b.high - b.value)
    high = difference + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(difference, low, high, what)


def fisher_p(flags_a: Bool[np.ndarray, " restarts"], flags_b: Bool[np.ndarray, " others"]) -> float:
    """The two-sided p-value of Fisher's exact test that two shares are the same."""
    table = [[int(flags.sum()), int((~flags).sum())] for flags in (flags_a, flags_b)]
    test: Any = scipy.stats.fisher_exact(table)
    return float(test.pvalue)


def histogram_counts(final_losses: Float[np.ndarray, " restarts"]) -> HistogramCounts:
    """Sorts final losses into the thesis's six bins, [0, 0.5) to [2, 2.5) and 2.5 or more.

    Reference: thesis figs. 13, 15 and 17.
    """
    # NaN sorts behind all numbers, and so into the last bin.
    bins = np.searchsorted(BIN_EDGES[1:-1], final_losses, side="right")
    counts = np.bincount(bins, minlength=len(BIN_EDGES) - 1)
    return HistogramCounts(tuple(counts.tolist()), int(np.sum(~np.isfinite(final_losses))))


def near_chance(
    losses: Float[np.ndarray, " restarts"],
    tolerance: float = 0.02,
    *,
    entropy: Float[np.ndarray, " restarts"] | None = None,
) -> ChanceSplit:
    """Splits restarts by whether |loss − ln 10| < `tolerance`, and so the entropy if it is given.

    Narrower than the bin [2, 2.5), which also holds what is merely slow.

    **Arguments:**

    - `losses`: one per restart.
    - `tolerance`: of the loss, and of the entropy.
    - `entropy`: mean entropy of the outputs, in nats. It is ln 10 if they guess; a loss of ln 10 with less is
        that of outputs which are sure and wrong. If not given the loss alone decides.
    """
    near = np.abs(losses - CHANCE_LOSS) < tolerance
    if entropy is not None:
        near &= np.abs(entropy - CHANCE_LOSS) < tolerance
    below = ~near & (losses < CHANCE_LOSS) & np.isfinite(losses)
    return ChanceSplit(below, near, ~near & ~below)


def _as_huge(function: str, **samples: np.ndarray) -> list[np.ndarray]:
    for name, values in samples.items():
        if values.size == 0:
            raise ValueError(f"`{function}({name}=...)` needs at least one restart. Got none.")
    wide = (values.astype(np.float64) for values in samples.values())
    return [np.where(np.isfinite(x), np.clip(x, -_HUGE, _HUGE), _HUGE) for x in wide]


def _restored(value: float) -> float:
    return math.inf if value > _INFINITE else value


def _log_ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> Any:
    logs = []
    for values in (a, b):
        median = np.median(values, axis=axis)
        # Half of what stands for infinity is infinite, too.
        logs.append(np.log(np.where(median > _INFINITE, _HUGE, np.maximum(median, _TINY))))
    return logs[0] - logs[1]


def _exponential(log: float) -> float:
    if abs(log) > _LOG_INFINITE:
        return math.inf if log > 0 else 0.0
    return math.exp(log)


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., Any],
    *,
    paired: bool,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    if min(values.size for values in samples) < 2:
        return math.nan, math.nan
    # Percentiles and not BCa: its jackknife fails on medians and on ties.
    interval = scipy.stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.3g}"
