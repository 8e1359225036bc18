"""The thesis's facts, the settings of its experiments, and how its claims are judged."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from l2o_thesis import judge, kept, statistics
from l2o_thesis.experiment import Experiment, Results, join
from l2o_thesis.facts import CHANCE_LOSS, CLAIMS, CURVES, HISTOGRAMS, read_text
from l2o_thesis.figures import FIGURES, Figure, Panel, Scale, Source, experiment_settings, read_figure

from l2o_eqx.data import load_mnist

DIGITS = load_mnist("embedded")
SCALES, SOURCES = ("full", "quick"), ("figures", "text", "code")


def experiment(figure, panel, label, scale: Scale = "full", source: Source = "figures"):
    panels = {p.name: p for p in read_figure(figure, scale, source).panels}
    return Experiment(panels[panel].series[label], DIGITS)


def results(losses, *, length=None, **measured):
    """Results of tests whose every step is kept."""
    losses = np.asarray(losses, np.float32)
    arrays = {name: np.asarray(values, np.float32) for name, values in measured.items()}
    steps = np.arange(losses.shape[1])
    return Results(losses, steps, length or losses.shape[1], arrays, {}, 1.0)


def test_the_thesis_makes_37_claims_and_every_one_is_decided_somewhere():
    assert list(CLAIMS) == list(range(1, 38))
    assert {number for name in FIGURES for number in read_figure(name).claims} == set(CLAIMS)
    assert CLAIMS[2].shows == "no figure" and "5.015 / 4.884" in CLAIMS[9].shows


def test_the_curves_and_histograms_are_those_of_the_figures():
    assert len(CURVES) == 16 and sum(map(len, CURVES.values())) == 34
    long = CURVES["8a"]["trained on 320 steps"]
    assert long.points[277] == 1.531 and long.points[320] == 1.595 and long.points[3199] == 2.041
    assert CURVES["12b"]["leaky ReLU"].mean_of_last_20 == 0.212
    assert all(sum(counts) == 100 for panel in HISTOGRAMS.values() for counts in panel.values())
    assert HISTOGRAMS["15a"]["one optimizer"] == HISTOGRAMS["13a"]["sigmoid"] == (4, 44, 9, 8, 35, 0)
    panels = {p.name: p for name in FIGURES for p in read_figure(name).panels}
    for shown in (CURVES, HISTOGRAMS):
        for panel, series in shown.items():
            assert set(series) <= set(panels[panel].series), panel
    for panel, series in CURVES.items():
        for curve in series.values():
            tests = {s["test_steps"] for s in panels[panel].series.values()}
            assert curve.steps in {*tests, panels[panel].steps}


@pytest.mark.parametrize(
    ("figure", "panel", "label", "updates"),
    [
        ("fig7", "7a", "trained on 320 steps", 500),
        ("fig7", "7a", "trained on 3200 steps", 5000),
        ("fig7", "7a", "trained on 320 steps, as many updates", 5000),
        ("fig7", "7b", "trained on 1 epoch", 230),
        ("fig13", "13a", "sigmoid", 50),
        ("fig18", "18a", "T=8", 1000),
        ("fig18", "18a", "T=32", 250),
        ("fig18", "18b", "T=32", 110),
        ("fig18", "18c", "T=8", 480),
        ("fig19", "19b", "linear", 100),
    ],
)
def test_trainings_make_as_many_meta_updates_as_in_the_released_code(figure, panel, label, updates):
    assert experiment(figure, panel, label).num_updates == updates


def test_text_and_code_differ_where_the_report_says_so():
    default = experiment("fig19", "19a", "linear").spec
    text = experiment("fig19", "19a", "linear", source="text").spec
    code = experiment("fig19", "19a", "linear", source="code").spec
    assert {k for k in text if text[k] != default[k]} == {"squared", "theta_std"}
    changed = {k: v for k, v in code.items() if v != default.get(k)}
    assert changed == {"detach_state": True, "norm_floor": 1e-6, "shared_adam": True, "linear_from": 0}
    pretrained = experiment("fig17", "17a", "pretraining", source="code").spec
    assert (pretrained["pretraining_steps"], pretrained["pretraining_carries_state"]) == (1, True)


def test_a_panel_of_figure_8_has_the_experiments_of_figure_7_to_their_end():
    seven, eight = read_figure("fig7"), read_figure("fig8")
    for a, b in zip(seven.panels, eight.panels, strict=True):
        assert a.series == b.series and a.steps is not None and b.steps is None


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scale", SCALES)
def test_all_that_claims_are_about_is_run(scale, source):
    for name in FIGURES:
        figure = read_figure(name, scale, source)
        series = {f"{p.name}/{label}" for p in figure.panels for label in p.series}
        assert len({p.name for p in figure.panels}) == len(figure.panels)
        for parts in figure.claims.values():
            for part in parts:
                (word,) = part.keys() & judge.CONSTRUCTORS
                chosen = [part[word]] if isinstance(part[word], str) else part[word]
                assert all(one in series or one.startswith("measured/") for one in chosen), chosen
        for panel, _, spec in figure.experiments():
            assert panel.restarts > 0
            if scale == "quick":
                small = 2 if "dim" not in spec else 4
                assert spec["super_epochs"] <= small and spec.get("batch_size", 0) <= 32


def test_mistaken_names_say_what_there_is():
    with pytest.raises(ValueError, match="fig7, fig8"):
        read_figure("fig6")
    with pytest.raises(ValueError, match="figures, text, code"):
        read_figure("fig7", source="thesis")  # pyright: ignore[reportArgumentType]


def test_a_digest_depends_on_settings_digits_and_sizes_of_jobs_alone():
    # Kept results are found by it on another day: it must not change with the code.
    one = experiment("fig18", "18a", "T=8")
    assert (one.digest, one.restarts_per_job) == ("5053d4c57bb14d4e", 8192)
    shuffled = Experiment(dict(reversed(one.spec.items())), DIGITS)
    assert shuffled.digest == one.digest
    assert experiment("fig18", "18a", "T=16").digest == experiment("fig19", "19a", "w_t = 1").digest
    assert experiment("fig18", "18a", "T=16").digest != one.digest
    other = dataclasses.replace(DIGITS, train_labels=DIGITS.train_labels[::-1].copy())
    network = experiment("fig13", "13a", "sigmoid")
    assert network.restarts_per_job == 5
    assert (Experiment(network.spec, other).digest == network.digest) == (other.sha256 == DIGITS.sha256)
    assert Experiment(one.spec, other).digest == one.digest


def test_losses_are_kept_where_they_are_asked_for():
    long = experiment("fig8", "8a", "trained on 320 steps")
    kept = set(long.kept_steps.tolist())
    assert {0, 80, 319, 3199} | set(range(300, 320)) | set(range(3180, 3200)) <= kept and len(kept) < 180
    # Around a quarter of an epoch, in a test of ten epochs.
    assert set(range(83, 103)) <= set(experiment("fig7", "7b", "trained on 1 epoch").kept_steps.tolist())
    assert len(experiment("fig19", "19b", "linear").kept_steps) < 80


def test_numbers_of_results():
    steps = np.arange(40.0)
    line = 3.0 - 0.01 * steps
    zigzag = line + 0.1 * (-1.0) ** steps
    diverged = np.where(steps < 30, line, np.nan)
    found = results([line, zigzag, diverged])
    np.testing.assert_allclose(found.final(), [2.61, 2.51, np.inf], rtol=1e-6)
    np.testing.assert_allclose(found.last()[:2], [np.mean(line[-20:])] * 2, rtol=1e-6)
    np.testing.assert_allclose(found.early()[0], np.mean(line[0:20]), rtol=1e-6)
    fluctuation = found.fluctuation()
    # The zigzag has a small slope of its own.
    np.testing.assert_allclose(fluctuation[:2], [0.0, 0.1], atol=1e-3)
    assert np.isinf(fluctuation[2]) and np.isinf(found.last()[2])
    short = found.cut(restarts=2, steps=10)
    assert short.losses.shape == (2, 10) and short.final()[0] == pytest.approx(2.91)


def test_guessing_is_a_loss_and_an_entropy_near_ln_10():
    near = np.full(30, CHANCE_LOSS)
    found = results([near, near, near + 0.03, near * np.inf], entropy=[2.3, 1.0, 2.3, 2.3])
    assert found.near_chance().tolist() == [True, False, False, False]
    assert found.near_chance(in_loss=True).tolist() == [True, True, False, False]


A = np.linspace(1.0, 1.1, 20)
RULE = [
    ({"smaller": 2}, [A, 2 * A], "holds"),
    ({"smaller": 2}, [2 * A, A], "does not hold"),
    ({"smaller": 2}, [A, A], "undecided"),
    ({"smaller": 2}, [A, np.full(20, np.inf)], "holds"),
    ({"smaller": 2}, [np.full(20, np.inf), np.full(20, np.inf)], "undecided"),
    ({"smaller": 2}, [A[:4], 2 * A], "undecided"),
    ({"smaller": 2}, [A[:0], 2 * A], "undecided"),
    ({"similar": 2}, [A, 1.1 * A], "holds"),
    ({"similar": 2}, [A, 1.4 * A], "does not hold"),
    ({"similar": 2}, [A, 1.25 * A], "undecided"),
    ({"not_smaller": 2}, [1.1 * A, A], "holds"),
    ({"not_smaller": 2}, [0.7 * A, A], "does not hold"),
    ({"not_smaller": 2}, [0.9 * A, A], "does not hold"),
    ({"median": 1, "at_least": 1.0}, [A + 0.01], "holds"),
    ({"median": 1, "at_least": 1.2}, [A], "does not hold"),
    ({"median": 1, "at_most": 1.05}, [A], "undecided"),
    ({"share": 1, "at_least": 0.5}, [A > 0], "holds"),
    ({"share": 1, "at_most": 0.5}, [A > 0], "does not hold"),
    ({"share": 1, "at_least": 0.5}, [A > 1.05], "undecided"),
    ({"some": 1}, [A > 1.09], "holds"),
    ({"some": 1}, [A > 2], "undecided"),
    ({"some": 1}, [np.zeros(100, bool)], "does not hold"),
    ({"fewer": 2}, [A > 2, A > 0], "holds"),
    ({"more": 2}, [A > 2, A > 0], "does not hold"),
    # Newcombe's interval is beyond zero, Fisher's test finds nothing.
    ({"fewer": 2}, [np.arange(5) < 0, np.arange(5) < 3], "undecided"),
    ({"similar_shares": 2}, [np.arange(200) < 100, np.arange(200) < 105], "holds"),
    ({"similar_shares": 2}, [A > 2, A > 0], "does not hold"),
    ({"similar_shares": 2}, [A > 1.05, A > 1.04], "undecided"),
    ({"exactly": 1, "at_least": 16.0}, [np.array(17.0)], "holds"),
    ({"exactly": 1, "at_least": 16.0}, [np.array(15.0)], "does not hold"),
]


@pytest.mark.parametrize(("part", "samples", "status"), RULE, ids=str)
def test_one_rule_decides(part, samples, status):
    (word,) = part.keys() & judge.CONSTRUCTORS
    names = [f"measured/{name}" for name in "ab"][: len(samples)]
    numbers = {name: {"x": sample} for name, sample in zip("ab", samples, strict=False)}
    chosen = names if part[word] == 2 else names[0]
    figure = Figure("f", "t", "s", claims={30: [{**part, word: chosen, "of": "x", "what": "x"}]})
    if samples[0].dtype == bool:
        numbers = {k: {"x": v["x"].astype(float)} for k, v in numbers.items()}
        figure.claims[30][0]["of"] = "x > 0.5"
    (verdict,) = judge.judge(figure, {}, numbers)
    assert (verdict.claim, verdict.status) == (30, status)
    assert verdict.to_json()["statement"] == verdict.statement and json.dumps(verdict.to_json())


def test_of_several_parts_all_must_hold_and_what_is_beside_decides_nothing():
    part = {"smaller": ["p/a", "p/b"], "of": "final"}
    other = {"share": "p/a", "of": "final < 0.9 first", "what": "that fall", "at_least": 0.5}
    panel = Panel("p", "t")
    figure = Figure(
        "f",
        "t",
        "s",
        panels=(panel,),
        claims={5: [part, other]},
        beside={5: [{"least": "p/b", "of": "last", "what": "best b"}]},
    )
    falling = np.linspace(2.0, 1.0, 30) * np.linspace(1.0, 1.1, 12)[:, None]
    found = {"p": {"a": results(falling), "b": results(3 * falling)}}
    (verdict,) = judge.judge(figure, found, {})
    assert verdict.status == "holds" and verdict.statement.startswith("[holds] median of a: ")
    assert "; best b: " in verdict.statement and len(verdict.estimates) == 5
    found["p"]["b"] = results(falling / 3)
    (verdict,) = judge.judge(figure, found, {})
    assert verdict.status == "does not hold" and " / [holds] share that fall: 1 (" in verdict.statement
    del found["p"]["b"]
    (verdict,) = judge.judge(figure, found, {})
    assert verdict.status == "undecided" and "a against b: no such restarts yet" in verdict.statement


def test_groups_of_restarts_within_a_series():
    losses = np.ones((12, 30)) * np.where(np.arange(12) < 6, 1.0, 3.0)[:, None]
    one = results(losses, size=np.where(np.arange(12) < 6, 1.0, 5.0) + 0.01 * np.arange(12))
    part = {
        "smaller": ["p/a", "p/a"],
        "of": "size",
        "where": ["final < 2", "final >= 2.5"],
        "names": ["low", "high"],
    }
    figure = Figure("f", "t", "s", panels=(Panel("p", "t"),), claims={21: [part]})
    (verdict,) = judge.judge(figure, {"p": {"a": one}}, {})
    assert verdict.status == "holds" and "low / high" in verdict.statement
    assert judge.judge(figure, {"p": {"a": one.cut(restarts=8)}}, {})[0].status == "undecided"


def test_intervals():
    # Wilson and Newcombe (1998, table II, method 10: 56/70 against 48/80).
    share = statistics.share_interval(8, 10)
    assert (share.low, share.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    a, b = np.arange(70) < 56, np.arange(80) < 48
    difference = statistics.share_difference(a, b)
    assert (difference.value, difference.low, difference.high) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=1e-4
    )
    assert statistics.fisher_p(np.arange(100) < 65, np.arange(100) < 37) == pytest.approx(1e-4, rel=0.3)
    median = statistics.median_interval(np.r_[np.ones(3), np.full(7, np.nan)])
    assert (
        math.isinf(median.value)
        and math.isinf(median.high)
        and median.in_words() == "median: infinite (1 to infinite)"
    )
    assert math.isnan(statistics.median_interval(np.ones(1)).low)
    paired = statistics.ratio_of_medians(A, 1.02 * A, paired=True)
    assert paired.low == pytest.approx(paired.high) and paired.value == pytest.approx(1 / 1.02)
    assert statistics.ratio_of_medians(A * 0, A * 0).value == 1
    assert statistics.histogram_counts(np.array([0.5, 2.4, 2.5, np.inf, np.nan])) == (0, 1, 0, 0, 1, 3)


def test_kept_results_are_small_and_as_they_were(tmp_path):
    one = experiment("fig13", "13a", "sigmoid")
    steps = one.kept_steps
    rng = np.random.default_rng(0)

    def make(first, number):
        losses = rng.lognormal(0, 3, (number, len(steps))).astype(np.float32)
        losses[0, -1], losses[-1, 3] = np.inf, np.nan
        measured = {"entropy": rng.random(number).astype(np.float32), "dead_units": np.zeros(number)}
        made = Results(losses, steps, 160, measured, {"grad_norm": rng.random(number)}, 12.34)
        path = kept.path_of(tmp_path, one, 0, first, number)
        kept.save(path, one, made)
        assert path.stat().st_size < 4000
        return made

    parts = [make(0, 5), make(5, 5)]
    found = kept.load_kept(tmp_path, one, 0, 100)
    assert found is not None and found.length == 160 and found.seconds == pytest.approx(24.6)
    both = join(parts)
    np.testing.assert_allclose(found.losses, both.losses, rtol=1.3e-4)
    np.testing.assert_array_equal(found.steps, steps)
    for name, values in both.measured.items():
        np.testing.assert_allclose(found.measured[name], values, rtol=1.3e-4)
    np.testing.assert_allclose(found.training["grad_norm"], both.training["grad_norm"], rtol=1.3e-4)
    assert kept.load_kept(tmp_path, one, 1, 100) is None
    make(20, 5)
    for restarts, expected in ((100, 10), (9, 5)):
        some = kept.load_kept(tmp_path, one, 0, restarts)
        assert some is not None and len(some.losses) == expected


def test_the_report_names_options_that_there_are(monkeypatch):
    from l2o_cli._app import app
    from typer.testing import CliRunner

    monkeypatch.setenv("COLUMNS", "300")
    runner, texts = CliRunner(), []
    for command in ("train", "pretrain", "reproduce"):
        texts += [runner.invoke(app, [command, flag]).output for flag in ("--help", "--help-all")]
    said = set(re.findall(r"--[a-z-]+", " ".join(texts)))
    table = read_text("report.md.jinja").partition("| What | Text |")[2].partition("## Figures")[0]
    named = {word for word in re.findall(r"`(--[a-z-]+)", table)}
    assert (
        len(named) > 8
        and {n for n in named if n not in said and n.replace("--no-", "--") not in said} == set()
    )


def test_the_application_has_no_private_names_of_the_library():
    files = list(Path(judge.__file__).parent.glob("*.py"))
    private = [f"{f.name}: {x}" for f in files for x in re.findall(r"l2o(?:_eqx|_cli)?\._\w+", f.read_text())]
    assert len(files) > 10 and private == []


def test_settings_of_a_measurement_follow_scale_and_source():
    spec = experiment_settings("network", "quick", "code", {"window": 8})
    assert (spec["hidden"], spec["window"], spec["detach_state"], spec["test_steps"]) == ([4], 8, True, 46)
