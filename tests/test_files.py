"""Files that are written whole or not at all, strict JSON, the environment, errors that know the argument."""

import json
import os
import pickle

import numpy as np
import pytest

import l2o_eqx
from l2o_eqx import files


def test_a_file_is_replaced_once_its_content_is_on_the_disk(tmp_path, monkeypatch):
    path, happened = tmp_path / "a.txt", []
    path.write_text("old")
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (happened.append("sync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *pair: (happened.append("replace"), replace(*pair)))
    with files.replacing(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    # The content, the name, and the folder that the name is in.
    assert happened == ["sync", "replace", "sync"]
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_if_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def write_half():
        with files.replacing(path) as temporary:
            temporary.write_text("ha")
            raise RuntimeError("lf")

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_is_strict():
    text = files.dumps(
        {"a": np.array([1.0, np.nan, -np.inf]), 2: (np.float32(0.5), None, "ü"), "n": np.int32(3)}
    )
    assert json.loads(text) == {"a": [1.0, None, None], "2": [0.5, None, "ü"], "n": 3}


def test_the_environment_names_versions_and_machine():
    found = l2o_eqx.environment(("scipy", "no-such-package"))
    assert found["versions"]["l2o-eqx"] == l2o_eqx.__version__
    assert "scipy" in found["versions"] and "no-such-package" not in found["versions"]
    assert found["num_devices"] >= 1 and found["cores"] >= 1 and found["device"]
    assert json.loads(files.dumps(found)) == found


@pytest.mark.parametrize(
    "make, argument, given, possible",
    [
        (lambda: l2o_eqx.objectives.Quadratic(0), "dim", 0, None),
        (lambda: l2o_eqx.preprocessors.AdamLike(b2=1.0), "b2", 1.0, None),
        (lambda: l2o_eqx.outputs.MomentumOutput(momentum=2.0), "momentum", 2.0, None),
        (lambda: l2o_eqx.objectives.MNIST(activation="sin"), "activation", "sin", "tanh"),
        (lambda: l2o_eqx.Curriculum((3, 2)), "horizons", (3, 2), None),
    ],
)
def test_errors_carry_the_argument_they_blame(make, argument, given, possible):
    with pytest.raises(l2o_eqx.ArgumentError, match=argument) as caught:
        make()
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.argument, error.given) == (argument, given)
    assert possible is None if error.possible is None else possible in error.possible
    # It may come from another process.
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.argument == argument
