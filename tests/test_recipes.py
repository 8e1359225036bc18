import csv
import dataclasses
import functools
import itertools
import json
import pickle
import re
from pathlib import Path
from typing import Any

import jax
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from l2o_eqx import recipes
from l2o_eqx.data import load_mnist
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import CoordinatewiseLSTM
from l2o_eqx.recipes import _artifacts, _reproduce, _runner, _tables
from l2o_eqx.recipes._verdicts import judge_smaller
from l2o_eqx.strategies import EveryWindow

EMBEDDED = recipes.Setup(load_mnist("embedded"), "quick")


def make_lstm(key):
    return CoordinatewiseLSTM((2,), learning_rate=0.1, key=key)


def experiment(window):
    return recipes.Experiment(
        Quadratic(2),
        make_lstm,
        num_steps=8,
        super_epochs=2,
        test_steps=30,
        num_test_objectives=2,
        strategy=EveryWindow(window),
    )


# At the top of the module, for other processes to find them.
def curves(setup):
    def judge(results):
        found = results["18a"]
        return [judge_smaller(30, found["T=4"].final, found["T=2"].final, ("T=4", "T=2"), paired=True)]

    series = {"T=2": experiment(2), "T=4": experiment(4)}
    panels = [recipes.Panel("18a", "quadratic", series, 6, steps=25)]
    return recipes.Figure("Curves | of it", "5.5.2", panels, (30,), judge, "A note.")


def histogram(setup):
    panels = [recipes.Panel("13a", "final losses", {"sigmoid": experiment(2)}, 6, kind="histogram")]
    return recipes.Figure("Histogram", "5.4.1", panels)


def graph(setup):
    x = np.linspace(-1.0, 1.0, 5)
    return recipes.Figure("A graph", "5.3.1", [recipes.Panel("9", "cubes", graph=(x, x**3))])


def measured(setup):
    def judge(results, extra):
        assert results == {}
        return [recipes.Verdict(32, "holds", f"measured {extra['number']}", ())]

    return recipes.Figure("Measured", "5.5", [], (32,), judge, extra=lambda seed: {"number": seed + 0.5})


TINY = {"curves": curves, "histogram": histogram, "graph": graph, "measured": measured}


def request(folder, figures=TINY, **settings):
    return recipes.Request(figures, folder, "quick", data="embedded", **settings)


def fake(numbers, window):
    """Results that depend on the numbers of the restarts alone; one of them diverges."""
    losses = 3.0 + np.sin(np.outer(1.0 + numbers, np.arange(30.0))) / window
    losses[numbers == 4, 20:] = np.inf
    return recipes.Results(
        losses.astype(np.float32), {"entropy": 0.1 * numbers}, {"grad_norm": np.ones((len(numbers), 2))}, 1.5
    )


