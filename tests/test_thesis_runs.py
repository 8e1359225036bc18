"""`l2o reproduce`: jobs, what is kept and taken up, pictures, verdicts and the report."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.image
import numpy as np
import pytest
from l2o_cli._app import app
from l2o_thesis import experiment as experiments
from l2o_thesis import jobs, measurements, reproduce, show
from l2o_thesis.build import make_optimizer
from l2o_thesis.experiment import Experiment, Results
from l2o_thesis.facts import CLAIMS
from l2o_thesis.figures import FIGURES, experiment_settings, read_figure
from typer.testing import CliRunner

from l2o_eqx.data import load_mnist

QUICK = ["--quick", "--data", "embedded", "--processes", 1]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def l2o_cli(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def fake(spec, numbers):
    """Results that depend on settings and numbers of restarts alone; one of them diverges."""
    steps = Experiment(spec, load_mnist("embedded")).kept_steps
    window = spec["window"]
    losses = 3.0 + np.sin(np.outer(1.0 + numbers, steps)) / window
    losses[numbers == 3, -3:] = np.inf
    measured = {"entropy": 0.1 * numbers, "hidden_size": 1.0 + numbers, "dead_units": 0.5 + 0 * numbers}
    return Results(
        losses.astype(np.float32),
        steps,
        spec["test_steps"],
        measured,
        {"grad_norm": 0.1 * (1 + numbers)},
        1.5,
    )


@pytest.fixture
def calls(monkeypatch):
    """Jobs of two restarts that are not computed; the list of those that were asked for."""
    done = []

    def run(experiment, *, restarts, first, seed, callbacks):
        done.append((experiment.spec["window"], first, restarts))
        return fake(experiment.spec, np.arange(first, first + restarts))

    monkeypatch.setattr(jobs, "run", run)
    monkeypatch.setattr(Experiment, "restarts_per_job", 2)
    numbers = {"GiB": {"first_3750": 20.0}, "GiB in words": {"GiB": 20.0}, "µs in words": {}}
    monkeypatch.setitem(
        measurements.MEASUREMENTS,
        "windows",
        lambda experiment, quick, seed: {
            **numbers,
            "seconds_per_step": {"T=16": [1.0] * 9, "T=64": [3.0] * 9},
        },
    )
    return done


def facts(folder, name):
    return json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_list_has_every_figure_with_its_claims():
    result = CliRunner().invoke(app, ["reproduce", "--list", "--quick", "--json"], env={"COLUMNS": "80"})
    answer = json.loads(result.stdout)
    assert list(answer["figures"]) == list(FIGURES)
    table, _, claims = result.stderr.partition("Claims, and the figures that decide them:")
    said = " ".join(claims.split())
    assert all(said.count(f"{number}: {claim.says}") == 1 for number, claim in CLAIMS.items())
    assert "(fig13, fig15)" in said and max(map(len, table.splitlines())) <= 80
    assert answer["figures"]["fig13"]["series"] == [{"restarts": 2, "series": 4}]
    measuring = {name for name, one in answer["figures"].items() if one["measures"]}
    assert measuring == {"gradients", "pretraining-loss", "windows", "baselines"}
    # Figures share experiments.
    each = sum(one["expected_minutes"] for one in answer["figures"].values())
    assert 0 < answer["expected_minutes"] < each


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("fi13", "there is no figure 'fi13'; did you mean 'fig13'? (possible: all, fig7"),
        ("", "which figures?"),
        ("fig9 --as thesis", "'figures', 'text', 'code'"),
        ("fig9 --restarts 0", "--restarts"),
        ("fig9 --so-far --processes 2", "'--so-far' runs nothing"),
        ("--list --report", "'--list' shows"),
        ("fig9 --out file", "file is no folder"),
        ("fig9 --data tfds --data-dir there", "option '--data': Full MNIST: "),
        ("--report --out there", "option '--report': there are no figures in there"),
    ],
)
def test_mistakes_give_one_line_and_write_nothing(arguments, named, tmp_path, monkeypatch):
    monkeypatch.setattr("l2o_eqx.data._tfds.reachable", lambda url: False)
    Path("there").mkdir()
    Path("file").touch()
    stderr = l2o_cli("reproduce", *arguments.split(), code=2).stderr
    assert stderr.count("\n") == 1 and named in stderr
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file", tmp_path / "there"]


def test_figures_are_run_drawn_judged_and_taken_up(calls):
    lines = l2o_cli("reproduce", "fig19", "fig9", *QUICK, "--restarts", 6).output.splitlines()
    folder = Path("reproduction/results/quick-figures")
    assert lines[0].startswith(f"0 of 24 restarts are finished in {folder}")
    assert lines[-4].startswith("fig19: Weighting of the losses: ")
    verdict = facts(folder, "fig19")["verdicts"][0]
    assert (
        lines[-3].startswith("  claim 34: ") and verdict["claim"] == 34 and verdict["statement"] in lines[-3]
    )
    picture = matplotlib.image.imread(folder / "fig19.png")
    assert picture.shape[0] > 300 and np.ptp(picture) > 0 and (folder / "fig9.png").exists()
    # All experiments advance together.
    assert [first for _, first, _ in calls] == [0] * 4 + [2] * 4 + [4] * 4
    finals = [r for r in rows(folder / "fig19-finals.csv") if (r["panel"], r["series"]) == ("19a", "linear")]
    spec = read_figure("fig19", "quick").panels[0].series["linear"]
    expected = fake(spec, np.arange(6)).losses[:, -1]
    np.testing.assert_allclose([float(r["final_loss"]) for r in finals], expected, rtol=2e-4)
    assert len(rows(folder / "fig19-curves.csv")) == sum(2 * [75, 61][i] for i in (0, 1))
    before = (folder / "fig19-finals.csv").read_bytes()
    calls.clear()
    again = l2o_cli("reproduce", "fig19", *QUICK, "--restarts", 6).output
    assert again.startswith("24 of 24 restarts are finished") and calls == []
    assert (folder / "fig19-finals.csv").read_bytes() == before


def test_settings_reach_the_experiments_and_the_report_has_all_that_is_there(calls):
    options = [*QUICK, "--as", "code", "--seed", 3, "--out", "out", "--quiet"]
    l2o_cli("reproduce", "fig13", "fig18", "windows", "fig9", *options)
    settings = facts("out", "fig13")["settings"]
    found = [settings[k] for k in ("scale", "source", "seed", "restarts", "data")]
    assert found == ["quick", "code", 3, None, "embedded"]
    assert (
        json.loads(l2o_cli("reproduce", "--out", "out", "--report", "--json").stdout)["report"]
        == "docs/thesis.md"
    )
    page = Path("docs/thesis.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (.*)$", page, re.MULTILINE) == ["fig9", "fig13", "fig18", "windows"]
    assert page.count("\n| ") > 100 and all(f"\n| {n} | " in page for n in CLAIMS)
    assert "| **holds** | [windows](#windows) |" in page and "| not tested |  |" in page
    assert "`l2o reproduce fig13 --quick --as code --seed 3 --data embedded`" in page
    assert "| 13a | sigmoid, thesis | 100 | 4 | 44 | 9 | 8 | 35 | 0 | 65% (55% to 74%) |" in page
    assert "- Claim 32 **holds**: median of time per inner step, T=64 / T=16: 3 (3 to 3)" in page
    assert "- Claim 30 **is undecided**:\n  - [undecided] median of T=16" in page
    assert (
        "| 18a | T=8 | 5 | " in page
        and "(thesis/fig18.png)" in page
        and Path("docs/thesis/fig18.png").exists()
    )
    assert "Made by" in page and "{{" not in page and "\n\n\n" not in page


def test_a_report_does_not_lose_what_the_page_in_its_place_has(calls):
    l2o_cli("reproduce", "fig18", *QUICK, "--out", "whole", "--report", "--quiet")
    page = Path("docs/thesis.md").read_bytes()
    l2o_cli("reproduce", "fig9", *QUICK, "--out", "part", "--quiet")
    stderr = l2o_cli("reproduce", "--out", "part", "--report", code=2).stderr
    assert (
        "docs/thesis.md has what is not in part (fig18, fig18/18a/T=16, fig18/18a/T=32 and 7 more)" in stderr
    )
    assert Path("docs/thesis.md").read_bytes() == page
    l2o_cli("reproduce", "--out", "part", "--report-to", "other.md")
    assert Path("other/fig9.png").exists()
    # Nor does it replace anything where something is missing or damaged.
    Path("part/fig9.png").unlink()
    l2o_cli("reproduce", "fig18", *QUICK, "--out", "part", "--quiet")
    stderr = l2o_cli("reproduce", "--out", "part", "--report-to", "other.md", code=2).stderr
    assert "option '--report': fig9.png is missing in part; run that figure again" in " ".join(stderr.split())
    assert sorted(Path("other").iterdir()) == [Path("other/fig9.png")]
    Path("part/fig18.json").write_text('{"format"')
    stderr = l2o_cli("reproduce", "--out", "part", "--report-to", "other.md", code=2).stderr
    assert "part/fig18.json is damaged" in " ".join(stderr.split())


def test_what_is_finished_can_be_looked_at(calls):
    l2o_cli("reproduce", "fig13", *QUICK, "--out", "out", "--restarts", 2, "--quiet")
    calls.clear()
    so_far = ["--quick", "--data", "embedded", "--so-far", "--out", "out", "--restarts", 4]
    answer = json.loads(l2o_cli("reproduce", "fig13", "fig15", "fig18", "windows", *so_far, "--json").stdout)
    assert calls == [] and answer["left_out"] == ["fig18", "windows"]
    # Series of figure 13 are in figure 15, too.
    found = facts("out", "fig15")
    assert found["not_run"] == ["15a/one per layer", "15b/one per layer"]
    assert [(s["restarts"], s["restarts_asked"]) for s in found["series"]] == [(2, 4), (2, 4)]
    assert {v["status"] for v in found["verdicts"]} == {"undecided"}
    assert (
        "Left out, there is nothing of them yet: windows." in l2o_cli("reproduce", "windows", *so_far).output
    )


def test_an_interrupt_keeps_what_is_finished(calls, monkeypatch):
    run = jobs.run

    def interrupted(*arguments, **settings):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*arguments, **settings)

    monkeypatch.setattr(jobs, "run", interrupted)
    result = l2o_cli("reproduce", "transfer", *QUICK, "--restarts", 4, "--json", code=130)
    assert json.loads(result.stdout)["result"] == "stopped"
    assert "the same command goes on from there" in result.stderr and "Traceback" not in result.stderr
    monkeypatch.setattr(jobs, "run", run)
    assert "6 of 16 restarts are finished" in l2o_cli("reproduce", "transfer", *QUICK, "--restarts", 4).output
    assert len(calls) == 8


_JOB = """
import dataclasses, pathlib

