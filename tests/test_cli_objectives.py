"""`l2o objectives`, and families of families on the command line."""

import json
from pathlib import Path

import matplotlib.image
import pytest
from l2o_cli._build import build
from l2o_cli._errors import UsageError
from l2o_cli._kinds import own_kinds, signature
from l2o_cli._resolve import resolve
from test_cli import _few_baselines, _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o


def test_the_list_has_every_family_with_its_first_line():
    lines = [line.split("  ", 2) for line in l2o_cli("objectives").output.splitlines()]
    found = {parts[1].strip(): parts[2].strip() for parts in lines if len(parts) == 3}
    assert found.keys() >= {*own_kinds("objectives")}
    assert all(found[kind] == signature("objectives", kind).summary for kind in own_kinds("objectives"))
    output = l2o_cli("objectives").output
    families, wrappers = output.split("Around other families:")
    assert "rosenbrock" in families and "sparse-gradients" in wrappers and "sum" in wrappers


def test_one_is_described():
    output = l2o_cli("objectives", "branin").output
    assert "three minima" in output and "Reference: Branin 1972" in output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny training on a wrapped family."""
    folder = tmp_path_factory.mktemp("zoo") / "run"
    options = (
        "--preset thesis --num-steps 6 --window 3 --super-epochs 2 --num-objectives 2 --eval-objectives 2"
    )
    more = "--tuning-objectives 2 --hidden-sizes 3 --learning-rates 0.01,0.1"
    l2o_cli(
        "train", "--objective", "log", "--family", "booth", *options.split(), *more.split(), "--out", folder
    )
    return folder


def test_a_wrapped_family_is_trained_on(trained):
    config = json.loads((trained / "run.json").read_text("utf-8"))
    assert config["result"] == "completed"
    text = (trained / "config.toml").read_text("utf-8")
    assert 'kind = "log"' in text and 'kind = "booth"' in text
    assert l2o.callbacks.read_metrics(trained / "metrics.jsonl")["super_epoch"].tolist() == [1, 2]


def test_a_picture_has_both_paths(trained):
    options = ("--family", "booth", "--steps", 5, "--optimizer", trained, "--out", "a.png")
    output = l2o_cli("objectives", "log", *options).output
    assert "The picture is in a.png" in output
    assert matplotlib.image.imread("a.png").shape[0] > 400
    drawn = Path("a.png").read_bytes()
    error = l2o_cli("objectives", "booth", "--out", "a.png", code=2)
    assert "a.png exists and is not overwritten" in str(error.exception or "") + error.output
    assert Path("a.png").read_bytes() == drawn


MISTAKES = {
    "objectives rosenbrok": ["NAME", "rosenbrock"],
    "objectives --out a.png": ["NAME", "must be given"],
    "objectives booth --optimizer run": ["--optimizer", "--out"],
    "objectives booth --out a.gif": ["--out", ".png, .svg, .pdf"],
    "objectives rastrigin --dim 3 --out a.png": ["--out", "two coordinates", "(3,)"],
    "objectives booth --out a.png --optimizer none": ["--optimizer", "neither a folder nor a file"],
    "objectives booth --dim 3 --out a.png": ["--dim", "booth"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_one_line(line):
    error = l2o_cli(*line.split(), code=2)
    message = str(error.exception or "") + error.output
    assert all(word in message for word in MISTAKES[line]), message
    assert not list(Path().glob("*.png"))


def test_digits_of_any_part_are_those_that_are_asked_for():
    table = {"kind": "mnist", "data": "embedded", "num_examples": 50, "batch_size": 4, "hidden_sizes": [2]}
    both = {"kind": "sum", "family": {"kind": "synthetic-classification"}, "other": table}
    parts = build(resolve([{"objective": both}]))
    assert parts.data and "of which 50 are used" in parts.data["description"]
    assert parts.config.objective.other.data_sha256 == parts.data["sha256"]
    with pytest.raises(UsageError, match="data_sha256"):
        build(resolve([{"objective": {**both, "other": {**table, "data_sha256": "abc"}}}]))