@pytest.fixture
def calls(monkeypatch):
    """Jobs of two restarts that are not computed; the list of those that were asked for."""
    done = []

    def run(experiment, *, restarts, first, seed, callbacks):
        done.append((experiment.strategy.window, first, restarts))
        return fake(np.arange(first, first + restarts), experiment.strategy.window)

    monkeypatch.setattr(_runner, "run", run)
    monkeypatch.setattr("l2o_eqx.recipes._experiment._JOB_COORDINATES", 4)
    return done


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def facts(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_files_hold_what_was_found(calls, tmp_path):
    found = recipes.reproduce(request(tmp_path), processes=1)
    assert list(found) == list(TINY)
    names = {path.name for path in tmp_path.iterdir()} - {"cells"}
    assert names == {
        *("curves.png", "curves-finals.csv", "curves-curves.csv", "curves-thesis.csv", "curves.json"),
        *("histogram.png", "histogram-finals.csv", "histogram-curves.csv", "histogram-histogram.csv"),
        *("histogram.json", "graph.png", "graph-graph.csv", "graph.json"),
        *("measured-measured.csv", "measured.json"),
    }
    for name, one in found.items():
        assert all(path.exists() for path in one.files.values())
        assert ("picture" in one.files) == (name != "measured")
    picture = matplotlib.image.imread(found["curves"].files["picture"])
    assert picture.shape[0] > 300 and np.ptp(picture) > 0

    expected = fake(np.arange(6), 2)
    cut = expected.losses[:, :25]
    finals = [row for row in rows(tmp_path / "curves-finals.csv") if row["series"] == "T=2"]
    assert [int(row["restart"]) for row in finals] == list(range(6))
    assert {row["panel"] for row in finals} == {"18a"}
    np.testing.assert_array_equal(np.array([row["final_loss"] for row in finals], np.float32), cut[:, -1])
    means = np.where(np.isfinite(cut[:, -1]), cut[:, -20:].mean(1), np.inf)
    np.testing.assert_allclose([float(row["mean_of_last_20"]) for row in finals], means, rtol=1e-6)
    assert [float(row["entropy"]) for row in finals] == expected.measured["entropy"].tolist()
    quartiles = [row for row in rows(tmp_path / "curves-curves.csv") if row["series"] == "T=2"]
    assert len(quartiles) == 25
    for name, q in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
        found_at_20 = float(quartiles[20][name])
        # Of six restarts one is infinite: no quartile is.
        np.testing.assert_allclose(found_at_20, np.quantile(np.minimum(cut[:, 20], 1e9), q), rtol=1e-6)


def test_tables_have_the_numbers_of_the_thesis_and_what_is_no_experiment(calls, tmp_path):
    recipes.reproduce(request(tmp_path), processes=1)
    theirs = [row for row in rows(tmp_path / "curves-thesis.csv") if row["series"] == "T=8"]
    curve = recipes.CURVES["18a"]["T=8"]
    points = [(int(row["step"]), float(row["loss"])) for row in theirs if row["what"] == "loss"]
    assert points == list(zip(curve.positions(), [loss for _, loss in curve.points], strict=True))
    assert (theirs[-1]["what"], float(theirs[-1]["loss"])) == ("mean_of_last_20", curve.mean_last_20)

    bins = rows(tmp_path / "histogram-histogram.csv")
    for source, counts in (("ours", (0, 0, 0, 0, 0, 6)), ("thesis", recipes.HISTOGRAMS["13a"]["sigmoid"])):
        found = [row for row in bins if (row["source"], row["series"]) == (source, "sigmoid")]
        assert tuple(int(row["count"]) for row in found) == counts
        assert [float(row["from"]) for row in found] == list(recipes.BIN_EDGES[:-1])

    points = [(float(row["x"]), float(row["y"])) for row in rows(tmp_path / "graph-graph.csv")]
    assert points == [(x, x**3) for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    assert rows(tmp_path / "measured-measured.csv") == [{"name": "number", "number": "", "value": "0.5"}]


def test_nested_measurements_become_rows(tmp_path):
    figure = recipes.Figure("", "", [])
    extra = {"a": {"b": [1.0, 2.0], "c": None}, "d": 3}
    (path,) = _tables.write_tables(tmp_path, "it", figure, {}, extra).values()
    assert [tuple(row.values()) for row in rows(path)] == [
        ("a/b", "0", "1.0"),
        ("a/b", "1", "2.0"),
        ("a/c", "", ""),
        ("d", "", "3"),
    ]


def test_statistics_are_those_of_the_restarts(calls, tmp_path):
    found = recipes.reproduce(request(tmp_path, restarts=5, seed=3), processes=1)
    whole = facts(tmp_path, "curves")
    assert whole["settings"] | {"data_sha256": ""} == {
        "scale": "quick",
        "source": "figures",
        "seed": 3,
        "restarts": 5,
        "data": "embedded",
        "data_description": EMBEDDED.digits.describe(),
        "data_sha256": "",
    }
    assert whole["verdicts"] == [verdict.to_json() for verdict in found["curves"].verdicts]
    assert whole["judged_on"] == {"18a": 5}
    one = whole["series"][1]
    final = fake(np.arange(5), 4).losses[:, 24]
    assert (one["panel"], one["series"], one["restarts"], one["steps"]) == ("18a", "T=4", 5, 25)
    assert one["meta_updates"] == 4 and one["seconds"] == 4.5
    np.testing.assert_allclose(one["final_loss"]["median"], np.median(final), rtol=1e-6)
    assert one["final_loss"]["interval"][1] is None  # The bootstrap meets the restart that diverged.
    assert whole["series"][0]["thesis"] is None
    bins = facts(tmp_path, "histogram")["series"][0]
    assert sum(bins["histogram"]["counts"]) == 5 and bins["histogram"]["not_finite"] == 1
    shares = {name: share["value"] for name, share in bins["histogram"]["shares"].items()}
    assert shares == {"below 2": 0, "2 to 2.5": 0, "2.5 or above": 1}
    assert bins["histogram"]["chance"]["above"]["value"] == 1
    assert bins["thesis"]["counts"] == [4, 44, 9, 8, 35, 0]
    assert bins["thesis"]["shares"]["below 2"]["value"] == 0.65
    assert bins["final_loss"]["median"] > 2.5


def test_the_thesis_is_beside_the_series_of_its_name():
    results = fake(np.arange(5), 2)
    panel = recipes.Panel("18a", "", {})
    thesis = _artifacts.describe_series(panel, "T=8", experiment(2), results, 5)["thesis"]
    assert thesis == {"steps": 320, "first_loss": 4.205, "final_loss": 2.852, "mean_of_last_20": 2.862}


def test_what_is_there_is_not_run_again(calls, tmp_path, monkeypatch):
    first = recipes.reproduce(request(tmp_path), processes=1)
    # The series of the histogram is one of the other figure's, and run once.
    assert sorted(calls) == [(w, i, 2) for w in (2, 4) for i in (0, 2, 4)]
    written = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}

    def fail(*arguments, **settings):
        raise AssertionError("it was run again")

    monkeypatch.setattr(_runner, "run", fail)
    again = recipes.reproduce(
        request(tmp_path, {**TINY, "measured": lambda s: measured(s).__class__(**vars(measured(s)))})
    )
    assert again["curves"].verdicts == first["curves"].verdicts
    assert {path: path.read_bytes() for path in tmp_path.glob("*.csv")} == written


def test_measurements_are_kept_for_a_version_and_a_device(tmp_path, monkeypatch):
    seeds = []

    def measure(seed):
        seeds.append(seed)
        return {"number": len(seeds)}

    def make(setup):
        return recipes.Figure("", "", [], (32,), measured(setup).judge, extra=measure)

    def statement():
        (verdict,) = recipes.reproduce(request(tmp_path, {"m": make}, seed=7))["m"].verdicts
        return verdict.statement

    assert recipes.reproduce(request(tmp_path, {"m": make}), partial=True) == {}
    assert [statement(), statement(), seeds] == ["measured 1", "measured 1", [7]]
    environment = _artifacts.describe_environment()
    (kept,) = (tmp_path / "cells").glob("extra-m-*.json")
    assert json.loads(kept.read_text(encoding="utf-8"))["environment"] == environment
    assert facts(tmp_path, "m")["extra"]["environment"] == environment

    other = {**environment, "device": "Another Chip (2)"}
    monkeypatch.setattr("l2o_eqx.recipes._measurements.describe_environment", lambda: other)
    assert [statement(), statement(), seeds] == ["measured 2", "measured 2", [7, 7]]
    newer = {**other, "versions": {**other["versions"], "l2o-eqx": "9.9+local"}}
    monkeypatch.setattr("l2o_eqx.recipes._measurements.describe_environment", lambda: newer)
    assert statement() == "measured 3"


def test_more_restarts_take_up_what_is_there(calls, tmp_path):
    recipes.reproduce(request(tmp_path, restarts=4), processes=1)
    calls.clear()
    found = recipes.reproduce(request(tmp_path, restarts=7), processes=1)
    assert sorted(calls) == [(w, i, n) for w in (2, 4) for i, n in ((4, 2), (6, 1))]
    losses = found["curves"].results["18a"]["T=2"].losses
    np.testing.assert_array_equal(losses, fake(np.arange(7), 2).losses)


def test_an_interrupted_call_is_taken_up(calls, tmp_path, monkeypatch):
    run = _runner.run

    def interrupted(*arguments, **settings):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*arguments, **settings)

    monkeypatch.setattr(_runner, "run", interrupted)
    asked = request(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        recipes.reproduce(asked, processes=1)
    figures = asked.make_figures()
    outlook = asked.outlook(figures)
    assert (outlook.restarts, outlook.kept) == (12, 6) and 0 < outlook.seconds_left < outlook.seconds
    assert asked.outlook({"graph": figures["graph"]}) == recipes.Outlook(0, 0, 0.0, 0.0)

    # What is there can be looked at: 4 restarts of one series, 2 of the other.
    monkeypatch.setattr(_runner, "run", None)
    partial = recipes.reproduce(asked, partial=True)
    assert list(partial) == ["curves", "histogram", "graph"]
    assert {k: len(r.losses) for k, r in partial["curves"].results["18a"].items()} == {"T=2": 4, "T=4": 2}
    found = facts(tmp_path, "curves")
    assert [s["restarts"] for s in found["series"]] == [4, 2] and found["judged_on"] == {"18a": 2}
    assert {s["restarts_asked"] for s in found["series"]} == {6}
    assert partial["curves"].verdicts[0].status == "undecided"

    monkeypatch.setattr(_runner, "run", run)
    calls.clear()
    whole = recipes.reproduce(asked, processes=1)
    assert len(calls) == 3
    np.testing.assert_array_equal(whole["curves"].results["18a"]["T=4"].losses, fake(np.arange(6), 4).losses)


def two_panels(setup):
    """The first panel is that of `curves`; the claim needs the second one, too."""
    figure = curves(setup)
    other = recipes.Panel("18b", "other", {"T=8": experiment(8)}, 6)

    def judge(results):
        first, second = results["18a"]["T=2"], results["18b"]["T=8"]
        assert second.measured["entropy"].shape == (0,) and second.metrics["grad_norm"].shape == (0, 2)
        return [judge_smaller(30, first.final, second.final, ("T=2", "T=8"))]

    return dataclasses.replace(figure, panels=[*figure.panels, other], judge=judge)


def test_a_panel_that_was_not_run_is_left_out(calls, tmp_path):
    recipes.reproduce(request(tmp_path, {"curves": curves}), processes=1)
    (found,) = recipes.reproduce(request(tmp_path, {"curves": two_panels}), partial=True).values()
    assert {panel: list(series) for panel, series in found.results.items()} == {
        "18a": ["T=2", "T=4"],
        "18b": [],
    }
    (verdict,) = found.verdicts
    assert verdict.status == "undecided" and "not run yet" in verdict.statement
    written = facts(tmp_path, "curves")
    assert written["judged_on"] == {"18a": 6} and {s["panel"] for s in written["series"]} == {"18a"}
    assert {row["panel"] for row in rows(found.files["finals"])} == {"18a"}
    page = recipes.write_report(tmp_path, tmp_path / "report.md").read_text(encoding="utf-8")
    assert "not run yet: 18b/T=8." in page


def test_pictures_say_how_many_restarts_there_are(calls, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        _artifacts, "draw_curves_panel", lambda axes, curves, reference, *, title: titles.append(title) or ""
    )
    for restarts, there in ((2, 2), (4, 4)):
        recipes.reproduce(request(tmp_path, {"curves": curves}, restarts=there), processes=1)
        assert titles[-1] == f"18a: quadratic, {restarts} restarts"
    recipes.reproduce(request(tmp_path, {"curves": curves}), partial=True)
    assert titles[-1] == "18a: quadratic, 4 of 6 restarts"
    kept = sorted((tmp_path / "cells").glob("*-seed0/restarts-0002-002.npz"))
    kept[0].unlink()
    recipes.reproduce(request(tmp_path, {"curves": curves}), partial=True)
    assert titles[-1] == "18a: quadratic, 2 to 4 of 6 restarts"


def test_the_thesis_curves_are_drawn_beside_tests_of_their_length(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        _artifacts,
        "draw_curves_panel",
        lambda axes, curves, reference, *, title: drawn.append(reference) or "",
    )
    axes: Any = Figure().subplots()
    panel = recipes.Panel("18a", "quadratic", {}, 2)
    for steps in (320, 319):
        results = {"T=8": recipes.Results(np.ones((2, steps)), {}, {}, 0.0)}
        _artifacts._draw(axes, panel=panel, results=results, asked=2)
    assert drawn == [{"T=8": recipes.CURVES["18a"]["T=8"]}, {}]


# Ten seconds: three processes import JAX and compile.
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator is used from one process")
def test_processes_give_what_one_process_gives_bit_for_bit(tmp_path):
    figures = {"curves": curves}
    alone = recipes.reproduce(request(tmp_path / "one", figures), processes=1)["curves"].results["18a"]
    told = []
    two = request(tmp_path / "two", figures)
    together = recipes.reproduce(two, processes=2, progress=lambda *step: told.append(step))["curves"]
    for label, results in together.results["18a"].items():
        np.testing.assert_array_equal(results.losses, alone[label].losses)
        for name, values in results.metrics.items():
            np.testing.assert_array_equal(values, alone[label].metrics[name])
        direct = recipes.run(experiment(int(label[-1])), restarts=6)
        np.testing.assert_array_equal(results.losses, direct.losses)
    assert all(0 <= done <= total for done, total, _ in told)
    assert {text for _, _, text in told} <= {"curves/18a/T=2", "curves/18a/T=4"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"figures": {}}, "at least one figure"),
        ({"restarts": 0}, "must be at least 1. Got restarts=0"),
    ],
)
def test_impossible_requests_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        request(tmp_path, **settings)


