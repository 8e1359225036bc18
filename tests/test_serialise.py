"""Files: what comes back, what is refused, and what a failed or interrupted save leaves behind."""

import importlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors

from l2o_eqx import _serialise, optimizers
from l2o_eqx._renamed import REMOVED, RENAMED
from l2o_eqx._serialise import FileFormatError, load, load_metadata, save


class Inner(NamedTuple):
    count: Any
    rest: Any


class Model(eqx.Module):
    weights: dict[str, Any]
    pair: tuple[Any, ...]
    inner: Inner
    activation: Callable
    rate: float
    missing: None
    width: int = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    table: Any = eqx.field(static=True)

    def __call__(self, x):
        return self.activation(self.weights["a.b"]["c"] @ x) * self.rate + self.width


class Rated(eqx.Module):
    weights: jax.Array
    rate: float = eqx.field(static=True)


def make_model(activation=jax.nn.relu) -> Model:
    return Model(
        weights={"a.b": {"c": jnp.arange(6.0).reshape(2, 3) - 2}, "a": {"b.c": np.arange(3)}},
        pair=([jnp.int32(3), True], (), jr.key(1)),
        inner=Inner(jnp.zeros((0, 2)), {"x": None, "~": "ü", "nan": float("nan")}),
        activation=activation,
        rate=0.1,
        missing=None,
        width=4,
        names=("first", "second"),
        dtype=(jnp.float32, jnp.dtype("bfloat16")),
        table=(float("inf"), -float("inf"), -0.0, 10**30),
    )