@dataclasses.dataclass(frozen=True)
class SmallJob:
    name: str
    path: pathlib.Path
    work: float = 1.0

    def do(self, tell):
        tell(0.5)
        if self.name == "bad":
            raise RuntimeError("a bad job")
        self.path.touch()
        tell(1.0)
"""


def test_jobs_are_done_in_several_processes(tmp_path, monkeypatch):
    (tmp_path / "small_job.py").write_text(_JOB)
    monkeypatch.syspath_prepend(tmp_path)
    from small_job import SmallJob  # pyright: ignore[reportMissingImports]

    told = []
    small = [SmallJob(f"job {i}", tmp_path / str(i)) for i in range(4)]
    jobs.do_all(small, 2, lambda done, total, name: told.append(done / total))
    assert all(job.path.exists() for job in small) and told[-1] == 1 and 0 < told[0] < 1
    with pytest.raises(RuntimeError, match="a bad job"):
        jobs.do_all([SmallJob("bad", tmp_path), *small], 2, lambda done, total, name: None)


def test_processes_are_refused_on_an_accelerator(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    arguments = ["fig19", "--quick", "--data", "embedded"]
    stderr = l2o_cli("reproduce", *arguments, "--processes", 2, code=2).stderr
    assert stderr.count("\n") == 1 and "option '--processes': " in stderr and "accelerator (gpu)" in stderr
    assert [jobs.num_processes(n) for n in (None, 1)] == [1, 1]


@pytest.mark.parametrize("kept", [0, 4])
def test_the_time_to_expect_is_said_before_long_runs(kept):
    outlook = reproduce.Outlook(restarts=4, kept=kept, seconds=7200.0, seconds_left=7200.0)
    assert show.expectation(outlook, 2) == ("" if kept else "; expect about 60 minutes in 2 processes")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator is used from one process")
def test_an_interrupt_leaves_no_process_and_no_traceback():
    arguments = ["reproduce", "fig19", "--quick", "--data", "embedded", "--processes", "2", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", "import l2o_cli; l2o_cli.main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    threads = Path(f"/proc/{process.pid}/task")
    workers = []
    # The two that work and the tracker of their resources.
    while len(workers) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
        workers = [child for thread in threads.iterdir() for child in _children(thread)]
    # As a terminal does it: to all of them, which are still importing.
    for pid in (*workers, process.pid):
        os.kill(pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == ""
    assert "What is finished is kept in out; the same command goes on from there." in stdout
    end = time.monotonic() + 20
    while alive := [pid for pid in workers if _alive(pid)]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)


def _children(thread):
    try:
        return [int(child) for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_job_is_run_as_its_settings_say():
    spec = experiment_settings(
        "quadratic",
        "quick",
        "code",
        {"dim": 2, "num_steps": 16, "super_epochs": 2, "test_steps": 24, "window": 8},
    )
    digits = load_mnist("embedded")
    found = experiments.run(Experiment(spec, digits), restarts=2, first=1)
    assert found.losses.shape == (2, 24) and np.isfinite(found.losses).all()
    # All restarts begin with the same params, on the same objectives, and differ in what they learned.
    assert found.losses[0, 0] == found.losses[1, 0] and found.losses[0, -1] != found.losses[1, -1]
    assert set(found.training) == {"grad_norm", "zero_share", "final_loss"} and not found.measured


def test_a_bias_of_the_read_out_moves_all_coordinates():
    spec = experiment_settings("quadratic", "full", "figures", {"readout": "dense with bias"})
    biased = make_optimizer(spec, Experiment(spec, load_mnist("embedded")).family)(jr.key(0))
    params = jnp.zeros(3)

    @eqx.filter_jit
    def first_update(optimizer):
        return optimizer.update(params, optimizer.init(params), params)[0]

    plain, updates = (
        first_update(eqx.tree_at(lambda o: o.bias, biased, jnp.float32(bias))) for bias in (0.0, 2.0)
    )
    np.testing.assert_allclose(updates - plain, 0.001 * 2.0 * np.ones(3), rtol=1e-4)
