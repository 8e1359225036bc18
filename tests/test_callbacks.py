"""What a training does between its steps: callbacks, when they are called, and the files that they write."""

import dataclasses
import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import ScaledGradient, stop_at

import l2o_eqx
from l2o_eqx import StopTraining, callbacks
from l2o_eqx._rows import Rows
from l2o_eqx.objectives import Quadratic
from l2o_eqx.strategies import EveryWindow

VALIDATION = l2o_eqx.Validation(Quadratic(2), 6, 2, every=1, key=jr.key(9))


def train(*called, scale=0.1, restarts=None, **settings):
    scales = jnp.float32(scale) if restarts is None else jnp.linspace(0.1, 0.2, restarts)
    asked: dict[str, Any] = {"num_steps": 6, "super_epochs": 3, "key": jr.key(0), **settings}
    optimizer = ScaledGradient(scales, jnp.zeros_like(scales))
    asked |= {"restarts": restarts, "callbacks": called}
    return l2o_eqx.meta_train(optimizer, Quadratic(2), EveryWindow(3), **asked)


class Recorder(callbacks.AbstractCallback):
    """Writes down what it is told."""

    told: list[Any] = eqx.field(default_factory=list)

    def on_start(self, progress):
        self.told.append(("start", progress.super_epoch, dict(progress.metrics)))

    def on_step(self, progress):
        self.told.append(("step", progress.super_epoch))
        return None

    def on_end(self, solution):
        self.told.append(("end", solution))


@pytest.mark.parametrize("answer", [True, 1, "stop", [0], object(), jnp.ones(1)])
def test_only_stop_training_stops(answer):
    solution = train(lambda progress: answer)
    assert solution.result == "completed" and solution.reason is None
    assert int(solution.state.super_epoch) == 3


@pytest.mark.parametrize("answer, reason", [(StopTraining, None), (StopTraining("late"), "late")])
def test_a_wish_to_stop_is_granted_after_all_were_asked(answer, reason):
    recorder = Recorder()
    solution = train(lambda progress: answer, lambda progress: StopTraining("later"), recorder)
    assert solution.result == "stopped" and solution.reason == reason
    assert [what for what, *_ in recorder.told] == ["start", "step", "end"]
    assert recorder.told[0] == ("start", 0, {}) and recorder.told[-1][1] is solution


def test_callbacks_end_when_a_training_fails():
    recorder = Recorder()

    def fail(progress):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        train(recorder, fail)
    assert recorder.told[-1] == ("end", None)


@pytest.mark.parametrize("restarts", [None, 2])
def test_metrics_are_written_and_read(restarts, tmp_path):
    path = tmp_path / "metrics.jsonl"
    solution = train(callbacks.MetricsWriter(path), restarts=restarts)
    found = callbacks.read_metrics(path)
    assert found.keys() == {"super_epoch", "seconds", *solution.metrics}
    for name, values in solution.metrics.items():
        np.testing.assert_array_equal(found[name], values)
    row = json.loads(path.read_text().splitlines()[-1])
    median = np.median(solution.metrics["final_loss"][-1])
    assert row["final_loss"] == median and ("restarts" in row) == (restarts is not None)
    assert row["seconds"] > 0


def test_a_resumed_training_goes_on_in_its_files(tmp_path):
    metrics, folder = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"
    whole = train(super_epochs=4)
    kept = callbacks.Checkpoint(folder, every=2)
    with pytest.raises(RuntimeError, match="gone"):
        train(callbacks.MetricsWriter(metrics), kept, fail_at(3), super_epochs=4)
    # As if the process had been killed: a third super epoch is in one file, not in the other.
    (folder / "checkpoint-000000003.safetensors").unlink()
    (folder / ".checkpoint-000000003.0123abcd.safetensors").write_bytes(b"half")
    state = callbacks.load_checkpoint(folder, classes=[ScaledGradient])
    assert int(state.super_epoch) == 2
    resumed = train(kept, callbacks.MetricsWriter(metrics), state=state, super_epochs=4)
    assert eqx.tree_equal(resumed.state, whole.state)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-000000002.safetensors",
        "checkpoint-000000004.safetensors",
    ]
    found = callbacks.read_metrics(metrics)
    np.testing.assert_array_equal(found["super_epoch"], [1, 2, 3, 4])
    np.testing.assert_array_equal(found["final_loss"], whole.metrics["final_loss"])
    assert np.all(np.diff(found["seconds"]) >= 0)


def fail_at(count):
    def fail(progress):
        if progress.super_epoch == count:
            raise RuntimeError("the machine is gone")

    return fail


