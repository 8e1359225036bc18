"""Estimates with intervals of 95 %, from one number per restart.

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

from .facts import BIN_EDGES

CONFIDENCE = 0.95
# Stands for infinity while we calculate: its square is still finite, and averages with it are not NaN.
_HUGE, _INFINITE, _TINY = 1e150, 1e140, 1e-150
_LOG_INFINITE = math.log(1e120)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number, the ends of its confidence interval (NaN if there is none), and what it is, in words."""

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
        value, low, high = (
            "infinite" if math.isinf(x) else f"{x:.3g}" for x in (self.value, self.low, self.high)
        )
        if math.isnan(self.value):
            return f"{self.what}: undefined"
        return f"{self.what}: {value}" + ("" if math.isnan(self.low) else f" ({low} to {high})")


def number(value: float, what: str) -> Estimate:
    """A number without an interval."""
    return Estimate(float(value), math.nan, math.nan, what)


def median_interval(values: Float[np.ndarray, " restarts"], what: str = "median") -> Estimate:
    """The median and its interval, by the percentiles of the bootstrap; of a single restart without one."""
    finite = _as_huge(values)
    ends = _bootstrap((finite,), np.median, paired=False)
    value, low, high = (math.inf if x > _INFINITE else x for x in (float(np.median(finite)), *ends))
    return Estimate(value, low, high, what)


def share_interval(successes: int, n: int, what: str = "share") -> Estimate:
    """The share `successes / n` and its Wilson interval."""
    interval = scipy.stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), what)


def share_of(flags: Bool[np.ndarray, " restarts"], what: str = "share") -> Estimate:
    """The share of true values and its Wilson interval."""
    return share_interval(int(flags.sum()), flags.size, what)


def ratio_of_medians(
    a: Float[np.ndarray, " restarts"],
    b: Float[np.ndarray, " others"],
    what: str = "ratio of medians",
    *,
    paired: bool = False,
) -> Estimate:
    """median(a) / median(b) of numbers that are not negative, and its interval by the bootstrap.

    With `paired`, restart i of `a` and restart i of `b` share their draws, so that they are drawn together.
    Two medians of zero have the ratio 1, two infinite ones none. A single restart gives no interval.
    """
    first, second = _as_huge(a), _as_huge(b)
    if min(np.median(first), np.median(second)) > _INFINITE:
        return number(math.nan, what)
    low, high = _bootstrap((first, second), _log_ratio, paired=paired)
    value = float(_log_ratio(first, second))
    return Estimate(_exponential(value), _exponential(low), _exponential(high), what)


def share_difference(
    a: Bool[np.ndarray, " restarts"], b: Bool[np.ndarray, " others"], what: str = "difference of shares"
) -> Estimate:
    """The share of true values in `a` less that in `b`, two independent samples, with Newcombe's interval.

    Reference: Newcombe 1998, "Interval estimation for the difference between independent proportions",
    method 10.
    """
    first, second = share_of(a), share_of(b)
    difference = first.value - second.value
    low = difference - math.hypot(first.value - first.low, second.high - second.value)
    high = difference + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(difference, low, high, what)


def fisher_p(a: Bool[np.ndarray, " restarts"], b: Bool[np.ndarray, " others"]) -> float:
    """The two-sided p-value of Fisher's exact test that two shares are the same."""
    test: Any = scipy.stats.fisher_exact([[int(x.sum()), int((~x).sum())] for x in (a, b)])
    return float(test.pvalue)


def histogram_counts(final_losses: Float[np.ndarray, " restarts"]) -> tuple[int, ...]:
    """How many final losses lie in each of the thesis's six bins; what is not finite is in the last."""
    # NaN sorts behind all numbers, and so into the last bin.
    bins = np.searchsorted(BIN_EDGES[1:-1], final_losses, side="right")
    return tuple(np.bincount(bins, minlength=len(BIN_EDGES) - 1).tolist())


def quartiles(values: Float[np.ndarray, "restarts *rest"]) -> Float[np.ndarray, "three *rest"]:
    """Quartiles over the restarts, infinite where there is no number."""
    # Interpolating between infinite entries would give NaN.
    found = np.quantile(_as_huge(values), (0.25, 0.5, 0.75), axis=0)
    return np.where(found > _INFINITE, np.inf, found)


def _as_huge(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float64)
    return np.where(np.isfinite(wide), np.clip(wide, -_HUGE, _HUGE), _HUGE)


def _log_ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> Any:
    medians = (np.median(values, axis=axis) for values in (a, b))
    # Half of what stands for infinity is infinite, too.
    first, second = (np.log(np.where(m > _INFINITE, _HUGE, np.maximum(m, _TINY))) for m in medians)
    return first - second


def _exponential(log: float) -> float:
    if abs(log) > _LOG_INFINITE:
        return math.inf if log > 0 else 0.0
    return math.exp(log)


def _bootstrap(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., Any], *, paired: bool
) -> tuple[float, float]:
    if min(values.size for values in samples) < 2:
        return math.nan, math.nan
    # Percentiles and not BCa: its jackknife fails on medians and on ties.
    found = scipy.stats.bootstrap(
        samples, statistic, paired=paired, vectorized=True, method="percentile",
        confidence_level=CONFIDENCE, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
