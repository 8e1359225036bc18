"""`l2o minimize`: any program, evaluations that fail, resumption, several at a time, and mistakes."""

import csv
import json
from pathlib import Path

import jax.random as jr
import numpy as np
import pytest
from test_cli import _in_an_empty_folder, l2o_cli, start  # noqa: F401

import l2o_eqx as l2o
from l2o_eqx import Box, Space
from l2o_eqx.optimizers import BlackBoxRNN

PROGRAM = '''
import functools, os, pathlib, signal, sys, time

def bowl(rate, net):
    print("anything")
    return (rate - 0.01) ** 2 + net["width"] / 64

def killer(rate, net):
    """Ends `l2o` itself in the third evaluation, once."""
    marks = pathlib.Path("marks")
    marks.mkdir(exist_ok=True)
    count = len(list(marks.iterdir()))
    (marks / str(count)).touch()
    if count == 2:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(10)
    return bowl(rate, net)

def failing(rate, net):
    marks = pathlib.Path("failures")
    marks.mkdir(exist_ok=True)
    count = len(list(marks.iterdir()))
    (marks / str(count)).touch()
    if count == 0: raise ValueError("not\\ntoday")
    if count == 1: return float("nan")
    if count == 2: os._exit(3)
    if count == 3: sys.exit("enough")
    if count == 4: os.kill(os.getpid(), signal.SIGSEGV)
    if count == 5: return "text"
    return bowl(rate, net)

def meeting(rate, net):
    """Each of the first two waits for the other."""
    pathlib.Path(f"here-{os.getpid()}").touch()
    until = time.monotonic() + 60
    while len(list(pathlib.Path(".").glob("here-*"))) < 2:
        assert time.monotonic() < until, "alone"
        time.sleep(0.01)
    return bowl(rate, net)

def seeded(function):
    return functools.wraps(function)(lambda **point: function(seed=1, **point))

@seeded
def decorated(rate, net, seed):
    return bowl(rate, net) + seed

number = 3
'''
SPACE = """
rate = {low = 1e-4, high = 1, log = true}
[net]
width = {low = 8, high = 64, log = true, integer = true}
"""
TREE = Space({"rate": Box(1e-4, 1, log=True), "net": {"width": Box(8, 64, log=True, integer=True)}})


@pytest.fixture(autouse=True)
def _program(_in_an_empty_folder):  # noqa: F811
    Path("program.py").write_text(PROGRAM, encoding="utf-8")
    Path("space.toml").write_text(SPACE, encoding="utf-8")
    l2o.save("one.safetensors", BlackBoxRNN(2, 8, key=jr.key(0)))
    l2o.save("two.safetensors", BlackBoxRNN(2, 8, workers=2, key=jr.key(0)))


def arguments(function, out, budget=5, optimizer="one.safetensors"):
    options = ("--space", "space.toml", "--budget", budget, "--optimizer", optimizer, "--out", out)
    return ["minimize", f"program:{function}", *options]