# The report.


@pytest.fixture
def reported(calls, tmp_path):
    """The page on the tiny figures, and where it is."""
    recipes.reproduce(request(tmp_path / "out"), processes=1)
    path = recipes.write_report(tmp_path / "out", tmp_path / "docs" / "page.md")
    return path, path.read_text(encoding="utf-8")


def test_the_summary_has_every_claim_once(reported):
    _, page = reported
    summary = page.split("## Claims")[1].split("\n## ")[0]
    lines = [line for line in summary.splitlines() if re.match(r"\| \d", line)]
    assert [int(line.split("|")[1]) for line in lines] == list(recipes.CLAIMS) == list(range(1, 38))
    for line, claim in zip(lines, recipes.CLAIMS.values(), strict=True):
        assert claim.statement in line and claim.numbers in line
        assert ("not tested" in line) == (claim.number not in (30, 32))
    assert lines[31].endswith("| **holds** | [measured](#measured) |")


def test_the_report_has_every_figure_with_its_numbers_and_picture(reported, tmp_path):
    path, page = reported
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(TINY)
    for name in ("curves", "histogram", "graph"):
        assert f"(page/{name}.png)" in page
        copied = path.parent / "page" / f"{name}.png"
        assert copied.read_bytes() == (tmp_path / "out" / f"{name}.png").read_bytes()
    median = np.median(fake(np.arange(6), 4).losses[:, 24])
    assert f"| 18a | T=4 | 6 | 4 | 2 | 25 | {median:.3g} (" in page
    assert (
        "| 13a | sigmoid | 2 | 0% (0% to 39%) | 0% (0% to 39%) | 100% (61% to 100%) | 0% (0% to 39%) | 35% ("
        in page
    )
    entropy = np.median(fake(np.arange(6), 4).measured["entropy"])
    assert f"| Panel | Series | entropy |\n| --- | --- | --- |\n| 18a | T=2 | {entropy:.3g} (" in page
    assert "| 13a | sigmoid, thesis | 100 | 4 | 44 | 9 | 8 | 35 | 0 | 65% (55% to 74%) |" in page
    assert "| 13a | sigmoid | 6 | 0 | 0 | 0 | 0 | 0 | 6 | 0% (0% to 39%) |" in page
    assert "`l2o reproduce curves --quick --data embedded`" in page and "Notes: A note." in page
    assert "- Claim 32 **holds**: measured 0.5" in page


