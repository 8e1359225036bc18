"""Plug-ins: of a package that is built and installed, and of a module beside where one stands."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np
import optax
import pytest
from l2o_cli import _kinds
from test_cli import l2o_cli

import l2o_eqx as l2o

OUTSIDE = Path(__file__).parent / "outside_package"
TINY = [
    *("--num-steps", "6", "--super-epochs", "2", "--num-objectives", "2", "--eval-objectives", "2"),
    *("--tuning-objectives", "1", "--learning-rates", "0.1", "--last-steps", "1", "--set", "preset=thesis"),
]
ALL_OUTSIDE = [
    *("--objective", "outside-bowls", "--size", "2", "--widest", "3"),
    *("--optimizer", "outside-clipped", "--largest", "0.5"),
    *("--inner", "outside-rate", "--start", "0.05", "--preprocessor", "outside-root", "--power", "0.7"),
    *("--estimator", "outside-differences", "--width", "0.01"),
    *("--strategy", "outside-halves", "--weighting", "outside-last", "--share", "0.4"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package installed into it."""
    folder = tmp_path_factory.mktemp("site")
    source = shutil.copytree(OUTSIDE, tmp_path_factory.mktemp("source") / "outside_package")
    uv = shutil.which("uv")
    install = [uv, "pip", "install"] if uv else [sys.executable, "-m", "pip", "install"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder)]
    python = ["--python", sys.executable] if uv else []
    subprocess.run([*install, *python, *options, str(source)], check=True, cwd=source)
    return folder


def _forget():
    _kinds._entry_points.cache_clear()
    _kinds._NAMED.clear()
    for name in ("mine", "more", "outside"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


@pytest.fixture
def run(monkeypatch):
    """The command line as in a new process, in a folder and with an installation; without baselines."""
    monkeypatch.setattr("l2o_eqx._baselines.BASELINES", {})
    path = [*sys.path]

    def call(arguments, *, site=None, cwd, code=0):
        _forget()
        monkeypatch.setattr(sys, "path", [*([str(site)] if site else []), *path])
        monkeypatch.chdir(cwd)
        return l2o_cli(*arguments, code=code)

    yield call
    _forget()


def test_an_installed_package_adds_one_of_each(site, tmp_path, run):
    """Seen in the help, trained with, repeated from the file of the run, and evaluated."""
    text = " ".join(run(["train", *ALL_OUTSIDE, "--help"], site=site, cwd=tmp_path).stdout.split())
    for words in (
        "--size INT How many coordinates. For objective outside-bowls. Default: 3.",
        "--largest FLOAT The largest move of an entry. Default: 0.1.",
        "--start FLOAT The rate at first. Default: 0.1.",
        "--power FLOAT The p. For preprocessor outside-root. Default: 0.5.",
        "--width FLOAT How far a meta-parameter is moved.",
        "--share FLOAT Which share of them. For weighting outside-last. Default: 0.5.",
    ):
        assert words in text
    answer = run(["train", *ALL_OUTSIDE, *TINY, "--out", "run", "--json"], site=site, cwd=tmp_path)
    assert json.loads(answer.stdout)["result"] == "completed"
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert config["objective"] == {"kind": "outside-bowls", "size": 2, "widest": 3.0}
    preprocessor = {"kind": "outside-root", "power": 0.7}
    inner = {"kind": "outside-rate", "start": 0.05, "preprocessor": preprocessor}
    assert config["optimizer"] == {"kind": "outside-clipped", "inner": inner, "largest": 0.5}
    estimator = {"kind": "outside-differences", "width": 0.01}
    assert config["strategy"] == {
        "kind": "outside-halves",
        "estimator": estimator,
        "include_final_loss": False,
    }
    assert config["weighting"] == {"kind": "outside-last", "share": 0.4}
    again = ["train", "--config", "run/config.toml", "--out", "again", "--quiet"]
    run(again, site=site, cwd=tmp_path)
    files = [(tmp_path / name / "optimizer.safetensors").read_bytes() for name in ("run", "again")]
    assert files[0] == files[1]
    evaluated = run(["evaluate", "run", "--steps", 9, "--size", 4, "--json"], site=site, cwd=tmp_path)
    facts = json.loads(evaluated.stdout)
    assert facts["objective_settings"] == {"kind": "outside-bowls", "size": 4, "widest": 3.0}
    assert facts["optimizer"] == "ClippedUpdates" and facts["num_steps"] == 9


def test_an_installed_package_adds_a_command(site, tmp_path):
    """In processes of their own."""

    def call(*words):
        paths = [str(site), *filter(None, sys.path)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "80"}
        words = [sys.executable, "-m", "l2o_cli", *words]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)

    listed = call("--help").stdout
    assert "outside-hello" in listed and "Greet somebody." in listed
    assert call("outside-hello", "--name", "you").stdout == "Hello, you.\n"
    failed = call("outside-hello", "--name", "")
    assert failed.stderr == "l2o: option '--name': must not be empty\n" and failed.returncode == 2