def rows(folder):
    with open(Path(folder) / "evaluations.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_it_asks_and_tells():
    """The points, values and the best are those of `ask` and `tell` in Python."""
    result = l2o_cli(*arguments("bowl", "out"), "--json")
    rnn = l2o.load("one.safetensors")
    state, expected = rnn.init(TREE, 5), []
    for _ in range(5):
        point, state = rnn.ask(state)
        value = (point["rate"] - 0.01) ** 2 + point["net"]["width"] / 64
        state = rnn.tell(state, point, value)
        expected.append((value, point["rate"], point["net"]["width"]))
    found = [(float(r["value"]), float(r["rate"]), int(r["net.width"])) for r in rows("out")]
    assert found == expected
    answer = json.loads(result.stdout)
    assert answer["best_value"] == min(expected)[0] and answer["evaluations"] == 5 and answer["failed"] == 0
    assert "Best of 5" in result.stderr and "minimizing 5/5: best" in result.stderr
    np.testing.assert_array_equal(
        [float(r["best"]) for r in rows("out")], np.minimum.accumulate([v for v, *_ in expected])
    )


def test_it_goes_on_as_if_nothing_had_happened():
    """After the end of the command itself, after half a line, and with more evaluations."""
    l2o_cli(*arguments("bowl", "whole", 5))
    process = start(*arguments("killer", "killed", 5))
    process.communicate(timeout=300)
    assert process.returncode != 0 and len(rows("killed")) == 2
    with open("killed/evaluations.csv", "a", encoding="utf-8") as file:
        file.write("3,0,0.5")
    output = l2o_cli(*arguments("killer", "killed", 5)).output
    assert "going on after 2 of them" in output
    assert rows("killed") == rows("whole")
    for folder, function in (("whole", "bowl"), ("killed", "killer")):
        l2o_cli(*arguments(function, folder, 7))
    assert len(rows("whole")) == 7 and rows("killed") == rows("whole")


def test_a_function_is_called_as_it_is_decorated():
    l2o_cli(*arguments("decorated", "out", 2))
    assert [row["error"] for row in rows("out")] == ["", ""]


def test_a_search_without_any_value_has_failed():
    found = l2o_cli(*arguments("failing", "out", 2), code=1)
    assert "no value yet, 1 failed: ValueError: not today" in found.stdout
    assert found.stderr == "l2o: all 2 evaluations have failed, the last one: the value is nan\n"
    assert len(rows("out")) == 2


def test_evaluations_that_fail_are_told_as_such():
    output = l2o_cli(*arguments("failing", "out", 8)).output
    assert "6 have failed" in output
    errors = [row["error"] for row in rows("out")]
    assert errors == [
        "ValueError: not today",
        "the value is nan",
        "the process has ended with exit code 3",
        "SystemExit: enough",
        "the process has ended by signal 11",
        "ValueError: could not convert string to float: 'text'",
        "",
        "",
    ]
    assert [row["value"] != "" for row in rows("out")] == 6 * [False] + 2 * [True]


def test_several_workers_evaluate_at_a_time():
    l2o_cli(*arguments("meeting", "out", 4, "two.safetensors"))
    found = rows("out")
    assert len(found) == 4 and all(row["error"] == "" for row in found)
    assert {row["worker"] for row in found} == {"0", "1"}
    before = found
    l2o_cli(*arguments("meeting", "out", 6, "two.safetensors"))
    assert rows("out")[:4] == before


MISTAKES = {
    "no-module": (
        ("minimize", "nothing:f"),
        SPACE,
        "FUNCTION: 'nothing:f' cannot be imported: ModuleNotFound",
    ),
    "no-function": (("minimize", "program:number"), SPACE, "must be a function"),
    "ends": ((), "x = {low = 2, high = 1}\ny = {low = 0, high = 1}", "low must be below high"),
    "ends of another dimension": ((), "x = {low = 2, high = 1}", "low must be below high"),
    "names": (
        (),
        "rate = {low = 0, high = 1}\nwidth = {low = 0, high = 1}",
        "'program:bowl' cannot be called with the names of the space: missing a required argument: 'net'",
    ),
    "log": ((), "x = {low = 0, high = 1, log = true}\ny = {low = 0, high = 1}", "ends above 0"),
    "unknown": ((), "x = {low = 0, high = 1, hi = 2}", "x has no 'hi'; did you mean 'high'"),
    "missing": ((), "x = {low = 0}", "x.high must be given"),
    "text": ((), "x = {low = 'a', high = 1}", "x.low: got 'a', must be a number"),
    "flag": ((), "x = {low = 0, high = 1, log = 1}", "x.log: got 1, must be true or false"),
    "no-table": ((), "x = 3", "x: got 3, must be a table"),
    "dot": ((), '"a.b" = {low = 0, high = 1}', "cannot have a dot"),
    "empty": ((), "", "has no table"),
    "no-toml": ((), "x = ", "is not TOML"),
    "dim": ((), "x = {low = 0, high = 1}", "was trained for 2 numbers, but the space has 1"),
    "kind": (("--optimizer", "lstm.safetensors"), SPACE, "holds a CoordinatewiseLSTM, which needs gradients"),
    "no-optimizer": (("--optimizer", "none"), SPACE, "there is neither a folder nor a file none"),
    "budget": (("--budget", "0"), SPACE, "--budget"),
    "exists": (("--out", "taken"), SPACE, "taken exists and is not overwritten"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    extra, space, message = MISTAKES[name]
    Path("space.toml").write_text(space, encoding="utf-8")
    Path("taken").mkdir()
    l2o.save("lstm.safetensors", l2o.optimizers.CoordinatewiseLSTM((2,), key=jr.key(0)))
    command = arguments("bowl", "out")
    if extra[:1] == ("minimize",):
        command[:2], extra = extra, ()
    stderr = l2o_cli(*command, *extra, code=2).stderr
    assert message in stderr and not Path("out").exists()
    assert len(stderr.strip().splitlines()) == 1


def test_another_search_needs_another_folder():
    l2o_cli(*arguments("bowl", "out", 1))
    assert "FUNCTION: another one" in l2o_cli(*arguments("failing", "out", 2), code=2).stderr
    l2o.save("other.safetensors", BlackBoxRNN(2, 8, key=jr.key(1)))
    other = arguments("bowl", "out", 2, "other.safetensors")
    assert "option '--optimizer': another one" in l2o_cli(*other, code=2).stderr
    Path("space.toml").write_text(SPACE.replace("64", "32"), encoding="utf-8")
    assert "option '--space': another one" in l2o_cli(*arguments("bowl", "out", 2), code=2).stderr
    without = ["minimize", "program:bowl", "--space", "space.toml"]
    assert "l2o train --objective gp --optimizer black-box-rnn --dim 2" in l2o_cli(*without, code=2).stderr
