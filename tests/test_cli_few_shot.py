"""`l2o train --objective sinusoid`: a learned start, one trained on all tasks, and the fits of both."""

import csv
import json
from pathlib import Path

import jax.random as jr
import matplotlib.image
import numpy as np
import pytest
from test_cli import _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o
from l2o_eqx import plots
from l2o_eqx.optimizers import GradientDescent, LearnedStart

TINY = ["--objective", "sinusoid", "--network-sizes", "4,3", "--super-epochs", 4, "--per-call", 2]
TINY += ["--num-objectives", 2, "--eval-objectives", 3, "--tuning-objectives", 2, "--eval-steps", 3]
TINY += ["--learning-rates", "0.01,0.1", "--restarts", 2]


@pytest.fixture
def no_baselines(monkeypatch):
    monkeypatch.setattr("l2o_eqx._baselines.BASELINES", {})


def test_a_run_has_a_joint_start_and_fits(no_baselines):
    result = l2o_cli("train", *TINY, "--out", "run", "--json")
    answer, run = json.loads(result.stdout), Path("run")
    assert {row["name"] for row in answer["summary"]} == {"learned", "untrained", "joint"}
    assert "joint: gradient descent from a start trained on all tasks without inner steps" in result.stderr
    # Four super epochs in two calls.
    metrics = l2o.callbacks.read_metrics(run / "metrics.jsonl")
    np.testing.assert_array_equal(metrics["super_epoch"], [2, 4])
    assert metrics["meta_loss"].shape == (2, 2)
    learner = l2o.load(run / "optimizers/restart-000.safetensors")
    assert isinstance(learner, LearnedStart) and isinstance(learner.inner, GradientDescent)
    assert learner.inner.learning_rate == 0.01 and learner.inner.rates == "fixed"
    # The losses are those on the query sets, where a run ends.
    family = l2o.objectives.Sinusoid(10, hidden_sizes=(4, 3))
    key = jr.split(jr.split(jr.key(0), 3)[2])[1]
    expected = l2o.evaluate(learner, family, num_steps=3, num_objectives=3, key=key).final_losses
    with open(run / "final_losses.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["optimizer"] == "learned" and r["restart"] == "0"]
    np.testing.assert_allclose([float(r["final_loss"]) for r in rows], expected, rtol=1e-4)
    check_fits(run, {"learned", "joint"})
    (run / "fits.png").unlink()
    assert "fits.png" in l2o_cli("plot", "run").output
    assert matplotlib.image.imread(run / "fits.png").shape[0] > 400


def check_fits(folder, names):
    """Before, after one step and after the last one; the truth is a line."""
    fits = plots.read_fits(folder / "fits.csv")
    assert len(fits) == 2
    for task in fits:
        assert task["support", 0].shape == (2, 10) and task["query", 0].shape == (2, 300)
        assert {key for key in task if key[0] in names} == {(name, s) for name in names for s in (0, 1, 2)}
        assert {name for name, _ in task} == names | {"support", "query"}


def test_an_evaluation_has_fits_too_and_joint_may_be_left_out(no_baselines):
    result = l2o_cli("train", *TINY, "--no-joint", "--out", "run", "--order", "first")
    assert "joint" not in result.output
    check_fits(Path("run"), {"learned"})
    l2o_cli("evaluate", "run", "--no-baselines", "--steps", 3, "--out", "again")
    check_fits(Path("again"), {"learned"})