def test_the_installed_package_is_used_from_python(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    import outside

    inner = outside.LearnedRate(0.05, outside.SignedRoot(0.7), key=jr.key(0))

    def train(estimator) -> Any:
        return l2o.meta_train(
            outside.ClippedUpdates(inner, 0.5),
            outside.make_bowls(2),
            outside.Halves(estimator),
            weighting=outside.LastShare(0.4),
            meta_optimizer=optax.sgd(1e-2),
            num_steps=6,
            super_epochs=2,
            num_objectives=2,
            key=jr.key(1),
        ).optimizer

    trained = train(outside.Differences())
    assert isinstance(trained, outside.ClippedUpdates) and isinstance(trained.inner, outside.LearnedRate)
    assert trained.inner.log_rate != inner.log_rate and trained.inner.shift != 0
    # Differences are of the meta-loss itself: the true gradient.
    exact = train(l2o.estimators.Backprop(()))
    np.testing.assert_allclose(trained.inner.log_rate, exact.inner.log_rate, rtol=1e-3)
    np.testing.assert_allclose(trained.inner.shift, exact.inner.shift, rtol=1e-2, atol=1e-4)


@pytest.fixture
def beside(tmp_path):
    """A folder with a module of one's own: that of the package."""
    shutil.copy(OUTSIDE / "outside" / "__init__.py", tmp_path / "mine.py")
    return tmp_path


def test_a_module_of_ones_own(beside, run):
    """Named by `module:name`; without it the command line says why."""
    chosen = ["--objective", "mine:make_bowls", "--size", 2, "--optimizer=mine:LearnedRate", "--start", 0.2]
    text = run(["train", *chosen, "--help"], cwd=beside).stdout
    assert "--size INT" in text and "--start FLOAT" in text
    run(["train", *chosen, *TINY, "--window", 3, "--out", "run", "--quiet"], cwd=beside)
    config = tomllib.loads((beside / "run/config.toml").read_text())
    assert config["objective"] == {"kind": "mine:make_bowls", "size": 2, "widest": 4.0}
    assert config["optimizer"]["kind"] == "mine:LearnedRate" and config["optimizer"]["start"] == 0.2
    options = ["--no-baselines", "--steps", 5, "--json"]
    facts = json.loads(run(["evaluate", "run", *options], cwd=beside).stdout)
    assert facts["optimizer"] == "LearnedRate" and facts["objective"] == "mine:make_bowls"
    file = "run/optimizer.safetensors"
    assert json.loads(run(["evaluate", file, *options], cwd=beside).stdout)["summary"] == facts["summary"]
    (beside / "mine.py").unlink()
    for words in (["evaluate", "run"], ["evaluate", file], ["train", "--config", "run/config.toml"]):
        stderr = run(words, cwd=beside, code=2).stderr
        assert "'mine:make_bowls' cannot be imported: ModuleNotFoundError" in stderr
        assert stderr.startswith("l2o: option '--objective' (objective.kind): ") and stderr.count("\n") == 1


def test_a_plug_in_takes_no_name_from_the_library(beside, run):
    """Such a setting has a longer option; what it shares with the library is explained in its words."""
    (beside / "more.py").write_text(
        "import mine\n"
        "def make(window: int = 2, dim: int = 1) -> mine.Bowls:\n"
        '    """Bowls.\n\n    **Arguments:**\n\n    - `dim`: how many.\n    """\n'
        "    return mine.Bowls(dim, float(window))\n"
    )
    text = run(["train", "--objective", "more:make", "--help"], cwd=beside).stdout
    assert "--objective-window INT" in text and "--dim INT" in text and "How many." in text
    chosen = ["--objective", "more:make", "--objective-window", 5, "--window", 3, "--dim", 2]
    config = "more:make --set objective.window=0.5"
    stderr = run(["train", "--objective", *config.split()], cwd=beside, code=2).stderr
    assert "option '--objective-window' (objective.window): got '0.5', must be an integer" in stderr
    run(["train", *chosen, *TINY, "--out", "run", "--quiet"], cwd=beside)
    made = tomllib.loads((beside / "run/config.toml").read_text())
    assert made["objective"]["window"] == 5 and made["strategy"]["window"] == 3


def test_a_file_saved_from_python_with_ones_own_classes(beside, run, monkeypatch):
    monkeypatch.syspath_prepend(str(beside))
    l2o.save(beside / "mine.safetensors", importlib.import_module("mine").LearnedRate(key=jr.key(0)))
    options = ["--dim", 2, "--steps", 5, "--objectives", 2, "--no-baselines", "--json"]
    stderr = run(["evaluate", "mine.safetensors", *options], cwd=beside, code=2).stderr
    assert "mine:LearnedRate" in stderr and stderr.count("\n") == 1
    stderr = run(["evaluate", "mine.safetensors", "--classes", "nowhere"], cwd=beside, code=2).stderr
    assert "option '--classes': 'nowhere' cannot be imported" in stderr and stderr.count("\n") == 1
    words = ["evaluate", "mine.safetensors", "--classes", "mine", *options]
    assert json.loads(run(words, cwd=beside).stdout)["optimizer"] == "LearnedRate"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--objective", "nowhere:make"], ["--objective", "'nowhere:make'", "No module named"]),
        (["--objective", "mine:nothing"], ["--objective", "'mine:nothing'", "has no attribute"]),
        (["--objective", "mine:LearnedRate"], ["--objective", "AbstractObjectiveFamily"]),
        (["--objective", "os:system"], ["--objective", "'os:system' must be a subclass"]),
        (["--set", "weighting.kind=os:getcwd"], ["--weighting", "'os:getcwd' must be a subclass"]),
        (["--objective", "mine:make_bowls", "--size", "x"], ["--size", "'x'", "must be an integer"]),
        (["--objective", "mine:make_bowls", "--dim", "3"], ["--dim", "'mine:make_bowls'"]),
        (["--objective", "bowls"], ["'bowls'", "did you mean 'bowl'?", "module:name"]),
    ],
)
def test_mistakes_with_plug_ins_give_one_line(words, named, beside, run):
    stderr = run(["train", *words], cwd=beside, code=2).stderr
    assert stderr.count("\n") == 1 and [part for part in named if part not in stderr] == [], stderr


