import json
import math
import re

import numpy as np
import pytest

from l2o_eqx import recipes
from l2o_eqx.recipes import _statistics as statistics
from l2o_eqx.recipes import _thesis as thesis
from l2o_eqx.recipes import _verdicts as verdicts

NAMES = ("one", "other")


def flags(successes, n):
    return np.arange(n) < successes


def normal(seed, center, n=40):
    return center * np.exp(0.1 * np.random.default_rng(seed).normal(size=n))


# The thesis's numbers


def test_every_series_counts_a_hundred_runs():
    for panel in thesis.HISTOGRAMS.values():
        assert all(len(counts) == len(thesis.BIN_EDGES) - 1 for counts in panel.values())
        assert all(sum(counts) == 100 for counts in panel.values())


@pytest.mark.parametrize(
    ("panel", "series", "below", "near", "above"),
    [
        ("13a", "sigmoid", 65, 35, 0),
        ("13a", "tanh", 100, 0, 0),
        ("13b", "ReLU", 37, 59, 4),
        ("13b", "leaky ReLU", 78, 0, 22),
        ("15a", "one per layer", 37, 45, 18),
        ("15b", "one per layer", 41, 57, 2),
        ("17a", "pretraining", 51, 49, 0),
        ("17b", "pretraining", 71, 22, 7),
    ],
)
def test_shares_of_the_histograms(panel, series, below, near, above):
    counts = thesis.HISTOGRAMS[panel][series]
    assert (sum(counts[:4]), counts[4], counts[5]) == (below, near, above)


def test_baselines_are_the_same_runs_in_three_figures():
    for column in "ab":
        base = [next(iter(thesis.HISTOGRAMS[f"{figure}{column}"].values())) for figure in (13, 15, 17)]
        assert base[0] == base[1] == base[2]


def test_curves_run_from_start_to_end():
    assert len(thesis.CURVES) == 16 and sum(map(len, thesis.CURVES.values())) == 34
    for panel in thesis.CURVES.values():
        for curve in panel.values():
            positions = curve.positions()
            assert positions[0] == 0 and positions[-1] == curve.steps - 1
            assert list(positions) == sorted(set(positions))
            assert (curve.start, curve.final) == (curve.at(0.0), curve.at(1.0))
            # One minibatch differs from the mean by about 0.1; what is smooth ends where it has been.
            assert abs(curve.final - curve.mean_last_20) < 0.12


def test_quadratic_curves_of_a_panel_share_their_start():
    """θ₁ is shared on the quadratic and not on MNIST."""
    starts = {p: {c.start for c in thesis.CURVES[p].values()} for p in thesis.CURVES}
    assert all(len(starts[p]) == 1 for p in ("7a", "8a", "10a", "11a", "18a", "19a", "19b"))
    assert starts["7a"] == starts["8a"] and starts["19a"] == starts["19b"]
    assert len(starts["7b"]) == 2


def test_the_long_run_passes_through_the_end_of_the_short_one():
    long = thesis.CURVES["8a"]["trained on 320 steps"]
    assert long.at(320 / 3200) == thesis.CURVES["7a"]["trained on 320 steps"].final
    assert min(loss for _, loss in long.points) == long.at(277 / 3200)


def test_claims_are_numbered_and_quote_the_tables():
    assert list(thesis.CLAIMS) == list(range(1, 38))
    known = {
        loss
        for panel in thesis.CURVES.values()
        for curve in panel.values()
        for loss in (*(loss for _, loss in curve.points), curve.mean_last_20)
    }
    known.add(0.092)
    for number, claim in thesis.CLAIMS.items():
        assert claim.number == number and claim.section and claim.statement.endswith(".")
        assert {float(x) for x in re.findall(r"\d\.\d{3}", claim.numbers)} <= known


def test_ratios_that_the_claims_quote():
    preprocessed = thesis.CURVES["10a"]["preprocessing"]
    assert preprocessed.final / preprocessed.start == pytest.approx(1.03, abs=0.005)
    without, normalized = thesis.CURVES["11a"].values()
    assert without.final / without.start == pytest.approx(0.84, abs=0.005)
    assert normalized.final / normalized.start == pytest.approx(0.092, abs=0.0005)


@pytest.mark.parametrize(
    ("panel", "first_bin", "last_bin", "successes", "p"),
    [
        ("15a", 0, 4, (65, 37), 1e-4),
        ("15a", 5, 6, (0, 18), 3e-6),
        ("15b", 0, 4, (37, 41), 0.66),
        ("17a", 0, 4, (65, 51), 0.06),
        ("17a", 0, 2, (48, 5), 1e-12),
        ("17b", 0, 4, (37, 71), 2e-6),
        ("13b", 0, 4, (37, 78), 6e-9),
        ("13b", 5, 6, (4, 22), 2e-4),
    ],
)
def test_fisher_p_of_the_thesis_histograms(panel, first_bin, last_bin, successes, p):
    first, second = thesis.HISTOGRAMS[panel].values()
    counted = (sum(first[first_bin:last_bin]), sum(second[first_bin:last_bin]))
    assert counted == successes
    a, b = (flags(count, 100) for count in counted)
    # They are stated to one or two digits.
    assert statistics.fisher_p(a, b) == pytest.approx(p, rel=0.5 if p < 0.01 else 0.1)