def same(a: Any, b: Any) -> bool:
    """Whether two trees agree in structure, types, dtypes and every bit of their arrays."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False

    def same_leaf(x, y):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x.dtype == y.dtype and same_leaf(jr.key_data(x), jr.key_data(y))
        if eqx.is_array(x):
            arrays = np.asarray(x), np.asarray(y)
            sides = [(type(v), w.dtype, w.shape, w.tobytes()) for v, w in zip((x, y), arrays, strict=True)]
            return sides[0] == sides[1] and not getattr(y, "weak_type", False)
        return type(x) is type(y) and repr(x) == repr(y)

    return all(map(same_leaf, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def forge(path) -> Callable:
    """Writes a file with a correct sha256, whatever its header says."""

    def write(structure: Any, arrays: dict[str, np.ndarray] | None = None, **header: Any) -> Path:
        arrays = arrays or {}
        header = {"format": 1, "versions": {}, "metadata": {}, "structure": structure, **header}
        header.setdefault("kinds", dict.fromkeys(arrays, "jax"))
        header["sha256"] = _serialise._digest(header, arrays)
        path.write_bytes(to_safetensors(arrays, metadata={"l2o_eqx": json.dumps(header)}))
        return path

    return write


def define(name: str, *, module: str = __name__, **fields: Any) -> Any:
    """A module class with these fields, as one version of a package might define it."""
    body = {"__annotations__": fields, "__module__": module}
    return types.new_class(name, (eqx.Module,), exec_body=lambda space: space.update(body))


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Changes the header of a saved file as an honest writer would."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["l2o_eqx"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    header.pop("sha256")
    change(header)
    header["sha256"] = _serialise._digest(header, arrays)
    path.write_bytes(to_safetensors(arrays, metadata={"l2o_eqx": json.dumps(header)}))


def test_custom_module(path):
    model = make_model()
    assert save(path, model) == path
    loaded = load(path, classes=[Model, Inner])
    assert type(loaded) is Model and type(loaded.inner) is Inner
    assert same(loaded, model)
    assert loaded.activation is jax.nn.relu
    assert loaded.dtype == (jnp.float32, jnp.dtype("bfloat16")) and loaded.dtype[0] is jnp.float32
    assert repr(loaded.table) == repr(model.table) and loaded.names == model.names
    assert type(loaded.weights["a"]["b.c"]) is np.ndarray
    assert loaded.pair[0][1] is True and loaded.missing is None


def test_loaded_module_works_under_transformations(path):
    model = make_model()
    loaded = load(save(path, model), classes=[Model, Inner])
    x = jnp.array([1.0, -2.0, 3.0])
    assert jnp.array_equal(eqx.filter_jit(lambda m, x: m(x))(loaded, x), model(x))
    doubled = jax.tree.map(lambda x: x * 2 if eqx.is_inexact_array(x) else x, loaded)
    assert jnp.array_equal(doubled.weights["a.b"]["c"], 2 * model.weights["a.b"]["c"])
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    with pytest.raises(AttributeError):  # still frozen
        loaded.rate = 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda key: eqx.nn.LSTMCell(2, 3, key=key),
        lambda key: eqx.nn.LSTMCell(2, 3, use_bias=False, key=key),
        lambda key: eqx.nn.Linear("scalar", 3, key=key),
        lambda key: eqx.nn.MLP(2, "scalar", 4, 2, key=key),
        lambda key: eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, final_activation=jax.lax.abs, key=key),
        lambda key: eqx.nn.Conv2d(1, 2, 3, padding="SAME", key=key),
        lambda key: eqx.nn.MaxPool2d(2),
        lambda key: eqx.nn.LayerNorm((3,)),
        lambda key: eqx.nn.Sequential([eqx.nn.Lambda(jax.nn.gelu), eqx.nn.Dropout(0.5)]),
    ],
)
def test_equinox_layers_need_no_classes(make, path):
    layer = make(jr.key(0))
    loaded = load(save(path, layer))
    assert same(loaded, layer)
    assert repr(loaded) == repr(layer)


def test_optax_state(path):
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    schedule = optax.linear_schedule(1, 0, 9)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    _, state = optimizer.update(params, optimizer.init(params))
    loaded = load(save(path, {"params": params, "state": state}))
    assert same(loaded["state"], state)
    updates, _ = optimizer.update(params, state)
    again, _ = optimizer.update(params, loaded["state"])
    assert same(again, updates)


@pytest.mark.parametrize(
    "function",
    [jax.nn.relu, jax.nn.silu, jax.nn.gelu, jnp.tanh, jnp.add, jax.lax.max, optax.l2_loss]
    + [jax.nn.initializers.zeros],
)
def test_functions_come_back_as_themselves(function, path):
    assert load(save(path, (function,)))[0] is function


@pytest.mark.parametrize("tree", [None, 3, "x", 0.1, True, (), [], {}, jnp.ones(3), np.ones(3, np.int8)])
def test_bare_trees(tree, path):
    loaded = load(save(path, tree))
    assert type(loaded) is type(tree) and same(loaded, tree)


def test_long_lists_keep_their_order(path):
    tree = ([jnp.float32(i) for i in range(12)], tuple(range(12)))
    assert same(load(save(path, tree)), tree)


@pytest.mark.parametrize("dtype", _serialise.DTYPES.split())
@pytest.mark.parametrize("shape", [(), (5,), (0, 2), (2, 3, 1)])
def test_numpy_bits(dtype, shape, path):
    raw = np.random.default_rng(0).integers(0, 2, (*shape, jnp.dtype(dtype).itemsize), np.uint8)
    array = (raw if dtype == "bool" else raw * 255).view(dtype)[..., 0]
    assert same(load(save(path, [array])), [array])


def test_jax_bits(path):
    payloads = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001], np.uint32)
    tree = {
        "nan": jnp.asarray(payloads.view(np.float32)),
        "bfloat16": jnp.asarray(np.array([0x7FC1, 0x8000, 0x3F80], np.uint16).view(jnp.bfloat16)),
        "int": jnp.array([-(2**31), 2**31 - 1]),
        "bool": jnp.array([True, False]),
        "scalar": np.float32(0.1),
    }
    loaded = load(save(path, tree))
    assert same(loaded, tree)
    assert np.array_equal(np.asarray(loaded["nan"]).view(np.uint32), payloads)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys(impl, path):
    keys = {"one": jr.key(3, impl=impl), "many": jr.split(jr.key(4, impl=impl), (2, 3))}
    loaded = load(save(path, keys))
    assert same(loaded, keys)
    assert jnp.array_equal(jr.normal(loaded["one"]), jr.normal(keys["one"]))
    assert same(load(path, like=eqx.filter_eval_shape(lambda: keys)), keys)


def test_weak_types_become_strong(path):
    weak = jnp.asarray(1.0)
    assert weak.weak_type
    save(path, [weak])
    assert not load(path)[0].weak_type and not load(path, like=[weak])[0].weak_type


def test_memory_layout_does_not_matter(path):
    array = np.arange(12.0).reshape(3, 4)
    tree = [np.asfortranarray(array), array.T, array[::-1, ::2]]
    loaded = load(save(path, tree))
    assert all(np.array_equal(x, y) for x, y in zip(loaded, tree, strict=True))


def test_float64_is_never_rounded(path):
    program = (
        "import sys, jax, jax.numpy as jnp; jax.config.update('jax_enable_x64', True);"
        "from l2o_eqx._serialise import save, load; x = jnp.array([1 / 3]);"
        "y = load(save(sys.argv[1], [x]))[0]; assert y.dtype == x.dtype == 'float64' and y == x"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environment)
    with pytest.raises(ValueError, match=r"`0` is float64.*jax_enable_x64"):
        load(path)
    assert load(path, like=[np.zeros(1)]) == [np.array([1 / 3])]


def test_same_tree_same_bytes(tmp_path):
    metadata = {"b": 1, "a": [1.5, None, {"z": "ü", "y": True}]}
    first = save(tmp_path / "1", make_model(), metadata=metadata).read_bytes()
    for i in range(5):
        assert save(tmp_path / "2", make_model(), metadata=metadata).read_bytes() == first, i


def test_metadata(path):
    metadata = {"data": "MNIST", "steps": 3, "nested": {"a": [1, 2.5, None]}, "loss": float("inf")}
    assert load_metadata(save(path, make_model(), metadata=metadata)) == metadata
    assert load_metadata(save(path, make_model())) == {}
    assert load_metadata(save(path, None, metadata={"by step": {10: "a", 9: "b"}})) == {
        "by step": {"10": "a", "9": "b"}
    }


def test_other_tools_read_the_arrays_by_name(path):
    save(path, {"cells": (eqx.nn.LSTMCell(2, 3, key=jr.key(0)),), "__metadata__": jnp.ones(1)})
    with safe_open(path, framework="numpy") as file:
        assert {"cells.0.weight_ih", "cells.0.weight_hh", "cells.0.bias"} < {*file.keys()}
        assert list(file.metadata()) == ["l2o_eqx"]
        header = json.loads(file.metadata()["l2o_eqx"])
    assert header["format"] == 1 and header["versions"]["jax"] == jax.__version__
    assert "__metadata__" in load(path)


def test_public_class_names_are_stored(path):
    save(path, (eqx.nn.Linear(1, 1, key=jr.key(0)), optax.EmptyState()))
    with safe_open(path, framework="numpy") as file:
        text = file.metadata()["l2o_eqx"]
    assert '"equinox.nn:Linear"' in text and '"optax:EmptyState"' in text


def test_own_optimizer(path):
    optimizer = optimizers.CoordinatewiseLSTM((3, 2), linear_readout=True, key=jr.key(0))
    loaded = load(save(path, optimizer))
    assert same(loaded, optimizer) and loaded.learning_rate == optimizer.learning_rate
    state = optimizer.init({"w": jnp.ones(3)})
    assert same(load(save(path, state)), state)


def test_a_field_that_the_file_does_not_have_takes_its_default(path):
    """A class that has gained fields reads its old files; a field without a default must be in them."""
    old = define("Grown", x=Any)
    fields: Any = {"__annotations__": {"x": Any, "y": Any, "z": Any}, "__module__": __name__}
    fields |= {"y": None, "z": eqx.field(default_factory=lambda: (1, 2))}
    new = types.new_class("Grown", (eqx.Module,), exec_body=lambda space: space.update(fields))
    loaded = load(save(path, old(jnp.ones(2))), classes=[new])
    assert type(loaded) is new and same((loaded.x, loaded.y, loaded.z), (jnp.ones(2), None, (1, 2)))


@pytest.mark.parametrize("old", RENAMED)
def test_files_under_names_of_before(old, path, monkeypatch):
    home, _, name = old.partition(":")
    with pytest.warns(DeprecationWarning, match=f"`{home}.{name}` is called `"):
        preprocessor = getattr(sys.modules[home], name)()
    written, today = _serialise._import_name, RENAMED[old]
    monkeypatch.setattr(_serialise, "_import_name", lambda x: {today: old}.get(written(x), written(x)))
    save(path, preprocessor)
    assert _serialise.dumps(old).encode() in path.read_bytes().replace(b"\\", b"")
    assert load(path) == preprocessor


@pytest.mark.parametrize("old", REMOVED)
def test_what_is_no_more(old, path, monkeypatch):
    """An import and a file both say what to use in its place."""
    home, _, name = old.partition(":")
    with pytest.raises(AttributeError, match=f"`{home}.{name}` is no more. `HierarchicalRNN`"):
        getattr(importlib.import_module(home), name)
    monkeypatch.setattr(_serialise, "_import_name", lambda x: old)
    save(path, optimizers.CoordinatewiseLSTM((2,), key=jr.key(0)))
    with pytest.raises(ValueError, match=f"`{old}`, which is no more. `HierarchicalRNN`"):
        load(path)


def test_a_name_that_never_was():
    with pytest.raises(AttributeError, match=r"'l2o_eqx.preprocessors' has no attribute 'Never'"):
        _ = sys.modules["l2o_eqx.preprocessors"].Never


def test_optimizers_of_before_they_had_outputs(path):
    optimizer = optimizers.CoordinatewiseLSTM(key=jr.key(0))

    def as_it_was(header):
        assert header["structure"]["class"][1].pop("output") is None

    save(path, optimizer)
    rewrite(path, as_it_was)
    loaded = load(path)
    assert same(loaded, optimizer)
    grads = jnp.ones(3)
    assert same(*(x.update(grads, x.init(grads), grads) for x in (loaded, optimizer)))


def test_closures_of_optax_are_refused(path):
    with pytest.raises(TypeError, match=r"`transformation\.init`, the function"):
        save(path, optimizers.FromOptax(optax.adam(0.1)))


def test_public_name_of_a_private_module(path, monkeypatch):
    # As `l2o_eqx.optimizers:PerLayer`, defined in `l2o_eqx.optimizers._per_layer`.
    package: Any = types.ModuleType("toolbox")
    private: Any = types.ModuleType("toolbox._parts")
    package.Part = private.Part = define("Part", module="toolbox._parts", x=Any)
    monkeypatch.setitem(sys.modules, "toolbox", package)
    monkeypatch.setitem(sys.modules, "toolbox._parts", private)
    save(path, package.Part(1))
    with pytest.raises(ValueError, match=r"`toolbox:Part`.*classes=\[Part\]"):
        load(path)
    assert load(path, classes=[package.Part]).x == 1
    part = package.Part
    del package.Part
    save(path, part(2))
    package.Part = part  # exported only later: the file's private name still does
    with pytest.raises(ValueError, match="`toolbox._parts:Part`"):
        load(path)
    assert load(path, classes=[part]).x == 2


# What is refused when reading


def test_flipped_byte(path, tmp_path):
    good = save(path, (eqx.nn.Linear(2, 2, key=jr.key(0)), jr.key(0))).read_bytes()
    other = tmp_path / "flipped"
    for i in range(len(good)):
        for mask in (0x01, 0xFF):
            other.write_bytes(good[:i] + bytes([good[i] ^ mask]) + good[i + 1 :])
            with pytest.raises(FileFormatError, match="flipped"):
                load(other)
            with pytest.raises(FileFormatError, match="flipped"):
                load_metadata(other)


def test_truncated_or_extended(path, tmp_path):
    good = save(path, eqx.nn.Linear(2, 2, key=jr.key(0))).read_bytes()
    other = tmp_path / "cut"
    for size in range(len(good)):
        other.write_bytes(good[:size])
        with pytest.raises(FileFormatError, match="cut"):
            load(other)
    other.write_bytes(good + b"\0")
    with pytest.raises(FileFormatError, match="cut"):
        load(other)


def test_foreign_files(path):
    path.write_bytes(to_safetensors({"x": np.ones(3)}))
    with pytest.raises(FileFormatError, match=r"model\.safetensors.*not from `l2o_eqx\.save`"):
        load(path)
    path.write_bytes(to_safetensors({"x": np.ones(3)}, metadata={"l2o_eqx": "[]"}))
    with pytest.raises(FileFormatError, match=r"not from `l2o_eqx\.save`"):
        load(path)
    path.write_text("not a checkpoint at all")
    with pytest.raises(FileFormatError, match=r"not from `l2o_eqx\.save`"):
        load_metadata(path)


def test_newer_format(path):
    save(path, None)
    rewrite(path, lambda header: header.update(format=2))
    with pytest.raises(FileFormatError, match="format 2 needs a newer l2o_eqx"):
        load(path)


def test_missing_file(path):
    for read in (load, load_metadata):
        with pytest.raises(FileNotFoundError, match="model.safetensors"):
            read(path)


def test_unknown_class(path):
    save(path, make_model())
    with pytest.raises(ValueError, match=r"`[\w.]*test_serialise:Model`.*classes=\[Model\]"):
        load(path)
    with pytest.raises(ValueError, match=r":Inner`"):
        load(path, classes=[Model])


@pytest.mark.parametrize(
    "name",
    ["os:system", "subprocess:Popen", "l2o_eqx.nothing:Gone", "equinox.nn:Gone", "equinox:__main__"]
    + [
        "equinox:filter_jit",
        "optax:adam",
        "optax.jax:Array",
        "equinox.__main__:X",
        "collections:abc",
    ],
)
def test_forged_class(name, forge):
    with pytest.raises(ValueError, match=rf"`{name}`"):
        load(forge({"class": [name, {}]}))


def test_no_import_on_a_file_s_word(forge, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for node in ({"class": ["trap:Trap", {}]}, {"function": "trap:trap"}):
        with pytest.raises(ValueError, match="`trap:"):
            load(forge(node))


@pytest.mark.parametrize(
    "name",
    ["os:system", "jax.numpy:load", "jax.numpy:save", "jax.numpy:fromfile", "jax:pure_callback"]
    + [
        "l2o_eqx._serialise:save",
        "optax:jax.pure_callback",
        "jax.nn:nothing",
        "numpy:load",
        "relu",
    ],
)
def test_forged_function(name, forge):
    with pytest.raises(ValueError, match=rf"`{name}`"):
        load(forge({"function": name}))


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"tuple": 1},
        {"array": "gone"},
        {"nothing": 1},
        {"dict": [1]},
        {"class": "equinox.nn:Linear"},
    ]
    + [{"dtype": "float33"}, {"a": 1, "b": 2}],
)
def test_forged_structure(node, forge):
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(forge(node))


def test_only_modules_and_named_tuples_are_rebuilt(path):
    save(path, Inner(1, 2))
    impostor = type("Inner", (), {"__module__": __name__})
    with pytest.raises(ValueError, match="neither an Equinox module nor a named tuple"):
        load(path, classes=[impostor])


def test_changed_class(path):
    old = define("Net", u=Any, v=Any)
    swapped, other = define("Net", v=Any, u=Any), define("Net", v=Any, w=Any)
    save(path, old(jnp.zeros(()), jnp.ones(())))
    loaded = load(path, classes=[swapped])
    assert type(loaded) is swapped and (loaded.u, loaded.v) == (0, 1)
    assert jax.tree.leaves(loaded) == [1, 0]
    with pytest.raises(ValueError, match=r"missing from the file \['w'\], unexpected fields \['u'\]"):
        load(path, classes=[other])
    loaded = load(path, like=swapped(jnp.zeros(()), jnp.zeros(())))
    assert (loaded.u, loaded.v) == (0, 1)


# A template


def test_like_keeps_what_is_not_an_array(path):
    def make(seed, activation=jax.nn.relu):
        layer = eqx.nn.MLP(2, 3, 4, 2, activation=lambda x: activation(x) + 1, key=jr.key(seed))
        return {"layer": layer, "numpy": np.full(3, seed), "scalar": np.float32(seed), "n": seed}

    saved, template = make(1), make(2)
    with pytest.raises(TypeError):
        save(path, saved)
    save(path, saved, structure=False, metadata={"a": 1})
    assert load_metadata(path) == {"a": 1}
    with pytest.raises(ValueError, match=r"only the arrays.*like="):
        load(path)
    loaded = load(path, like=template)
    expected = eqx.combine(eqx.filter(saved, eqx.is_array), template)
    assert same(loaded, expected)
    assert loaded["n"] == 2 and loaded["layer"].activation is template["layer"].activation
    loaded["numpy"][0] = 0  # NumPy arrays can be written to, as before

    abstract = eqx.filter_eval_shape(lambda: make(2)["layer"])
    save(path, saved["layer"], structure=False)
    loaded = load(path, like=abstract)
    assert same(eqx.filter(loaded, eqx.is_array), eqx.filter(saved["layer"], eqx.is_array))


def test_like_with_a_full_file(path):
    model = make_model()
    save(path, model)
    assert same(load(path, like=make_model()), model)
    table = eqx.tree_at(lambda m: m.rate, make_model(), 0.7)
    assert load(path, like=table).rate == 0.7  # Python numbers are not arrays


def test_arrays_in_static_fields_are_no_leaves(path):
    with pytest.warns(UserWarning, match="set as static"):
        model = (Rated(jnp.ones(2), np.float64(0.1)),)
    save(path, model)
    loaded = load(path, classes=[Rated])
    assert type(loaded[0].rate) is np.float64 and same(loaded, model)
    assert same(load(path, like=model), model)


def test_like_lists_every_difference(path):
    save(
        path,
        {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2), "k": jr.key(0)},
        structure=False,
    )
    like = {"a": jnp.ones(3), "b": jnp.ones(2, int), "d": jnp.ones(2), "k": jr.key_data(jr.key(0))}
    with pytest.raises(ValueError) as e:
        load(path, like=like)
    assert str(e.value).endswith(
        "model.safetensors: the file does not fit `like`: `a` is float32[2], in `like` float32[3]; "
        "`b` is float32[2], in `like` int32[2]; `c` is float32[2], in `like` absent; "
        "`d` is missing, in `like` float32[2]; `k` is key<fry>[], in `like` uint32[2]."
    )


# What is refused when writing, and what that leaves behind


@pytest.mark.parametrize(
    "bad, kind",
    [
        (lambda x: x, "function"),
        (jax.jit(lambda x: x), "PjitFunction"),
        (object(), "object"),
        (1j, "complex"),
        (np.load, "function"),
        (jnp.load, "function"),
        (save, "function"),
        (jax.nn, "module"),
        (eqx.nn.Linear, "_ModuleMeta"),
        ({1: 2}, "dict"),
        (np.ma.masked_array([1, 2], [True, False]), "MaskedArray"),
        (np.dtype(">f4"), r"Float32DType|dtype"),
    ],
)
def test_what_cannot_be_stored(bad, kind, path):
    with pytest.raises(TypeError, match=rf"`a\.1`, the ({kind})\b(.|\n)*structure=False"):
        save(path, {"a": [1, bad]})
    assert not path.exists() and not list(path.parent.iterdir())


@pytest.mark.parametrize("dtype", [">f4", "complex128", "S3", object])
def test_unknown_dtypes(dtype, path):
    for structure in (True, False):
        with pytest.raises(TypeError, match=r"the array `a\.1`.*not one of bool"):
            save(path, {"a": [1, np.zeros(2, dtype)]}, structure=structure)
    assert not list(path.parent.iterdir())


def test_metadata_must_be_json(path):
    with pytest.raises(TypeError, match="JSON"):
        save(path, None, metadata={"array": jnp.ones(2)})
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failed_save_keeps_the_old_file(step, error, path, monkeypatch):
    save(path, [jnp.zeros(3)])
    before = path.read_bytes()

    def fail(*args):
        raise error("the disk is full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(error, match="the disk is full"):
        save(path, [jnp.ones(3)])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    save(path, [jnp.ones(3)])
    assert jnp.array_equal(load(path)[0], jnp.ones(3)) and list(path.parent.iterdir()) == [path]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(tmp_path / "nowhere" / "model", None)