MISTAKEN = """
import jax.numpy as jnp
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, Booth
from l2o_eqx.optimizers import AbstractOptimizer

class Vector(AbstractObjective):
    def init(self, key):
        return jnp.ones(3)
    def loss(self, params, step, key):
        return params**2

class Vectors(AbstractObjectiveFamily):
    def sample(self, key):
        return Vector()

class NaN(Vector):
    def loss(self, params, step, key):
        return jnp.sum(params) * jnp.nan

class NaNs(AbstractObjectiveFamily):
    def sample(self, key):
        return NaN()

def number() -> AbstractObjectiveFamily:
    return 3

class Stateless(AbstractOptimizer):
    rate: jnp.ndarray
    def init(self, params):
        return None
    def update(self, grads, state, params, *, value=None, key=None):
        return grads

def stateless() -> AbstractOptimizer:
    return Stateless(jnp.float32(0.1))
"""


@pytest.mark.parametrize(
    "options, message",
    [
        (["--objective", "mine:Vectors"], "`Vector.loss` must return one floating-point number"),
        (["--objective", "mine:number"], "'mine:number' has returned a int, which is no l2o_eqx.objectives."),
        (
            ["--objective", "booth", "--optimizer", "mine:stateless"],
            "`Stateless.update` must return two things, the updates and the next state",
        ),
    ],
)
def test_mistakes_in_a_module_are_one_line_and_leave_nothing(options, message, tmp_path, run):
    (tmp_path / "mine.py").write_text(MISTAKEN)
    error = run(["train", *options, *TINY, "--window", "3", "--out", "out"], cwd=tmp_path, code=2).stderr
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_training_of_which_nothing_is_finite_has_failed(tmp_path, run):
    (tmp_path / "mine.py").write_text(MISTAKEN)
    found = run(
        ["train", "--objective", "mine:NaNs", *TINY, "--window", "3", "--out", "out"], cwd=tmp_path, code=1
    )
    assert found.stderr.splitlines()[-1].startswith("l2o: the training has failed: no loss was ever finite")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["failed_restarts"] == [0]
