"""Cores, the cache of compiled programs, and `l2o bench`."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from l2o_bench import _measure, _run
from l2o_bench._cases import CASES
from l2o_cli import _start
from l2o_cli._app import app
from typer.testing import CliRunner

SMALL = [
    *("train", "--preset", "thesis", "--dim", "2", "--num-steps", "6", "--window", "3"),
    *("--super-epochs", "2", "--num-objectives", "2", "--eval-objectives", "2", "--tuning-objectives", "2"),
    *("--hidden-sizes", "3", "--learning-rates", "0.1"),
]
VARIABLES = ("JAX_NUM_CPU_DEVICES", "NPROC", "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


@pytest.fixture
def without_jax(monkeypatch):
    """As in a process that has not imported JAX."""
    monkeypatch.delitem(sys.modules, "jax")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))


def started(**options):
    _start.start(**options)
    return [os.environ.get(name) for name in VARIABLES]


def test_all_cores_and_a_cache_by_default(without_jax):
    devices, threads, folder, enabled = started(cores=2)
    assert devices == "2" and int(threads or 0) > 2 and enabled is None
    assert folder and folder.endswith("l2o_eqx")


def test_one_core_has_one_thread_and_no_cache_means_none(without_jax):
    assert started(cores=1, cache=False) == ["1", "1", None, "false"]


def test_what_the_environment_says_is_left_alone(without_jax):
    os.environ |= {"NPROC": "5", "JAX_COMPILATION_CACHE_DIR": "here"}
    assert started() == [None, "5", "here", None]


def test_cores_that_are_asked_for_count_more(without_jax):
    os.environ |= {"NPROC": "1"}
    assert started(cores=3)[:2] == ["3", "5"]


def test_none_for_a_command_whose_processes_choose(without_jax):
    assert started(cores=0)[:2] == [None, None]


@pytest.mark.thorough
def test_cache_holds_programs_for_the_next_call(tmp_path):
    """Two cores, twice: the second call finds all it needs, and ends at the same bits."""
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")

    def train(name):
        command = [sys.executable, "-c", "from l2o_cli import main; main()", *SMALL]
        done = subprocess.run(
            [*command, "--out", name, "--cores", "2"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        programs = {path.name for path in (tmp_path / "cache").glob("*-cache")}
        return programs, (tmp_path / name / "optimizer.safetensors").read_bytes()

    first, second = train("first"), train("second")
    assert first[0] and second == first
    assert json.loads((tmp_path / "first" / "run.json").read_text())["device"] == "2 cpu cores"


def bench(*arguments, code=0):
    result = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_bench_measures_both_sides(tmp_path, monkeypatch):
    """Of a case with few coordinates, in measurements of no length."""
    monkeypatch.setattr(_run, "matrix_peak", lambda: 1e9)
    monkeypatch.setattr(_measure, "_SHORTEST", 0.0)
    small = dataclasses.replace(
        CASES["synthetic-1e4"], family=lambda: CASES["quadratic-1"].family(), num_windows=1
    )
    monkeypatch.setitem(CASES, "synthetic-1e4", small)
    folder = tmp_path / "bench"
    result = bench("synthetic-1e4", "--repeats", "1", "--out", str(folder))
    found = json.loads((folder / "bench.json").read_text())
    sides = found["cases"]["synthetic-1e4"]["sides"]
    for side in ("l2o_eqx", "scan + grad", "scan + grad, checkpoint"):
        assert sides[side]["steps_per_second"][0] > 0 and sides[side]["temporaries_bytes"] > 0
        assert side in result.output
    assert (folder / "bench.png").stat().st_size > 1000
    assert "exists" in bench("synthetic-1e4", "--out", str(folder), code=2).output


def test_bench_names_what_there_is():
    assert "first-update" in bench("--list").output
    assert "did you mean 'mlp-1'" in bench("mlp1", code=2).output
    assert "'all' takes all" in bench(code=2).output
