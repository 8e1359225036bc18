"""What users may hand to the tool by mistake: each gives one line, and costs nothing of what was done."""

import dataclasses
import errno
import inspect
import io
import json
import sys
import time
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import ScaledGradient
from l2o_cli._app import app
from l2o_cli._build import build
from l2o_cli._errors import Failure, UsageError, describe, in_brief
from l2o_cli._memory import refuse_too_large, refuse_too_many, total_memory
from l2o_cli._metrics import Events
from l2o_cli._minimize import _read_space, _space_of
from l2o_cli._output import Output
from l2o_cli._pictures import draw
from l2o_cli._resolve import read_assignments, read_toml, resolve
from l2o_cli._start import heal
from l2o_cli._toml import parse_toml
from torture import events_of
from typer.testing import CliRunner

import l2o_eqx as l2o
from l2o_eqx import callbacks
from l2o_eqx._meta_step import _mean_of
from l2o_eqx.callbacks._metrics import _lines_up_to
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily
from l2o_eqx.optimizers import AbstractOptimizer, CoordinatewiseLSTM

# Settings.


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed = " + "9" * 10_000, "digits"),
        ("a." * 50_000 + "a = 1", "deep"),
        ("seed = " + "[" * 100_000, "deep"),
        ("seed = " + "[" * 300 + "]" * 300, "deep"),
        ("x = {" * 50 + "}" * 50, "deep|Invalid|key"),
        ("# " + "x" * 2**20, "larger"),
        ("seed = \x00", "Illegal|Invalid"),
    ],
)
def test_toml_that_would_take_long_is_refused(text, message):
    begin = time.monotonic()
    with pytest.raises(ValueError, match=message):
        parse_toml(text)
    assert time.monotonic() - begin < 5