def test_the_report_says_what_it_was_computed_on(reported, tmp_path):
    _, page = reported
    assert "summed over the processes (1 of them)." in page and "core each" not in page
    assert "made with the 5,000 embedded training digits, where the thesis had 48,000" in page
    written = facts(tmp_path / "out", "curves")
    assert written["processes"] == 1

    def again(**changes):
        path = tmp_path / "out" / "curves.json"
        path.write_text(json.dumps({**written, **changes}), encoding="utf-8")
        return recipes.write_report(tmp_path / "out", tmp_path / "page.md").read_text(encoding="utf-8")

    assert "(1 or 2 of them)" in again(processes=2)
    series = [{**one, "training_examples": 5_000} for one in written["series"]]
    assert "**Trained on 5,000 digits, where the thesis had 48,000.**" in again(series=series)
    # Files of earlier versions.
    assert "| 18a | T=4 | 6 | 4 | – | 25 |" in again(
        series=[{k: v for k, v in one.items() if "objectives" not in k} for one in series]
    )


def test_tables_of_the_report_are_rectangular(reported):
    _, page = reported
    for is_table, lines in itertools.groupby(page.splitlines(), key=lambda line: line.startswith("|")):
        if is_table:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_the_same_files_give_the_same_report(reported, tmp_path):
    _, page = reported
    (tmp_path / "out" / "notes.json").write_text("{}")
    again = recipes.write_report(str(tmp_path / "out"), tmp_path / "page.md")
    assert again.read_text(encoding="utf-8") == page
    with pytest.raises(ValueError, match="no figures in that folder"):
        recipes.write_report(tmp_path, tmp_path / "none.md")
    assert not (tmp_path / "none.md").exists()


