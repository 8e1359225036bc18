"""Whatever is given: an answer or one line of what is wrong with it, never a traceback."""

import json
import string
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from l2o_cli._app import app
from l2o_cli._errors import UsageError
from l2o_cli._folder import read_record
from l2o_cli._minimize import _read_space, _space_of
from l2o_cli._resolve import read_assignments, resolve, to_toml
from l2o_cli._settings import options
from l2o_cli._toml import parse_toml
from typer.testing import CliRunner

import l2o_eqx as l2o
from l2o_eqx import callbacks, plots

# Few and always the same: what a longer search finds becomes a case of test_bad_input.py.
fuzz = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PATHS = sorted(".".join(path) for path in options())
WORDS = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "1e9",
        "nan",
        "inf",
        "true",
        "none",
        "a,b",
        ",",
        "[1]",
        "{}",
        "mnist",
        "x:y",
        "--",
        "\x00",
        "é",
    ]
)
VALUES = st.one_of(
    WORDS,
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
    st.recursive(
        st.one_of(st.integers(), st.booleans(), st.text(alphabet=string.ascii_letters, max_size=4)),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ).map(json.dumps),
)
NAMES = st.text(alphabet=string.ascii_letters + "._'\"-", max_size=12)
BYTES = st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode()))


def one_line(error):
    text = error.format_message()
    return text and "\n" not in text and len(text) < 5000


@fuzz
@given(st.text(alphabet=string.printable, max_size=80))
def test_any_text_is_toml_or_refused(text):
    try:
        assert isinstance(parse_toml(text), dict)
    except ValueError as error:
        assert str(error)


@settings(fuzz, max_examples=40)
@given(st.lists(st.tuples(st.one_of(st.sampled_from(PATHS), NAMES), VALUES), min_size=1, max_size=3))
def test_any_setting_is_resolved_or_named(pairs):
    try:
        config = resolve(read_assignments([f"{name}={value}" for name, value in pairs]))
    except UsageError as error:
        assert one_line(error)
    else:
        # What is taken can be kept, and read back as the same.
        assert resolve([parse_toml(to_toml(config))]) == config


@settings(fuzz, max_examples=15)
@given(data=st.data())
def test_any_option_is_taken_or_named(data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("l2o_cli._train.run", lambda config, *rest: None)
    names = [option.name for option in options().values()]
    chosen = data.draw(
        st.lists(st.tuples(st.sampled_from([*names, "--set", "--config"]), VALUES), max_size=3)
    )
    words = [word for name, value in chosen for word in (name, value)]
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), words
    assert result.exit_code in (0, 2)
    assert result.exit_code == 0 or (result.stderr.startswith("l2o: ") and result.stderr.count("\n") == 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "tree.safetensors"
    tree = {"a": jnp.arange(3.0), "key": jr.key(1), "deep": [1, "two", None, (0.5, np.int32(3))]}
    l2o.save(path, tree, metadata={"config": {"seed": 1}})
    return path.read_bytes()


@fuzz
@given(data=st.data())
def test_a_damaged_file_is_refused_or_is_the_same(data, saved, tmp_path):
    content = bytearray(saved)
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "header", "any"]))
    if kind == "flip":
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "grow":
        content += data.draw(st.binary(min_size=1, max_size=20))
    elif kind == "header":
        content[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    else:
        content = bytearray(data.draw(BYTES))
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(content))
    _same_or_refused(path, saved, tmp_path)


def _same_or_refused(path, saved, tmp_path):
    # Blanks in the header may become others.
    try:
        tree = l2o.load(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        again = l2o.save(tmp_path / "again.safetensors", tree, metadata={"config": {"seed": 1}})
        assert again.read_bytes() == saved


NODES: Any = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(["array", "class", "function", "dict", "list", "tuple", "dtype", "x"]),
            inner,
            max_size=2,
        ),
        st.tuples(
            st.sampled_from(["os:system", "jax.numpy:load", "l2o_eqx:save", "builtins:eval"]), inner
        ).map(lambda pair: {"class": [*pair]}),
        st.sampled_from(
            ["os:system", "jax.numpy:load", "l2o_eqx.files:write_text", "builtins:eval", "optax:adam"]
        ).map(lambda name: {"function": name}),
    ),
    max_leaves=8,
)


@fuzz
@given(node=NODES)
def test_a_forged_structure_builds_data_or_is_refused(node, tmp_path):
    """With a checksum that fits, as its author would make it."""
    from safetensors.numpy import save as to_safetensors

    from l2o_eqx._serialise import FORMAT, _digest, dumps

    arrays = {"a": np.ones(2, np.float32)}
    header = {"format": FORMAT, "versions": {}, "kinds": {"a": "jax"}, "metadata": {}, "structure": node}
    header["sha256"] = _digest(json.loads(dumps(header)), arrays)
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_safetensors(arrays, metadata={"l2o_eqx": dumps(header)}))
    try:
        l2o.load(path)
    except ValueError as error:
        assert str(path) in str(error)


@fuzz
@given(
    lines=st.lists(
        st.one_of(BYTES, VALUES.map(lambda text: f'{{"super_epoch": {text}}}'.encode())), max_size=4
    )
)
def test_any_file_of_metrics_is_read_or_refused(lines, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*lines, b""]))
    try:
        found = callbacks.read_metrics(path)
    except ValueError:
        return
    assert all(values.dtype == float for values in found.values())


@fuzz
@given(content=BYTES)
def test_any_table_is_read_or_refused(content, tmp_path):
    header = b"optimizer,step,q25,median,q75\n"
    path = tmp_path / "curves.csv"
    for whole in (content, header + content):
        path.write_bytes(whole)
        try:
            assert all(values.shape[0] == 3 for values in plots.read_curves(path).values())
        except ValueError as error:
            assert str(error)
    (tmp_path / "run.json").write_bytes(content)
    try:
        assert isinstance(read_record(tmp_path), dict)
    except UsageError as error:
        assert one_line(error)


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=3))
BOXES = st.dictionaries(st.sampled_from(["low", "high", "log", "integer", "other"]), NUMBERS, max_size=4)
SPACES = st.dictionaries(
    st.text(max_size=4),
    st.one_of(NUMBERS, st.recursive(BOXES, lambda x: st.dictionaries(NAMES, x, max_size=2), max_leaves=4)),
    max_size=3,
)


@fuzz
@given(table=SPACES)
def test_any_space_is_one_or_refused(table, tmp_path):
    import tomli_w

    path = tmp_path / "space.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    try:
        space = _space_of(_read_space(path))
    except UsageError as error:
        assert one_line(error)
        return
    point = space.decode(np.zeros(space.dim))
    assert np.isfinite(space.encode(point)).all()