# Intervals


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (100, 100), (37, 100), (1, 1)])
def test_wilson_interval_is_the_formula(successes, n):
    z = 1.959963984540054
    p = successes / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    share = statistics.share_interval(successes, n)
    assert share.value == p
    assert share.low == pytest.approx(max(0.0, center - half), abs=1e-12)
    assert share.high == pytest.approx(min(1.0, center + half), abs=1e-12)


def test_newcombe_interval_of_his_paper():
    """56/70 and 48/80: 0.0524 to 0.3339 (Newcombe 1998, table II, method 10)."""
    difference = statistics.share_difference(flags(56, 70), flags(48, 80))
    assert difference.value == pytest.approx(0.2)
    assert (difference.low, difference.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_bootstrap_of_five_is_their_range():
    """Three of five draws are the smallest with a probability of 5.8 %, so 2.5 % cut off nothing."""
    values = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    estimate = statistics.median_interval(values)
    assert (estimate.value, estimate.low, estimate.high) == (3.0, 1.0, 9.0)


def test_bootstrap_interval_covers_and_agrees_with_order_statistics():
    """The binomial interval of the median, free of assumptions: the 41st and the 60th of 101."""
    covered = 0
    for seed in range(20):
        values = np.random.default_rng(seed).normal(5.0, 1.0, 101)
        estimate = statistics.median_interval(values, seed=seed)
        assert estimate.value == np.median(values)
        ordered = np.sort(values)
        assert ordered[37] <= estimate.low <= ordered[44] and ordered[56] <= estimate.high <= ordered[63]
        covered += estimate.low <= 5.0 <= estimate.high
    # Fewer than 16 of 20 have a probability of 0.3 % at 95 %.
    assert covered >= 16


def test_median_interval_scales_and_repeats():
    values = normal(0, 1.0)
    first, again, scaled = map(statistics.median_interval, (values, values, 2 * values))
    assert first == again
    assert (scaled.low, scaled.high) == pytest.approx((2 * first.low, 2 * first.high), rel=1e-12)
    narrower = statistics.median_interval(values, confidence=0.5)
    assert first.low < narrower.low < narrower.high < first.high


def test_diverged_restarts_are_the_largest_ones():
    values = np.array([1.0, 2.0, 3.0, 4.0, np.inf, np.nan], np.float32)
    estimate = statistics.median_interval(values)
    assert estimate.value == 3.5 and estimate.low >= 1.0 and estimate.high == np.inf
    assert statistics.median_interval(np.full(6, np.inf)).value == np.inf
    assert statistics.median_interval(np.array([1.0, np.inf])).value == np.inf


def test_ties_have_an_interval_of_no_width():
    estimate = statistics.median_interval(np.full(8, 2.5))
    assert (estimate.value, estimate.low, estimate.high) == (2.5, 2.5, 2.5)


def test_one_restart_has_no_interval():
    estimate = statistics.median_interval(np.array([2.0]))
    assert estimate.value == 2.0 and math.isnan(estimate.low) and math.isnan(estimate.high)
    ratio = statistics.ratio_of_medians(np.array([2.0]), np.ones(9))
    assert ratio.value == 2.0 and math.isnan(ratio.low)


def test_ratio_covers_and_turns_around():
    a, b = normal(0, 2.0), normal(1, 1.0)
    ratio = statistics.ratio_of_medians(a, b)
    assert ratio.value == pytest.approx(np.median(a) / np.median(b))
    assert ratio.low < 2.0 < ratio.high and ratio.high / ratio.low < 1.2
    inverse = statistics.ratio_of_medians(b, a)
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((ratio.low, ratio.high), rel=0.02)


def test_pairs_that_share_their_draws_narrow_the_interval():
    a = np.exp(np.random.default_rng(0).normal(size=40))
    paired = statistics.ratio_of_medians(1.1 * a, a, paired=True)
    assert (paired.low, paired.high) == pytest.approx((1.1, 1.1))
    unpaired = statistics.ratio_of_medians(1.1 * a, a)
    assert unpaired.low < 0.8 and unpaired.high > 1.3


def test_ratio_with_zeros_and_infinities():
    ones, zeros, infinite = np.ones(6), np.zeros(6), np.full(6, np.inf)
    for a, b, value in ((zeros, ones, 0.0), (ones, zeros, np.inf), (ones, infinite, 0.0)):
        ratio = statistics.ratio_of_medians(a, b)
        assert (ratio.value, ratio.low, ratio.high) == (value, value, value)
    assert statistics.ratio_of_medians(zeros, zeros).value == 1.0
    assert math.isnan(statistics.ratio_of_medians(infinite, infinite).value)


def test_histogram_has_the_thesis_edges():
    losses = np.array([0.0, 0.5, 0.99, 1.5, 2.0, 2.303, 2.5, 1e9, np.inf, np.nan])
    histogram = statistics.histogram_counts(losses)
    assert histogram.counts == (1, 2, 0, 1, 2, 4) and histogram.not_finite == 2
    assert statistics.histogram_counts(np.array([1.2])).counts == (0, 0, 1, 0, 0, 0)


def test_near_chance_is_narrower_than_the_bin():
    losses = np.array([0.1, 2.1, math.log(10) - 0.01, math.log(10), 2.33, np.inf, np.nan, -np.inf])
    split = statistics.near_chance(losses)
    assert split.near.tolist() == [False, False, True, True, False, False, False, False]
    assert split.below.tolist() == [True, True] + [False] * 6
    assert np.all(split.below.astype(int) + split.near + split.above == 1)
    shares = split.shares()
    assert [shares[name].value for name in ("below", "near", "above")] == [0.25, 0.25, 0.5]
    assert statistics.near_chance(losses, tolerance=0.05).near.sum() == 3


def test_near_chance_needs_outputs_that_guess():
    """A network that is sure and often wrong may also have a loss of ln 10."""
    losses = np.full(4, math.log(10) + np.array([0.0, 0.0, 0.01, -0.01]))
    split = statistics.near_chance(losses, entropy=np.array([2.30, 1.0, 0.5, 0.5]))
    assert split.near.tolist() == [True, False, False, False]
    assert split.below.tolist() == [False, False, False, True]
    assert split.above.tolist() == [False, True, True, False]
    results = recipes.Results(np.tile(losses[:, None], 20), {"entropy": np.array([2.3, 1, 1, 1])}, {}, 0.0)
    assert results.chance().near.tolist() == [True, False, False, False]
    assert recipes.Results(results.losses, {}, {}, 0.0).chance().near.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.median_interval(np.zeros(0)), "values=.*at least one restart"),
        (lambda: statistics.share_interval(3, 2), "successes=3, n=2"),
        (lambda: statistics.share_interval(0, 0), "at least one restart"),
        (lambda: statistics.ratio_of_medians(np.ones(2), -np.ones(2)), "b=.*not negative"),
        (lambda: statistics.ratio_of_medians(np.ones(2), np.ones(3), paired=True), "2 and 3"),
        (lambda: verdicts.judge_similar(1, np.ones(5), np.ones(5), NAMES, tolerance=1.0), "above 1"),
        (lambda: verdicts.judge_share(1, flags(1, 5), "x"), "either `at_least` or `at_most`"),
        (lambda: verdicts.combine(1, []), "at least one part"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Verdicts


def test_smaller():
    judge = verdicts.judge_smaller
    low, high = normal(0, 1.0), normal(1, 2.0)
    assert judge(5, low, high, NAMES).status == "holds"
    assert judge(5, high, low, NAMES).status == "does not hold"
    assert judge(5, low, normal(1, 1.0), NAMES).status == "undecided"
    assert judge(5, low, np.full(9, np.inf), NAMES).status == "holds"
    assert judge(5, np.full(9, np.inf), np.full(9, np.inf), NAMES).status == "undecided"


def test_similar():
    judge = verdicts.judge_similar
    a = normal(0, 1.0)
    assert judge(16, a, normal(1, 1.05), NAMES).status == "holds"
    assert judge(16, a, normal(1, 1.6), NAMES).status == "does not hold"
    assert judge(16, a, normal(1, 0.5), NAMES).status == "does not hold"
    assert judge(16, a, normal(1, 1.24), NAMES).status == "undecided"
    assert judge(16, a, normal(1, 1.24), NAMES, tolerance=1.5).status == "holds"
    # That no difference was found is no similarity.
    wide, as_wide = (np.exp(2 * np.random.default_rng(seed).normal(size=10)) for seed in (0, 1))
    assert judge(16, wide, as_wide, NAMES).status == "undecided"


def test_share():
    judge = verdicts.judge_share
    assert judge(11, flags(97, 100), "near chance", at_least=0.9).status == "holds"
    assert judge(11, flags(70, 100), "near chance", at_least=0.9).status == "does not hold"
    assert judge(11, flags(92, 100), "near chance", at_least=0.9).status == "undecided"
    assert judge(11, flags(0, 100), "above chance", at_most=0.05).status == "holds"
    assert judge(11, flags(20, 100), "above chance", at_most=0.05).status == "does not hold"
    assert judge(11, flags(4, 100), "above chance", at_most=0.05).status == "undecided"


def test_shares_differ():
    judge = verdicts.judge_shares_differ
    more, less = flags(65, 100), flags(37, 100)
    assert judge(23, less, more, NAMES, direction="less").status == "holds"
    assert judge(23, more, less, NAMES, direction="less").status == "does not hold"
    assert judge(23, more, less, NAMES, direction="greater").status == "holds"
    assert judge(23, less, flags(41, 100), NAMES, direction="less").status == "undecided"
    # The interval leaves out zero here (0.03 to 0.88), but 3 of 5 against 0 of 5 happens too often (17 %).
    few = judge(23, flags(3, 5), flags(0, 5), NAMES, direction="greater")
    assert few.estimates[2].low > 0 and few.status == "undecided"


def test_not_smaller_is_one_sided():
    judge = verdicts.judge_not_smaller
    a = normal(0, 1.0)
    assert judge(33, normal(1, 3.0), a, NAMES).status == "holds"
    assert judge(33, a, normal(1, 1.0), NAMES).status == "holds"
    assert judge(33, a, normal(1, 1.1), NAMES).status == "does not hold"
    # No difference found, but none ruled out either.
    wide, as_wide = (np.exp(2 * np.random.default_rng(seed).normal(size=10)) for seed in (0, 1))
    assert judge(33, wide, as_wide, NAMES).status == "undecided"
    assert "1/1.25" in judge(33, a, a, NAMES).statement


def test_some_is_one_restart_or_a_small_interval():
    judge = verdicts.judge_some
    assert judge(17, flags(1, 10), "below 0.5").status == "holds"
    assert judge(17, flags(0, 10), "below 0.5").status == "undecided"
    assert judge(17, flags(0, 100), "below 0.5").status == "does not hold"
    assert judge(17, flags(0, 0), "below 0.5").status == "undecided"


def test_shares_are_similar_within_a_difference():
    judge = verdicts.judge_shares_similar
    assert judge(23, flags(41, 100), flags(37, 100), NAMES).status == "holds"
    assert judge(23, flags(65, 100), flags(37, 100), NAMES).status == "undecided"
    assert judge(23, flags(90, 100), flags(37, 100), NAMES).status == "does not hold"
    assert judge(23, flags(37, 100), flags(90, 100), NAMES).status == "does not hold"


def test_few_restarts_decide_nothing():
    many, few = normal(0, 1.0), normal(1, 100.0, n=verdicts.MIN_RESTARTS - 1)
    for verdict in (
        verdicts.judge_smaller(1, many, few, NAMES),
        verdicts.judge_similar(1, few, many, NAMES),
        verdicts.judge_share(1, flags(4, 4), "x", at_least=0.1),
        verdicts.judge_shares_differ(1, flags(0, 4), flags(90, 90), NAMES, direction="less"),
        verdicts.judge_shares_similar(1, flags(4, 4), flags(90, 90), NAMES),
        verdicts.judge_not_smaller(1, many, few, NAMES),
        verdicts.judge_some(1, flags(4, 4), "x"),
    ):
        assert verdict.status == "undecided" and "4 restarts decide nothing" in verdict.statement
    enough = normal(1, 100.0, n=verdicts.MIN_RESTARTS)
    assert verdicts.judge_smaller(1, many, enough, NAMES).status == "holds"
    assert verdicts.judge_smaller(1, many, many[:1], NAMES).status == "undecided"


@pytest.mark.parametrize(
    ("statuses", "combined"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "undecided"], "undecided"),
        (["undecided", "does not hold", "holds"], "does not hold"),
    ],
)
def test_parts_are_combined(statuses, combined):
    parts = [
        verdicts.Verdict(30, s, f"part {i}", (statistics.share_interval(i, 9),))
        for i, s in enumerate(statuses)
    ]
    verdict = verdicts.combine(30, parts)
    assert verdict.status == combined and len(verdict.estimates) == len(parts)
    assert all(f"[{s}] part {i}" in verdict.statement for i, s in enumerate(statuses))


def test_a_verdict_in_words_and_as_json():
    infinite = np.full(9, np.inf)
    verdict = verdicts.judge_smaller(7, np.full(9, 0.25), infinite, ("long", "short"))
    assert verdict.statement == (
        "median of long: 0.25 (0.25 to 0.25); median of short: infinite (infinite to infinite); "
        "long / short: 0 (0 to 0)"
    )
    written = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert (written["claim"], written["status"]) == (7, "holds")
    assert written["estimates"][1] == {"value": None, "low": None, "high": None, "what": "median of short"}
    assert written["estimates"][2]["value"] == 0.0
    undefined = verdicts.judge_smaller(7, infinite, infinite, ("long", "short"))
    assert "long / short: undefined" in undefined.statement