def test_toml_of_people_is_read(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 3\n[meta]\nlearning_rate = 1.5e-3 # a.b.c\n")
    assert read_toml(path) == {"seed": 3, "meta": {"learning_rate": 1.5e-3}}
    assert parse_toml("rates = [" + "0.1, " * 200 + "0.2]")["rates"][-1] == 0.2
    path.write_bytes(b"seed = '\xff'")
    for bad in (path, tmp_path):
        with pytest.raises(UsageError, match="--config"):
            read_toml(bad)


@pytest.mark.parametrize(
    "text",
    [
        "''=1",
        "seed=true",
        "format=2",
        "objective.kind=[1]",
        "objective={kind={}}",
        "objective.family.kind=[1]",
    ]
    + ["meta.num_steps=[]", "meta.num_steps=[[1]]", "objective.dim=99999999999999999999", "seed=1979-05-27"]
    + ["weighting={kind='linear',first=99999999999}", "meta.super_epochs=2147483647", "optimizer=[1]"]
    + ["meta.learning_rate=nan", "objective=''", "preset=[]", "strategy.estimator=[1]", "meta=1"],
)
def test_settings_that_cannot_be_are_named(text):
    with pytest.raises(UsageError) as caught:
        resolve(read_assignments([text]))
    message = caught.value.format_message()
    path = text.partition("=")[0].strip("'")
    assert path.partition(".")[0] in message and "\n" not in message


def test_a_long_value_is_told_in_brief():
    with pytest.raises(UsageError) as caught:
        resolve([{"seed": "9" * 100_000}])
    assert len(caught.value.format_message()) < 300
    assert in_brief("x" * 80) == "x" * 80


def test_a_super_epoch_of_one_step_is_told_as_that():
    with pytest.raises(ValueError, match="at least 2 steps, for one window. Got 1"):
        l2o.strategies.EveryWindow(4).num_updates(1)
    with pytest.raises(ValueError, match=r"at most 2,147,483,647. Got num_steps=1000000000000"):
        optimizer = ScaledGradient(jnp.ones(()), jnp.ones(()))
        l2o.evaluate(optimizer, l2o.objectives.Quadratic(2), num_steps=10**12, key=jr.key(0))


@pytest.mark.parametrize(
    "text",
    ["objective.dim=200000", "objective.dim=2147483647", "meta.restarts=2147483647"]
    + ["optimizer={kind='coordinatewise-lstm',hidden_sizes=1000000}", "evaluation.num_objectives=2000000000"]
    + ["objective={kind='rosenbrock',dim=2000000000}"],
)
def test_more_than_the_memory_is_refused_before_it_is_tried(text):
    with pytest.raises(UsageError, match="this machine has"):
        build(resolve(read_assignments([text])))


def test_memory_is_counted_in_whole_numbers():
    there = total_memory()
    if there is None:
        pytest.skip("the system does not tell")
    fits = there // 4000
    refuse_too_large(("optimizer",), "it", lambda key: jnp.zeros(1000), fits)
    with pytest.raises(UsageError, match="--optimizer"):
        refuse_too_large(("optimizer",), "it", lambda key: jnp.zeros(1000), fits + 1)
    with pytest.raises(UsageError, match="--dim"):
        refuse_too_many(("objective",), there)


@pytest.mark.parametrize(
    "error, text",
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "No space left on device: a/b"),
        (MemoryError("Unable to allocate 3 TiB"), "out of memory: Unable to allocate 3 TiB; smaller"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
            "allocating 9 bytes.; s",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, text, monkeypatch):
    line = describe(error)
    assert line is not None and text in line and "\n" not in line
    assert describe(RuntimeError("a bug")) is None

    monkeypatch.setattr("l2o_cli._plot.FIGURES", _Failing(error))
    result = CliRunner().invoke(app, ["plot", "."])
    assert result.exit_code == 1 and result.stderr == f"l2o: {line}\n"


class _Failing(dict[str, str]):
    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error


def test_a_space_has_numbers_and_switches(tmp_path):
    path = tmp_path / "space.toml"
    for box in (
        "{low=0, high=1, log=''}",
        "{low=0, high=1e308}",
        f"{{low=0, high={10**400}}}",
        "{low=true, high=2}",
    ):
        path.write_text(f"x = {box}")
        with pytest.raises(UsageError, match="--space") as caught:
            _space_of(_read_space(path))
        assert len(caught.value.format_message()) < 300


# Output.


class _Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def write(self, text):
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_output_that_cannot_be_written_ends_no_work(number, capsys):
    output = Output(False, False)
    output.console.file = stream = _Broken(OSError(number, "no more"))
    output.say("one")
    before = stream.calls
    output.say("two")
    with output.progress("training", 3, "compiling") as update:
        update(1, "")
    assert stream.calls == before
    said = capsys.readouterr().err
    assert said == (
        "" if number == errno.EPIPE else "l2o: output cannot be written: no more; the work goes on\n"
    )


def test_a_result_for_scripts_that_cannot_be_written_is_a_failure(monkeypatch):
    monkeypatch.setattr(sys, "stdout", _Broken(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(Failure, match="the result cannot be written: no space"):
        Output(False, True).result({"a": 1})


def test_a_picture_that_cannot_be_drawn_is_told(tmp_path, capsys):
    def fail(path):
        path.write_text("half")
        raise MemoryError("too large")

    draw(tmp_path / "a.png", fail, Output(False, False))
    assert "a.png was not drawn: too large" in capsys.readouterr().out.replace("\n", "")
    assert not [*tmp_path.iterdir()]


def test_events_are_those_of_tensorboard_and_end_nothing(tmp_path, capsys):
    from tensorboardX.record_writer import RecordWriter

    events = Events(tmp_path / "tensorboard", Output(False, False))
    state = l2o.init_meta_state(ScaledGradient(jnp.ones(()), jnp.ones(())), optax.sgd(0.1))
    first = l2o.Progress(0, 3, {}, state)
    events.on_start(first)
    events.on_step(dataclasses.replace(first, super_epoch=1, metrics={"loss": 0.5, "bad": float("nan")}))
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert events_of(tmp_path) == [(1, "loss", 0.5)]
    # The same framing and checksums as tensorboardX's own.
    content, theirs = path.read_bytes(), tmp_path / "theirs"
    writer = RecordWriter(str(theirs))
    while content:
        size = int.from_bytes(content[:8], "little")
        writer.write(content[12 : 12 + size])
        content = content[16 + size :]
    writer.close()
    assert theirs.read_bytes() == path.read_bytes()
    file: Any = events._file
    file._file.close()
    file._file = _Broken(OSError(errno.ENOSPC, "no space"))
    for i in (2, 3):
        events.on_step(dataclasses.replace(first, super_epoch=i, metrics={"loss": 0.5}))
    assert capsys.readouterr().out.count("no events for TensorBoard any more: no space") == 1
    assert not path.exists()
    events.on_end(None)


# Files.


def test_damaged_metrics_are_named_and_cut_where_the_damage_begins(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"super_epoch": i, "seconds": 0.1, "loss": i / 2}) + "\n" for i in (1, 2, 3)]
    for bad in (
        "\x00\x00\n",
        "[" * 100_000 + "\n",
        "[1]\n",
        '{"super_epoch": null}\n',
        '{"super_epoch": "a"}\n',
    ):
        path.write_text("".join([*lines[:2], bad, lines[2]]))
        with pytest.raises(ValueError, match="metrics.jsonl is damaged in line 3"):
            callbacks.read_metrics(path)
        assert _lines_up_to(path, 3) == lines[:2]
    path.write_text("".join([*lines, '{"super_epoch": 4}\n']))
    with pytest.raises(ValueError, match="not alike"):
        callbacks.read_metrics(path)
    path.write_text("".join([*lines, lines[0][:-9]]))
    assert callbacks.read_metrics(path)["loss"].tolist() == [0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    "name, text",
    [
        ("curves.csv", "optimizer,step,q25,median,q75\nlearned,0,1.0,2.0,3.0\nlearned,1,1.0"),
        ("curves.csv", "optimizer,step,q25,median,q75\nlearned,0,1.0,2.0,3.0,4.0\n"),
        ("curves.csv", "optimizer,step,q25,median,q75\nlearned,0,x,2.0,3.0\n"),
        ("pretraining.csv", "restart,update,loss\n0,1\n"),
        ("fits.csv", "task,series,steps,x,y\n0,query,1,0.5\n"),
        ("metrics.jsonl", "{}\n"),
        ("card.json", "[" * 100_000),
        ("card.json", '{"rows": [1], "names": []}'),
    ],
)
def test_files_that_cannot_be_drawn_are_named(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    result = CliRunner().invoke(app, ["plot", str(tmp_path)])
    assert result.exit_code == 2 and name in result.stderr and result.stderr.count("\n") == 1


def test_an_optimizer_file_may_be_anything(tmp_path):
    with pytest.raises(OSError, match="is a folder.*optimizer") as caught:
        l2o.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    path = tmp_path / "x.safetensors"
    header = json.dumps({"__metadata__": {"l2o_eqx": "[" * 100_000}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(l2o.FileFormatError, match="damaged"):
        l2o.load(path)
    result = CliRunner().invoke(app, ["evaluate", str(path)])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_damaged_programs_leave_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    for name in ("jit_step-0a-cache", "jit_step-0a-atime", "jit_step_two-0b-cache"):
        (tmp_path / name).write_text("")
    shown = []
    warnings.showwarning = lambda message, *more: shown.append(str(message))
    heal(tmp_path)
    text = "Error reading persistent compilation cache entry for 'jit_step': ValueError: no"
    for message in (text, text.replace("jit_step", "../jit_step_two"), "another one"):
        warnings.showwarning(UserWarning(message), UserWarning, "file", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["jit_step_two-0b-cache"]
    assert shown[-1] == "another one" and len(shown) == 2


# Arrays and functions.


class _Root(AbstractOptimizer):
    rate: Any

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        return jax.tree.map(lambda g: -self.rate * g / jnp.sqrt(g**2), grads), state


class _Flat(AbstractObjective):
    def init(self, key):
        return jnp.ones(2)

    def loss(self, params, step, key):
        return params[0] ** 2 + 1


class _FlatFamily(AbstractObjectiveFamily):
    def sample(self, key):
        return _Flat()


def test_a_rule_without_a_derivative_is_told_after_the_first_super_epoch():
    """The gradient of the second coordinate is 0, and the root has no derivative there."""
    seen = []
    with pytest.warns(l2o.SkippedUpdatesWarning, match="eps_root.*--order first") as warned:
        l2o.meta_train(
            _Root(jnp.float32(0.1)),
            _FlatFamily(),
            l2o.strategies.EveryWindow(3, l2o.estimators.Auto(())),
            num_steps=6,
            super_epochs=2,
            key=jr.key(0),
            callbacks=[lambda progress: seen.append(bool(progress.skipped_all))],
        )
    assert len(warned) == 1 and seen == [True, False]


@pytest.mark.parametrize("restarts", [None, 2])
def test_where_the_first_nan_arises(restarts):
    """In this file, in the rule; told once, and nothing else changes."""
    rates = jnp.float32(0.1) if restarts is None else jnp.full(restarts, 0.1, jnp.float32)
    settings: dict[str, Any] = {"num_steps": 6, "super_epochs": 3, "restarts": restarts, "key": jr.key(0)}
    strategy = l2o.strategies.EveryWindow(3, l2o.estimators.Auto(()))
    seen, plain = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2o.SkippedUpdatesWarning)
        with pytest.warns(
            l2o.NanWarning, match=r"super epoch 1 the first NaN is made by `div` in .*test_bad"
        ):
            found = l2o.meta_train(
                _Root(rates), _FlatFamily(), strategy, debug_nans=True, callbacks=[seen.append], **settings
            )
        usual = l2o.meta_train(_Root(rates), _FlatFamily(), strategy, callbacks=[plain.append], **settings)
    first, *others = [progress.nan for progress in seen]
    assert others == [None, None] and [p.nan for p in plain] == [None] * 3
    assert first.file == __file__ and first.line in range(*_lines_of(_Root.update))
    np.testing.assert_array_equal(found.metrics["final_loss"], usual.metrics["final_loss"])


def _lines_of(function):
    lines, first = inspect.getsourcelines(function)
    return first, first + len(lines)


class _Steep(AbstractObjective):
    def init(self, key):
        return jnp.ones(2)

    def loss(self, params, step, key):
        return jnp.sum(params**4)


class _SteepFamily(AbstractObjectiveFamily):
    def sample(self, key):
        return _Steep()


def test_steps_too_large_are_told_as_such():
    """Params overflow before anything is NaN: the last step of the window is infinite."""
    with (
        pytest.warns(l2o.SkippedUpdatesWarning),
        pytest.warns(
            l2o.NanWarning, match="super epoch 1 no operation makes a NaN.*steps that are too large"
        ),
    ):
        l2o.meta_train(
            l2o.optimizers.GradientDescent(jnp.float32(1e20), 1e20),
            _SteepFamily(),
            l2o.strategies.EveryWindow(2, l2o.estimators.ES(0.1, 1)),
            num_steps=2,
            super_epochs=1,
            debug_nans=True,
            key=jr.key(0),
        )


class _OfNumbers(AbstractOptimizer):
    rate: jax.Array
    momentum: float
    fixed: float = eqx.field(static=True, default=0.5)

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        return jax.tree.map(lambda g: -self.rate * self.momentum * self.fixed * g, grads), state


def test_python_numbers_that_are_not_trained_are_told():
    settings: dict[str, Any] = {"num_steps": 4, "super_epochs": 1, "key": jr.key(0)}
    strategy = l2o.strategies.EveryWindow(2)
    with pytest.warns(
        l2o.UntrainedNumberWarning, match=r"_OfNumbers.*does not train \.momentum:.*jnp.asarray"
    ):
        l2o.meta_train(_OfNumbers(jnp.float32(0.1), 0.9), _FlatFamily(), strategy, **settings)
    trained: Any = l2o.meta_train(
        _OfNumbers(jnp.float32(0.1), jnp.float32(0.9)), _FlatFamily(), strategy, **settings
    )
    assert trained.optimizer.momentum != jnp.float32(0.9)


def test_the_mean_of_large_losses_is_finite():
    losses, sound = jnp.full((4, 300), 3e36, jnp.float32), jnp.ones(300, bool)
    np.testing.assert_allclose(_mean_of(losses, sound), 3e36, rtol=1e-6)
    small = jr.normal(jr.key(0), (4, 300))
    assert _mean_of(small, sound) == jnp.mean(small)
    assert jnp.isinf(_mean_of(losses.at[0, 0].set(jnp.inf), sound))
    assert jnp.isnan(_mean_of(small.at[0, 0].set(jnp.nan), sound))


def test_nothing_is_tuned_where_all_rates_diverge():
    found = l2o.compare(
        {"SGD": l2o.BASELINES["SGD"]},
        l2o.objectives.Quadratic(2),
        num_steps=30,
        num_objectives=2,
        num_tuning_objectives=2,
        learning_rates=(1e30, 1e32),
        key=jr.key(0),
    )
    (row,) = found.summary()
    assert row["broken"] and row["settings"] is None and row["learning_rate"] is None and not row["at_edge"]
    assert not np.isfinite(found.tuning_losses["SGD"]).any() and not found.learning_rates


def test_as_optax_refuses_what_optax_refuses():
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    make = lambda key: CoordinatewiseLSTM((2,), key=key)  # noqa: E731
    transformation = l2o.as_optax(make(jr.key(0)))
    state = transformation.init(params)
    for wrong in ({"a": jnp.ones(3)}, {**params, "a": jnp.ones(4)}):
        with pytest.raises(l2o.ArgumentError, match="than the params that `init`") as caught:
            transformation.update(wrong, state)
        assert caught.value.argument == "updates"
    with pytest.raises(l2o.ArgumentError, match="given a tuple for the state"):
        transformation.update(params, ())
    batch = l2o.as_optax(jax.vmap(make)(jr.split(jr.key(0), 2)))
    with pytest.raises(l2o.ArgumentError, match="select_restart"):
        batch.update(params, batch.init(params))
    not_ours: Any = optax.adam(1e-3)
    # Without the types that only tests check.
    with pytest.raises(l2o.ArgumentError, match="transformations already"):
        inspect.unwrap(l2o.as_optax)(not_ours)