@pytest.mark.parametrize("stop", [None, 1])
def test_the_last_state_is_kept_however_training_ends(stop, tmp_path):
    kept = callbacks.Checkpoint(tmp_path, every=100, keep=1)
    solution = train(kept, *([] if stop is None else [stop_at(stop)]))
    state = callbacks.load_checkpoint(tmp_path, classes=[ScaledGradient])
    assert eqx.tree_equal(state, solution.state) and int(state.super_epoch) == (stop or 3)
    assert len([*tmp_path.iterdir()]) == 1


def test_a_stopped_training_keeps_no_candidate_of_its_end(tmp_path):
    """The validation at the end of one that is stopped is none of the one that goes on."""
    settings: dict[str, Any] = {"validation": dataclasses.replace(VALIDATION, every=2), "super_epochs": 5}
    settings |= {"average": 0.8, "scale": 3.0}
    whole = train(**settings)
    stopped = train(callbacks.Checkpoint(tmp_path), stop_at(3), **settings)
    assert stopped.best is not None and int(stopped.best.super_epoch) == 3
    state = callbacks.load_checkpoint(tmp_path, classes=[ScaledGradient])
    assert int(state.best.super_epoch) < 3
    assert eqx.tree_equal(train(state=state, **settings).state, whole.state)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    train(callbacks.Checkpoint(tmp_path, settings={"a": {"b": 1, "c": (2, 3)}}))
    last = tmp_path / "checkpoint-000000003.safetensors"
    last.write_bytes(last.read_bytes()[:-3])
    same = {"a": {"b": 1, "c": [2, 3]}}
    state = callbacks.load_checkpoint(tmp_path, settings=same, classes=[ScaledGradient])
    assert int(state.super_epoch) == 2
    with pytest.raises(l2o_eqx.ArgumentError, match=r"`a\.b` was 1 then, and is 5 now"):
        callbacks.load_checkpoint(tmp_path, settings={"a": {"b": 5}}, classes=[ScaledGradient])
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        callbacks.load_checkpoint(tmp_path / "elsewhere")
    # A training from the beginning does not replace what there is; one that goes on replaces what is damaged.
    with pytest.raises(l2o_eqx.ArgumentError, match="later") as caught:
        train(callbacks.Checkpoint(tmp_path))
    assert caught.value.argument == "folder"
    assert eqx.tree_equal(train(callbacks.Checkpoint(tmp_path), state=state).state, train().state)


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(28, "No space left on device", str(path))

    def fill(progress):
        monkeypatch.setattr("l2o_eqx.callbacks._checkpoint.save", full)

    with pytest.raises(OSError, match="No space left"):
        train(callbacks.Checkpoint(tmp_path), fill)
    assert int(callbacks.load_checkpoint(tmp_path, classes=[ScaledGradient]).super_epoch) == 1


class Unstorable(ScaledGradient):
    function: Any = eqx.field(static=True, default=lambda x: x)


def test_what_cannot_be_stored_is_said_before_the_first_step(tmp_path):
    seen, optimizer = [], Unstorable(jnp.float32(0.1), jnp.float32(0.0))
    with pytest.raises(TypeError, match="function"):
        l2o_eqx.meta_train(
            optimizer,
            Quadratic(2),
            EveryWindow(3),
            num_steps=6,
            key=jr.key(0),
            callbacks=[callbacks.Checkpoint(tmp_path), seen.append],
        )
    assert not seen


def test_a_state_that_does_not_fit_is_refused_with_its_part():
    state = train().state
    refused = [
        (dict(super_epochs=2, state=state), "super_epochs", "has done 3"),
        (dict(key=jr.key(1), state=state), "key", "another `key`"),
        (dict(restarts=2, state=state), "state", r"`optimizer`: \.\w+ is float32\[\] in the state"),
        (dict(meta_optimizer=optax.sgd(0.1), state=state), "state", "`meta_optimizer`"),
    ]
    for change, argument, message in refused:
        with pytest.raises(l2o_eqx.ArgumentError, match=message) as caught:
            train(**{"super_epochs": 4, **change})
        assert caught.value.argument == argument
    done = train(state=state)
    assert done.result == "completed" and eqx.tree_equal(done.state, state)


@pytest.mark.parametrize("restarts", [None, 2])
def test_the_best_snapshot_is_on_the_disk_at_all_times(restarts, tmp_path):
    path, seen = tmp_path / "best.safetensors", []

    def look(progress):
        kept = l2o_eqx.load(path, classes=[ScaledGradient])
        seen.append(eqx.tree_equal(kept, jax.tree.map(jnp.asarray, progress.state.best.optimizer)))

    solution = train(callbacks.BestSnapshot(path), look, restarts=restarts, validation=VALIDATION)
    assert seen == [True] * 3 and solution.best is not None
    assert l2o_eqx.load_metadata(path) == solution.best.facts()
    assert np.max(np.array(solution.best.facts()["super_epoch"])) > 0


