"""Runs that are ended by something, and go on as if nothing had happened."""

import errno
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from l2o_cli._app import app
from l2o_cli._folder import Lock, read_record
from torture import SETTINGS, command, differences
from typer.testing import CliRunner

from l2o_eqx import _compare, callbacks, load, plots

TRAIN = ("train", *SETTINGS, "--super-epochs", "300", "--checkpoint-every", "7")
NEWEST, BEFORE = (f"checkpoints/checkpoint-{done:09}.safetensors" for done in (300, 294))


def l2o_cli(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has ended; nobody writes into it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    l2o_cli(*TRAIN, "--out", folder)
    return folder


@pytest.fixture
def stopped(whole, tmp_path):
    """The same as it was when it was killed after 300 super epochs, of which the last six were not kept."""
    run = shutil.copytree(whole, tmp_path / "stopped")
    for pattern in ("optimizer*", "*.png", "*.csv", "comparison.json", NEWEST):
        for path in run.glob(pattern):
            path.unlink()
    _change(run, result="running", ended=None, comparison=None)
    return run


def _change(run, **facts):
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_a_run_that_is_killed_twice_and_moved_comes_out_the_same(whole, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"

    def kill(path, lines, *arguments):
        process = subprocess.Popen(command(*arguments, "--cores", 1), stdout=subprocess.DEVNULL)
        while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()

    kill(run / "metrics.jsonl", 20, *TRAIN, "--out", run)
    assert not (run / "optimizer.safetensors").exists()
    shutil.move(run, moved)
    # As the final save is under way, or the comparison.
    kill(moved / "optimizer.safetensors", 0, "resume", moved)
    assert read_record(moved)["result"] == "killed"
    text = l2o_cli("resume", moved).output
    assert f"Going on with {moved}, from checkpoint-000000" in text
    assert differences(moved, whole) == []
    assert len(json.loads((moved / "run.json").read_text())["resumed"]) == 2


def test_a_comparison_that_is_interrupted_goes_on(stopped, whole, monkeypatch):
    """With the optimizer that was at work, and not with those that were done."""
    at_work: list[str] = []
    run = _compare._Runner.run

    def fail(self, name, *more):
        at_work.append(name)
        if len(at_work) == 2:
            raise KeyboardInterrupt
        run(self, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(_compare._Runner, "run", fail)
        assert f"`l2o resume {stopped}` compares it" in l2o_cli("resume", stopped, code=130).output
    begun = list(at_work)
    at_work.clear()
    with monkeypatch.context() as patch:
        patch.setattr(_compare._Runner, "run", lambda *args: (at_work.append(args[1]), run(*args))[1])
        l2o_cli("resume", stopped)
    assert at_work[0] == begun[-1] and not set(at_work) & set(begun[:-1])
    assert differences(stopped, whole) == [] and not (stopped / "checkpoints" / "comparison").exists()


def test_two_processes_do_not_work_in_one_folder(stopped):
    with Lock(stopped):
        assert read_record(stopped)["result"] == "running"
        assert "another process is at work" in l2o_cli("resume", stopped, code=2).stderr
    # Whoever reads it next finds that nobody holds the lock.
    assert "`l2o resume" in l2o_cli("evaluate", stopped, code=2).stderr
    assert json.loads((stopped / "run.json").read_text())["result"] == "killed"
    (stopped / NEWEST).write_bytes((stopped / BEFORE).read_bytes()[:-5])
    taken, damaged = Path(BEFORE).name, Path(NEWEST).name
    assert f"from {taken}, because {damaged} is damaged" in l2o_cli("resume", stopped).output
    assert "is complete" in l2o_cli("resume", stopped, code=2).stderr


def test_other_settings_than_those_of_the_checkpoint_are_named(stopped):
    config = stopped / "config.toml"
    config.write_text(config.read_text().replace("window = 3", "window = 2"))
    assert "`strategy.window` was 3 then, and is 2 now" in l2o_cli("resume", stopped, code=2).stderr
    config.write_text("this = is = no TOML")
    assert "config.toml" in l2o_cli("resume", stopped, code=2).stderr
    config.unlink()
    assert "cannot be read" in l2o_cli("resume", stopped, code=2).stderr
    (stopped / "run.json").write_text("[" * 100_000)
    assert "is no run folder" in l2o_cli("resume", stopped, code=2).stderr
    assert "is no run folder" in l2o_cli("resume", stopped / "nowhere", code=2).stderr


@pytest.mark.parametrize("harm", ["full", "deleted"])
def test_a_disk_that_fails_ends_a_run_in_one_line_and_nothing_is_lost(harm, whole, stopped, monkeypatch):
    write = callbacks.MetricsWriter.on_step

    def fail(self, progress):
        if progress.super_epoch == 297:
            if harm == "full":
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
            shutil.rmtree(stopped)
        write(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.MetricsWriter, "on_step", fail)
        message = l2o_cli("resume", stopped, "--checkpoint-every", 1, code=1).stderr
    assert message.count("\n") == 1 and "the optimizer so far is saved" in message
    assert load(stopped / "optimizer.safetensors") is not None
    assert read_record(stopped)["result"] == "failed"
    l2o_cli("resume", stopped)
    found = differences(stopped, whole)
    # Metrics of a folder that was deleted are gone.
    assert found == ([] if harm == "full" else ["metrics.jsonl", "tensorboard"])


def test_a_picture_ends_nothing(stopped, monkeypatch):
    def fail(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("plot_training", "plot_curves"):
        monkeypatch.setattr(plots, name, fail)
    output = l2o_cli("resume", stopped).output
    assert output.count("was not drawn: No space left on device") == 2
    assert "losses on 2 unseen objectives" in output and (stopped / "comparison.json").exists()
    assert read_record(stopped)["comparison"] == "completed"