def test_the_report_says_when_restarts_are_missing(calls, tmp_path):
    recipes.reproduce(request(tmp_path, {"curves": curves}, restarts=2), processes=1)
    recipes.reproduce(request(tmp_path, {"curves": curves}), partial=True)
    page = recipes.write_report(tmp_path, tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| 18a | T=2 | 2 of 6 |" in page
    assert "not all restarts have been run; claims are judged on the first 2 of panel 18a" in page


# The figures there are.


@pytest.mark.parametrize("name", recipes.FIGURES)
def test_figures_are_about_claims_and_panels_of_the_thesis(name):
    figure = recipes.FIGURES[name](EMBEDDED)
    assert set(figure.claims) <= set(recipes.CLAIMS)
    assert len({panel.name for panel in figure.panels}) == len(figure.panels) <= 3
    for panel in figure.panels:
        assert (panel.graph is None) == bool(panel.series)
        for reference, kind in ((recipes.CURVES, "curves"), (recipes.HISTOGRAMS, "histogram")):
            if panel.name in reference:
                assert panel.kind == kind and panel.series.keys() >= reference[panel.name].keys()
        assert bool(panel.series) == (panel.restarts > 0)


def test_every_panel_of_the_thesis_is_in_a_figure():
    panels = {panel.name for make in recipes.FIGURES.values() for panel in make(EMBEDDED).panels}
    assert panels >= {*recipes.CURVES, *recipes.HISTOGRAMS}


def test_other_processes_can_read_what_to_run():
    make_experiments = functools.partial(_reproduce.experiments_of, figures=recipes.FIGURES)
    plan = _runner.Plan(make_experiments, Path("cells"))
    read = pickle.loads(pickle.dumps(plan))
    assert read.make_experiments.func is _reproduce.experiments_of
    assert read.make_experiments.keywords == {"figures": recipes.FIGURES}
