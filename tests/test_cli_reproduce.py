import json
import os
import re
import signal
import time
from pathlib import Path

import jax
import pytest
from l2o_cli import _reproduction
from l2o_cli._app import app
from l2o_cli._output import Output
from l2o_cli._settings import options
from test_cli import _in_an_empty_folder, l2o_cli, sha256, start  # noqa: F401
from test_recipes import TINY, calls  # noqa: F401
from typer.testing import CliRunner

from l2o_eqx import recipes
from l2o_eqx.recipes import _runner
from l2o_eqx.recipes._differences import DIFFERENCES

QUICK = ["--quick", "--data", "embedded", "--processes", 1]


@pytest.fixture
def tiny(calls, monkeypatch):  # noqa: F811
    """Figures that need no computing, in place of the thesis's."""
    monkeypatch.setattr(recipes, "FIGURES", TINY)
    return calls


def test_the_list_has_every_figure_with_its_claims():
    result = CliRunner().invoke(app, ["reproduce", "--list", "--quick", "--json"], env={"COLUMNS": "80"})
    answer = json.loads(result.stdout)
    assert list(answer["figures"]) == list(recipes.FIGURES)
    table, _, claims = result.stderr.partition("Claims, and the figures that decide them:")
    rows = [line for line in table.splitlines() if re.match(r" +[a-z]+\S* .*\.\d *$", line)]
    assert [row.split()[0] for row in rows] == list(recipes.FIGURES)
    assert all(make["expected_minutes"] >= 0 for make in answer["figures"].values())
    said = " ".join(claims.split())
    for number, claim in recipes.CLAIMS.items():
        assert said.count(f"{number}: {claim.statement}") == 1
    assert "(fig13, fig15)" in said and max(map(len, table.splitlines())) <= 80
    one = answer["figures"]["fig13"]
    assert one["claims"]["20"] == recipes.CLAIMS[20].statement
    assert one["series"] == [{"restarts": 2, "series": 4}]
    measuring = {name for name, make in answer["figures"].items() if make["measures"]}
    assert measuring == {n for n, make in answer["figures"].items() if make["measuring_minutes"] > 0}
    assert answer["measuring_minutes"] > 0 and "share experiments" in " ".join(claims.split())
    # Figures share experiments.
    each = sum(make["expected_minutes"] for make in answer["figures"].values())
    assert 0 < answer["expected_minutes"] < each


def test_the_expected_time_is_for_the_restarts_and_processes_asked_for(tiny):
    def minutes(*options):
        answer = json.loads(l2o_cli("reproduce", "--list", "curves", "--json", *options).stdout)
        assert list(answer["figures"]) == ["curves"]
        return answer["expected_minutes"], answer["figures"]["curves"]["series"]

    one, series = minutes("--processes", 1)
    two, _ = minutes("--processes", 2)
    assert series == [{"restarts": 6, "series": 2}] and one == pytest.approx(2 * two)
    more, series = minutes("--processes", 1, "--restarts", 600)
    assert series == [{"restarts": 600, "series": 2}] and more > one


def test_the_help_says_what_names_and_sources_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(l2o_cli("reproduce", "--help").stdout.split())
    assert "[NAMES]..." in text and "[[NAMES]" not in text
    assert all(f"'{source}': " in text for source in ("text", "code", "figures"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("fi13", "there is no figure 'fi13'; did you mean 'fig13'? (possible: all, fig7"),
        ("fig9 nonsense", "there is no figure 'nonsense'; possible: all, fig7"),
        ("", "which figures?"),
        ("fig9 --as thesis", "'figures', 'text', 'code'"),
        ("fig9 --restarts 0", "--restarts"),
        ("fig9 --processes 0", "--processes"),
        ("fig9 --seed -1", "--seed"),
        ("fig9 --data full", "--data"),
        ("fig9 --so-far --processes 2", "'--so-far' runs nothing"),
        ("--list --report", "'--list' shows"),
        ("fig9 --out file", "file is no folder"),
        ("fig9 --data tfds --data-dir there", "option '--data': Full MNIST: "),
        ("--report --out there", "option '--report': there are no figures in there"),
    ],
)
def test_mistakes_give_one_line_and_write_nothing(arguments, named, tmp_path, monkeypatch):
    monkeypatch.setattr("l2o_eqx.data._mnist._reachable", lambda url: False)
    Path("there").mkdir()
    Path("file").touch()
    stderr = l2o_cli("reproduce", *arguments.split(), code=2).stderr
    assert stderr.count("\n") == 1 and named in stderr
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file", tmp_path / "there"]


