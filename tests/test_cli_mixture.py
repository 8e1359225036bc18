"""Several objectives from the shell."""

import json
import tomllib

import matplotlib.image
import numpy as np
import pytest
from l2o_cli._build import build
from l2o_cli._errors import UsageError
from l2o_cli._resolve import resolve, to_toml
from test_cli import _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o
from l2o_eqx.objectives import Booth, Choice, Mixture, Quadratic, Scaled

SMALL = (
    *("--num-steps", "6", "--window", "3", "--super-epochs", "3", "--num-objectives", "2"),
    *("--eval-objectives", "2", "--tuning-objectives", "2", "--learning-rates", "0.01,0.1"),
    *("--hidden-size", "3", "--validate-every", "2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture") / "run"
    options = ("--set", "objective.families.quadratic.dim=3", "--set", "objective.weights.booth=2")
    output = l2o_cli(
        *("train", "--objective", "quadratic,booth", *options, *SMALL, "--against", "adam", "--out", folder)
    ).output
    assert "on quadratic, booth (2 to 3 coordinates)" in output
    assert "lowest median on" in output and "Adam" in output and "momentum" not in output.split("tuned")[1]
    return folder


def test_a_run_keeps_what_it_did_on_each_family(folder):
    config = tomllib.loads((folder / "config.toml").read_text("utf-8"))["objective"]
    assert config["kind"] == "mixture" and config["families"]["quadratic"]["dim"] == 3
    assert config["weights"] == {"quadratic": 1.0, "booth": 2.0}
    assert json.loads((folder / "run.json").read_text("utf-8"))["num_coordinates"] == {
        "quadratic": 3,
        "booth": 2,
    }
    metrics = l2o.callbacks.read_metrics(folder / "metrics.jsonl")
    finite = [np.isfinite(metrics[f"final_loss/{name}"]) for name in ("quadratic", "booth")]
    np.testing.assert_array_equal(np.sum(finite, axis=0), np.ones(3))
    compared = json.loads((folder / "comparison.json").read_text("utf-8"))["families"]
    for name in ("quadratic", "booth"):
        own = json.loads((folder / "families" / name / "comparison.json").read_text("utf-8"))
        assert own["family"] == name and own["summary"] == compared[name]["summary"]
        assert {row["name"] for row in own["summary"]} == {"learned", "untrained", "Adam"}
    assert matplotlib.image.imread(folder / "curves.png").shape[1] > 600


def test_its_pictures_are_drawn_again_on_all_and_on_each(folder, tmp_path):
    l2o_cli("plot", folder, "--out", tmp_path)
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert {"curves.png", "training.png", "families/booth/curves.png"} <= drawn
    before, after = (matplotlib.image.imread(f / "curves.png") for f in (folder, tmp_path))
    np.testing.assert_array_equal(after, before)


def test_it_is_evaluated_on_all_or_on_another(folder):
    small = ("--eval-objectives", "2", "--no-baselines")
    found = json.loads(l2o_cli("evaluate", folder, *small, "--json", "--quiet").output)
    assert found["families"].keys() == {"quadratic", "booth"}
    one = json.loads(
        l2o_cli("evaluate", folder, "--objective", "rosenbrock", *small, "--json", "--quiet").output
    )
    assert one["objective"] == "rosenbrock" and "families" not in one
    refused = l2o_cli("evaluate", folder, "--card", "--eval-objectives", "2", code=2).output
    assert "one kind of objective" in refused


def test_what_names_several_is_built():
    config = resolve([{"objective": "quadratic,booth"}])
    again = resolve([tomllib.loads(to_toml(config))])
    assert again == config
    family = build(again).family
    assert isinstance(family, Mixture)
    assert family.families == {"quadratic": Quadratic(), "booth": Booth()}
    parts = build(resolve([{"objective": "wichrowska", "optimizer": "learned-momentum"}]))
    assert isinstance(parts.family, Mixture) and parts.validation is not None
    assert isinstance(parts.validation.family, Mixture)
    assert parts.validation.family.families.keys() != parts.family.families.keys()
    assert sum(len(f.families) for f in parts.family.families.values() if isinstance(f, Choice)) == 25


def test_digits_are_described_over_all_families():
    """Of the 5,000 embedded ones episodes draw from seven classes, networks from all."""
    data = {"data": "embedded"}
    families = {"few-shot-digits": data, "mnist": data}
    layer = {"objective": {"kind": "few-shot-digits,mnist", "families": families}}
    parts = build(resolve([layer]))
    assert parts.data is not None and "of which 5,000 are used" in parts.data["description"]


def test_families_inside_have_settings_of_their_own():
    layer = {
        "objective": {"kind": "booth,scaled", "families": {"scaled": {"family": "quadratic", "low": 0.1}}},
        "validation": {"every": 2, "objective": "rosenbrock,booth"},
    }
    parts = build(resolve([layer]))
    assert isinstance(parts.family, Mixture)
    assert parts.family.families["scaled"] == Scaled(Quadratic(), 0.1)
    assert parts.validation is not None and isinstance(parts.validation.family, Mixture)


@pytest.mark.parametrize(
    "layer, message",
    [
        ({"objective": "booth,nonsense"}, "nonsense"),
        ({"objective": "booth,booth"}, "named twice"),
        ({"objective": {"kind": "booth,quadratic", "dim": 3}}, "objective.families.NAME.dim"),
        ({"objective": {"kind": "booth,quadratic", "weights": {"booth": 0}}}, "greater than 0"),
        ({"objective": {"kind": "booth,quadratic", "weights": {"both": 1}}}, "both"),
        ({"objective": {"kind": "booth,quadratic", "families": {"quadratic": {"dimm": 3}}}}, "dimm"),
        ({"objective": {"kind": "booth,quadratic", "families": {"sum": {"dim": 3}}}}, "families.sum"),
        ({"objective": {"kind": "booth,quadratic", "families": 3}}, "must be a table"),
        ({"evaluation": {"against": ["adam", "adamm"]}}, "adamm"),
        ({"validation": {"every": 2, "objective": "bootth"}}, "bootth"),
    ],
)
def test_mistakes_are_said_in_one_line(layer, message):
    with pytest.raises(UsageError, match=message):
        build(resolve([layer]))


def test_nothing_is_won_where_there_is_no_baseline():
    """Of two optimizers of the gallery alone; the table says so, too."""
    small = ("--steps", 3, "--objectives", 2)
    result = l2o_cli("compare", "quadratic", "classifiers", "--objective", "booth,beale", *small)
    assert "lowest median" not in result.output and "broken" not in result.output