def test_a_best_snapshot_needs_a_validation(tmp_path):
    with pytest.raises(l2o_eqx.ArgumentError, match="validation") as caught:
        train(callbacks.BestSnapshot(tmp_path / "best.safetensors"))
    assert caught.value.argument == "validation"
    with pytest.raises(l2o_eqx.ArgumentError, match="every"):
        callbacks.Checkpoint(tmp_path, every=0)
    with pytest.raises(l2o_eqx.ArgumentError, match="minutes"):
        callbacks.Checkpoint(tmp_path, minutes=0.0)


@pytest.mark.parametrize("restarts", [None, 2])
def test_an_evaluation_in_parts_gives_the_same(restarts, monkeypatch):
    monkeypatch.setattr("l2o_eqx._evaluate.chunk_size", lambda num_coordinates: 3)
    rates = jnp.array([0.1, 0.2])[:restarts] if restarts else jnp.float32(0.1)
    optimizer, seen = ScaledGradient(rates, jnp.zeros_like(rates)), []
    settings: dict[str, Any] = {"num_steps": 4, "num_objectives": 7, "restarts": restarts, "key": jr.key(3)}
    settings["measure"] = lambda objective, params: params
    whole = l2o_eqx.evaluate(optimizer, Quadratic(2), **settings)
    called = [lambda p: seen.append((p.done, p.total))]
    parts = l2o_eqx.evaluate(optimizer, Quadratic(2), callbacks=called, **settings)
    assert seen[-1] == (7, 7) and seen == sorted(seen) and (jax.device_count() > 1 or len(seen) == 3)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), parts, whole)
    some = l2o_eqx.evaluate(optimizer, Quadratic(2), callbacks=[lambda p: StopTraining], **settings)
    assert some.losses.shape[-2] == seen[0][0]
    np.testing.assert_array_equal(some.losses, parts.losses[..., : seen[0][0], :])


def test_a_comparison_can_be_stopped_between_and_in_optimizers():
    def compare(done):
        return l2o_eqx.compare(
            {
                "first": ScaledGradient(jnp.float32(0.1), jnp.float32(0.0)),
                "tuned": optax.sgd,
                "last": optax.sgd(0.1),
            },
            Quadratic(2),
            num_steps=3,
            num_objectives=2,
            num_tuning_objectives=2,
            learning_rates=(0.1, 0.2),
            key=jr.key(0),
            callbacks=[lambda p: StopTraining if p.done >= done else None],
        )

    names = [tuple(compare(done).trajectories) for done in (0, 1, 1.1, 2, 3)]
    assert names == [(), ("first",), ("first",), ("first", "tuned"), ("first", "tuned", "last")]
    stopped = compare(1.1)
    assert stopped.result == "stopped" and not stopped.learning_rates and stopped.learned == ("first",)
    assert compare(3).result == "completed"


def test_a_training_keeps_nothing_of_the_devices_of_what_is_over():
    counts = []
    train(lambda progress: counts.append(len(jax.live_arrays())), restarts=2, super_epochs=9)
    assert counts[2] == counts[-1]


def test_a_failed_restart_is_named_and_harms_no_other():
    def lost(rates, **settings):
        optimizer = ScaledGradient(jnp.asarray(rates), jnp.zeros(2))
        asked: dict[str, Any] = {
            "num_steps": 6,
            "super_epochs": 3,
            "restarts": 2,
            "key": jr.key(0),
            **settings,
        }
        return l2o_eqx.meta_train(optimizer, Quadratic(2), EveryWindow(3), **asked)

    both, one = lost([0.1, 0.2]), lost([0.1, jnp.nan])
    assert both.failed_restarts == () and one.failed_restarts == (1,) and both.failed == ()
    np.testing.assert_array_equal(both.metrics["final_loss"][:, 0], one.metrics["final_loss"][:, 0])
    # The objectives that it could not do are told from the start, also where a training goes on.
    half = lost([0.1, jnp.nan], callbacks=[stop_at(2)])
    assert half.failed_restarts == (1,) and {f.super_epoch for f in half.failed} == {1, 2}
    resumed = lost([0.1, jnp.nan], state=half.state)
    assert eqx.tree_equal(resumed.failed, one.failed) and {f.restart for f in one.failed} == {1}


def test_rows_grow_and_hold_what_comes():
    rows = Rows()
    for i in range(200):
        rows.append({"a": i, "b": np.array([i, 0.5], np.float32), "c": float("nan") if i % 2 else 0.25})
    rows.change_last({"a": 0.5, "b": np.array([1 / 3, 2.0])})
    columns = rows.columns()
    assert columns["a"].tolist() == [*range(199), 0.5] and columns["b"][-1].tolist() == [1 / 3, 2]
    assert np.isnan(columns["c"]).sum() == 100 and columns["c"].dtype == float
    assert [row["a"] for row in rows.last(2)] == [198, 0.5] and len(rows.last(500)) == 200
    columns["a"][:] = 0
    assert rows.last(200)[7]["a"] == 7