def test_processes_are_refused_on_an_accelerator(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    arguments = ["curves", "--quick", "--data", "embedded"]
    stderr = l2o_cli("reproduce", *arguments, "--processes", 2, code=2).stderr
    assert stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []
    assert "option '--processes': " in stderr and "processes=2" in stderr and "accelerator (gpu)" in stderr
    with pytest.raises(ValueError, match="accelerator"):
        recipes.reproduce(recipes.Request(TINY, tmp_path, "quick", data="embedded"), processes=3)
    l2o_cli("reproduce", *arguments, "--processes", 1)
    assert [recipes.num_processes(n) for n in (None, 1)] == [1, 1]


def test_figures_are_drawn_and_claims_judged(tiny):
    output = l2o_cli("reproduce", "graph", "curves", *QUICK).output
    folder = Path("reproduction/quick-figures")
    lines = output.splitlines()
    assert lines[0] == f"0 of 12 restarts are finished in {folder}."
    assert "reproducing 100%: curves/18a/T=4" in lines
    # In the order of the list, whatever order they are asked in.
    assert lines[-4] == f"curves: Curves | of it: {folder / 'curves.png'}"
    verdict = json.loads((folder / "curves.json").read_text(encoding="utf-8"))["verdicts"][0]
    assert lines[-3] == f"  claim 30: {verdict['status']} — {verdict['statement']}"
    assert lines[-2] == f"graph: A graph: {folder / 'graph.png'}"
    assert (folder / "curves.png").exists() and not (folder / "histogram.png").exists()
    before = sha256(folder / "curves-finals.csv")
    tiny.clear()
    again = l2o_cli("reproduce", "curves", *QUICK).output.splitlines()
    assert again[0] == f"12 of 12 restarts are finished in {folder}." and "compiling" not in "".join(again)
    assert tiny == [] and sha256(folder / "curves-finals.csv") == before


def test_settings_reach_the_recipes(tiny):
    options = ["--as", "code", "--seed", 3, "--restarts", 2, "--out", "out"]
    l2o_cli("reproduce", "all", *QUICK, *options, "--quiet")
    settings = json.loads(Path("out/histogram.json").read_text(encoding="utf-8"))["settings"]
    found = [settings[k] for k in ("scale", "source", "seed", "restarts", "data")]
    assert found == ["quick", "code", 3, 2, "embedded"]
    assert {name for _, name in map(os.path.split, Path("out").glob("*.json"))} == {f"{n}.json" for n in TINY}


def test_json_and_the_report(tiny):
    result = l2o_cli("reproduce", "all", *QUICK, "--report", "--json")
    answer = json.loads(result.stdout)
    assert answer["result"] == "completed" and list(answer["figures"]) == list(TINY)
    (verdict,) = answer["figures"]["measured"]["verdicts"]
    assert (verdict["claim"], verdict["status"]) == (32, "holds")
    assert answer["report"] == "docs/thesis.md" and Path("docs/thesis/curves.png").exists()
    page = Path("docs/thesis.md").read_bytes()
    answer = json.loads(l2o_cli("reproduce", "--quick", "--report-to", "page.md", "--json").stdout)
    assert answer["report"] == "page.md"
    assert Path("page.md").read_bytes() == page.replace(b"(thesis/", b"(page/")


def test_what_is_finished_can_be_looked_at(tiny):
    l2o_cli("reproduce", "histogram", *QUICK, "--restarts", 4)
    tiny.clear()
    so_far = ["--quick", "--data", "embedded", "--so-far"]
    answer = json.loads(l2o_cli("reproduce", "all", *so_far, "--json").stdout)
    assert tiny == [] and answer["left_out"] == ["measured"]
    facts = json.loads(Path(answer["figures"]["histogram"]["files"]["facts"]).read_text(encoding="utf-8"))
    assert (facts["series"][0]["restarts"], facts["series"][0]["restarts_asked"]) == (4, 6)
    # One of its two series is that of the histogram.
    assert answer["figures"]["curves"]["verdicts"][0]["status"] == "undecided"
    facts = json.loads(Path(answer["figures"]["curves"]["files"]["facts"]).read_text(encoding="utf-8"))
    assert facts["not_run"] == ["18a/T=4"] and len(facts["series"]) == 1
    output = l2o_cli("reproduce", "measured", *so_far).output
    assert "Left out, there is nothing of them yet: measured." in output


def test_an_interrupt_keeps_what_is_finished(tiny, monkeypatch):
    run = _runner.run

    def interrupted(*arguments, **settings):
        if len(tiny) == 3:
            raise KeyboardInterrupt
        return run(*arguments, **settings)

    monkeypatch.setattr(_runner, "run", interrupted)
    result = l2o_cli("reproduce", "curves", *QUICK, "--json", code=130)
    assert json.loads(result.stdout)["result"] == "stopped"
    assert "the same command goes on from there" in result.stderr and "Traceback" not in result.stderr
    monkeypatch.setattr(_runner, "run", run)
    assert "6 of 12 restarts are finished" in l2o_cli("reproduce", "curves", *QUICK).output
    assert len(tiny) == 6


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator is used from one process")
def test_an_interrupt_leaves_no_process_and_no_traceback():
    process = start("reproduce", "fig19", "--quick", "--data", "embedded", "--processes", 2, "--out", "out")
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


@pytest.mark.parametrize("kept", [0, 4])
def test_the_time_to_expect_is_said_before_long_runs(kept):
    outlook = recipes.Outlook(restarts=4, kept=kept, seconds=7200.0, seconds_left=7200.0)
    text = _reproduction._expectation(outlook, 2)
    assert text == ("" if kept else "; expect about 60 minutes in 2 processes")


def test_progress_in_percent(capsys):
    with Output(quiet=False, as_json=False).progress("working", 1.0, "", percent=True) as update:
        for share in (0.004, 0.3, 0.34, 1.0):
            update(share, "on it")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "working 0%: on it",
        "working 30%: on it",
        "working 100%: on it",
    ]


def test_the_differences_name_options_that_there_are():
    known = {option.name for option in options().values()} | {"--as"}
    for difference in DIFFERENCES:
        for option in re.findall(r"--[a-z-]+", difference.other):
            assert option in known or option.replace("--no-", "--") in known, option
