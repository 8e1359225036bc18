import json
import signal
import time
import tomllib
from pathlib import Path

import equinox as eqx
import jax.random as jr
import numpy as np
import optax
import pytest
from l2o_cli._resolve import resolve, to_toml
from test_cli import TINY, _in_an_empty_folder, l2o_cli, sha256, start  # noqa: F401

import l2o_eqx as l2o

PRETRAIN = [
    "--pretrain-samples",
    "460",
    "--pretrain-batch-size",
    "4",
    "--pretrain-steps",
    "2",
    "--pretrain-omega",
    "1.5",
    "--pretrain-meta-learning-rate",
    "0.01",
    "--pretrain-eps",
    "1e-9",
]
# For those who take it up again.
KEPT = {".lock", "checkpoints"}
FILES = {"config.toml", "run.json", "pretraining.csv", "pretraining.png", "optimizer.safetensors"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run of `l2o pretrain`, and what it printed."""
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    return folder, l2o_cli("pretrain", "--hidden-sizes", 3, *PRETRAIN, "--out", folder).output


@pytest.fixture
def no_baselines(monkeypatch):
    monkeypatch.setattr("l2o_eqx._baselines.BASELINES", {})


def test_the_run_is_that_of_the_library(pretrained):
    folder, output = pretrained
    assert {path.name for path in folder.iterdir()} - KEPT == FILES
    assert "60 meta-parameters): 115 updates x 4 coordinates x 2 steps" in output
    root = jr.key(0)
    untrained = l2o.optimizers.CoordinatewiseLSTM((3,), learning_rate=0.001, key=jr.split(root, 3)[0])
    key = jr.fold_in(root, 1000)
    before = l2o.pretraining_report(untrained, key=key)
    solution = l2o.pretrain(
        untrained,
        omega=1.5,
        num_steps=2,
        batch_size=4,
        num_samples=460,
        meta_optimizer=optax.adam(0.01, eps=1e-9),
        key=key,
    )
    assert eqx.tree_equal(l2o.load(folder / "optimizer.safetensors"), solution.optimizer)
    np.testing.assert_array_equal(
        l2o.plots.read_pretraining(folder / "pretraining.csv").astype(np.float32), solution.losses
    )
    record = json.loads((folder / "run.json").read_text())
    assert record["result"] == "completed" and record["optimizers"] == ["optimizer.safetensors"]
    facts = record["pretraining"]
    assert facts["num_updates"] == 115
    for name, report in (("before", before), ("after", solution.report)):
        assert facts[name] == {
            "sign_agreement": float(report.sign_agreement),
            "relative_error": float(report.relative_error),
        }
        assert f"{float(report.sign_agreement):.1%} {name}" in output


def test_a_training_that_pretrains_begins_there(pretrained, no_baselines):
    folder, _ = pretrained
    arguments = [*TINY, "--config", folder / "config.toml", "--super-epochs", 1, "--quiet"]
    answer = json.loads(l2o_cli("train", *arguments, "--json", "--out", "with").stdout)
    assert sha256("with/pretraining.csv") == sha256(folder / "pretraining.csv")
    assert Path("with/pretraining.png").exists()
    facts = json.loads((folder / "run.json").read_text())["pretraining"]
    assert answer["pretraining"] == json.loads(Path("with/run.json").read_text())["pretraining"] == facts
    l2o_cli("train", *arguments, "--no-pretrain", "--out", "without")
    assert not Path("without/pretraining.csv").exists()
    assert "pretraining" not in json.loads(Path("without/run.json").read_text())
    assert sha256("with/curves.csv") != sha256("without/curves.csv")
    # Settings of a pretraining that does not take place change nothing.
    l2o_cli("train", *TINY, "--super-epochs", 1, "--quiet", "--out", "plain")
    assert sha256("plain/curves.csv") == sha256("without/curves.csv")


def test_restarts_are_pretrained_apart_and_compared(no_baselines):
    arguments = ["--hidden-sizes", 3, "--dim", 2, *PRETRAIN, "--restarts", 2, "--out", "out"]
    result = l2o_cli("pretrain", *arguments, "--json")
    answer = json.loads(result.stdout)
    assert "medians of 2 restarts" in result.stderr and len(answer["files"]) == 2
    assert len(answer["pretraining"]["after"]["sign_agreement"]) == 2
    losses = l2o.plots.read_pretraining("out/pretraining.csv")
    assert losses.shape == (2, 115) and not np.array_equal(*losses)
    evaluation = l2o_cli("evaluate", "out", "--steps", 5, "--objectives", 2, "--json")
    assert len(json.loads(evaluation.stdout)["restarts"]["medians"]) == 2
    Path("out/pretraining.png").unlink()
    assert "pretraining.png" in l2o_cli("plot", "out").output
    assert Path("out/pretraining.png").read_bytes().startswith(b"\x89PNG")


def test_configurations_without_the_table_are_read():
    table = tomllib.loads(to_toml(resolve([])))
    assert table.pop("pretraining")["enabled"] is False
    assert resolve([table]) == resolve([])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("pretrain --pretrain-samples 3", "'--pretrain-samples' (pretraining.num_samples): got 3, must be"),
        ("train --preset thesis --pretrain --pretrain-batch-size 300000", "at least 300000"),
        ("train --pretrain", "'--pretrain' (pretraining.enabled): teaches"),
        ("pretrain --optimizer adam-mlp", "'adam-mlp' starts as something better"),
        ("pretrain --pretrain-loss mse", "sign-weighted, squared"),
        ("pretrain --pretrain-omega -1", "--pretrain-omega"),
        ("pretrain --pretrain-omega 3 --pretrain-loss squared", "'sign-weighted' only"),
        ("pretrain --window 3", "--window"),
        ("pretrain --out there", "--out"),
    ],
)
def test_mistakes_give_one_line_and_write_nothing(arguments, named, tmp_path):
    Path("there").mkdir()
    stderr = l2o_cli(*arguments.split(), code=2).stderr
    assert stderr.count("\n") == 1 and named in stderr
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_an_interrupt_leaves_whole_files_only(tmp_path):
    process = start("pretrain", "--hidden-sizes", 3, "--pretrain-samples", 10**9, "--out", "out")
    while not (tmp_path / "out" / "run.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == ""
    assert "no optimizer was saved" in stdout
    assert json.loads((tmp_path / "out/run.json").read_text())["result"] == "stopped"
    assert {path.name for path in (tmp_path / "out").iterdir()} - KEPT == {"config.toml", "run.json"}


def test_an_interrupt_while_pretraining_ends_the_training(monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("l2o_cli._run.run_pretraining", interrupt)
    output = l2o_cli("train", *TINY, "--pretrain", "--out", "out", code=130).output
    assert "untrained and was not saved" in output
    assert json.loads(Path("out/run.json").read_text())["result"] == "stopped"
    assert {path.name for path in Path("out").iterdir()} - KEPT == {"config.toml", "run.json"}
