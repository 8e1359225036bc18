"""Without JAX: the updates are those of the library, along recorded gradients."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import as_if_trained, draw_grads, to_float64, updates_of

import l2o_eqx as l2o
from l2o_eqx import numpy_runtime, preprocessors
from l2o_eqx.numpy_runtime import _threefry
from l2o_eqx.optimizers import (
    AdamMLP,
    BlackBoxRNN,
    CoordinatewiseLSTM,
    Equation,
    GradientDescent,
    HierarchicalRNN,
    LearnedMomentum,
    LearnedStart,
    PerLayer,
    SubspaceRNN,
    by_leaf,
    by_rank,
    by_shape,
    moves_head,
)
from l2o_eqx.optimizers._equation import TERMS

STEPS = 100
PARAMS = {"a": {"b": jnp.full((2, 3), 0.5), "w": jnp.ones(4)}, "c": {"w": jnp.full((1,), -2.0)}}


def _lstm(preprocessor, **settings):
    return CoordinatewiseLSTM((3, 4), preprocessor, 0.1, key=jr.key(0), **settings)


OPTIMIZERS = {
    "identity": lambda: _lstm(preprocessors.Identity()),
    "signed_log": lambda: _lstm(preprocessors.SignedLog(4.0)),
    "log_and_sign": lambda: _lstm(preprocessors.LogAndSign(), linear_readout=True),
    "gallery": lambda: l2o.pretrained("quadratic"),
    "layer": lambda: as_if_trained(
        LearnedMomentum(3, per="layer", first_step="relative", key=jr.key(0)), jr.key(1)
    ),
    "tree": lambda: LearnedMomentum(3, per="tree", key=jr.key(0)),
    "mnist": lambda: l2o.pretrained("mnist"),
    "adam_mlp": lambda: as_if_trained(AdamMLP((4,), num_steps=60, key=jr.key(0)), jr.key(1)),
    "muon": lambda: as_if_trained(
        AdamMLP((5, 3), num_steps=70, matrices=True, decay="cosine", horizon_power=0.3, key=jr.key(0)),
        jr.key(1),
    ),
    "classifiers": lambda: l2o.pretrained("classifiers"),
    "equation": lambda: Equation(TERMS[: len(TERMS) // 2], (0.01,) * (len(TERMS) // 2), num_steps=70),
    "factors": lambda: Equation(
        ("cos*run*muon(m0.9)", "fan*sign(m0.9)", "cos*fan*u", "g/L"), (-0.1, -0.02, 0.3, -0.5)
    ),
    "per_leaf": lambda: PerLayer(
        {"a.b": AdamMLP((4,), key=jr.key(0)), "a.w": Equation(), "c.w": _lstm(preprocessors.Identity())},
        by_leaf,
    ),
    "zoo": lambda: l2o.pretrained("zoo"),
    "attention": lambda: as_if_trained(HierarchicalRNN(3, 4, 5, attention=True, key=jr.key(0)), jr.key(1)),
    "start": lambda: LearnedStart(GradientDescent(PARAMS, 0.1), PARAMS),
    "head": lambda: GradientDescent(PARAMS, 0.1, rates="fixed", moving=moves_head),
    "rates": lambda: as_if_trained(
        LearnedStart(GradientDescent(PARAMS, 0.1, rates="leaf", num_rates=3, moving=moves_head), PARAMS),
        jr.key(1),
    ),
    "entries": lambda: as_if_trained(GradientDescent(PARAMS, 0.1, rates="entry"), jr.key(1)),
    "per_shape": lambda: PerLayer.make(
        lambda key: Equation(("fan*muon(m0.5)",), (-0.1,)), PARAMS, label=by_shape, key=jr.key(0)
    ),
}


def recorded():
    """Gradients as of a run that goes down: they change little from step to step, in length and direction."""
    start, noise = (draw_grads(jr.key(i), n, PARAMS) for i, n in ((0, 1), (1, STEPS)))
    decay = 0.95 ** jnp.arange(STEPS, dtype=jnp.float32)
    # Some do not change, and some are zero.
    decay = decay.at[3].set(decay[2]).at[50].set(0.0)

    def one(x, n):
        return decay.reshape(STEPS, *(1,) * (x.ndim - 1)) * (x + 0.3 * n.at[3].set(n[2]))

    return jax.tree.map(one, start, noise)


def flat(tree):
    return {f"{layer}.{name}": np.asarray(x) for layer, part in tree.items() for name, x in part.items()}


@functools.cache
def updates_of_jax(name, x64=True):
    """By array, one row a step; in float64, because in float32 JAX's own rounding is 1e-6."""
    given = OPTIMIZERS[name](), recorded(), PARAMS
    if not x64:
        return flat(updates_of(*given))
    with jax.enable_x64(True):
        return flat(updates_of(*map(to_float64, given)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_100_steps_are_those_of_jax(name, tmp_path):
    l2o.save(tmp_path / "file", OPTIMIZERS[name]())
    runtime: Any = numpy_runtime.load(tmp_path / "file")
    rows, expected = flat(recorded()), updates_of_jax(name)
    params = {key: np.float64(x) for key, x in flat(PARAMS).items()}
    state = runtime.init(params)
    for step in range(STEPS):
        updates, state = runtime.update({key: x[step] for key, x in rows.items()}, state, params)
        for key, update in updates.items():
            assert update.dtype == np.float32 and np.all(np.isfinite(update))
            np.testing.assert_allclose(update, expected[key][step], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_search_by_values_is_that_of_jax(workers, tmp_path):
    """Along 30 evaluations, some of which fail; of whole numbers and logarithms, too."""
    if workers == 1:
        rnn = l2o.pretrained("black-box")
    else:
        rnn = as_if_trained(BlackBoxRNN(2, 8, workers=workers, num_steps=25, key=jr.key(0)), jr.key(1))
    l2o.save(tmp_path / "file", rnn)
    ours: Any = numpy_runtime.load(tmp_path / "file")
    space = {
        "width": {"low": 2, "high": 300, "log": True, "integer": True},
        "rate": {"low": -1.0, "high": 3.0},
    }
    state, rng = ours.init(space), np.random.default_rng(0)
    with jax.enable_x64(True):
        rnn: Any = to_float64(rnn)
        theirs = rnn.init(l2o.Space({name: l2o.Box(**box) for name, box in space.items()}))
        waiting: list[Any] = []
        for step in range(30):
            while len(waiting) < workers:
                point, theirs = rnn.ask(theirs)
                asked, state = ours.ask(state)
                assert asked["width"] == point["width"] and type(asked["width"]) is int
                np.testing.assert_allclose(asked["rate"], point["rate"], rtol=1e-6)
                waiting.append(point)
            with pytest.raises(ValueError, match="free"):
                ours.ask(state)
            point = waiting.pop(rng.integers(workers))
            value = None if step % 7 == 3 else (point["rate"] - 1) ** 2 + abs(point["width"] - 40) / 50
            theirs, state = rnn.tell(theirs, point, value), ours.tell(state, point, value)
            np.testing.assert_array_equal(state["busy"], theirs.busy)
            np.testing.assert_allclose(state["queries"], theirs.queries, rtol=1e-6, atol=1e-9)
    assert state["best"] == theirs.best and state["told"] == 30
    for given in ({"rate": 5.0, "width": 2}, {"rate": 0.0}):
        with pytest.raises(ValueError, match="`tell`"):
            ours.tell(state, given, 1.0)
    for box in (
        {"low": 1},
        {"low": 2, "high": 1},
        {"low": 0, "high": 1, "log": True},
        {"low": 0.5, "high": 2, "integer": True},
    ):
        with pytest.raises(ValueError, match="'x'"):
            ours.init({"x": box, "y": {"low": 0, "high": 1}})


def test_folders_and_names_are_files(tmp_path):
    shutil.copy(l2o.gallery.file_of("mnist"), tmp_path / "optimizer.safetensors")
    for found in (numpy_runtime.load(tmp_path), numpy_runtime.load("mnist"), l2o.load(tmp_path)):
        assert type(found).__name__ == "AdamMLP"


def test_where_a_learned_start_is():
    sinusoid: Any = numpy_runtime.load(l2o.gallery.file_of("sinusoid"))
    start = cast(Any, l2o.pretrained("sinusoid")).start
    assert sinusoid.start.keys() == {f"layers.{i}.{part}" for i in range(3) for part in ("weight", "bias")}
    np.testing.assert_array_equal(sinusoid.start["layers.1.weight"], start.layers[1].weight)
    with pytest.raises(ValueError, match="learning rates of the shapes"):
        numpy_runtime.GradientDescent({"a": np.ones(2)}, 0.1, "entry", None, "moves_all").init(
            {"a": np.ones(3)}
        )


def test_gradient_descent_rounds_once_and_leaves_alone_what_stands_still():
    rates = {"a": np.asarray(1e-8), "b": np.asarray(1.0)}
    rule = numpy_runtime.GradientDescent(rates, 0.1, "leaf", None, "moves_all")
    params = {"a": np.ones(2, np.float16), "b": np.ones(2, np.float16)}
    grads = {"a": np.full(2, 6e4, np.float16), "b": np.ones(2, np.float16)}
    updates, _ = rule.update(grads, rule.init(params))
    np.testing.assert_allclose(updates["a"], -6e-4, rtol=1e-3)
    head = numpy_runtime.GradientDescent(None, 0.1, "fixed", None, "moves_head")
    params = {"0.w": np.ones(2), "1.w": np.ones(2)}
    updates, _ = head.update({"0.w": np.full(2, np.inf), "1.w": np.ones(2)}, head.init(params))
    assert np.all(updates["0.w"] == 0) and np.all(updates["1.w"] == -0.1)


def test_values_whose_difference_is_no_number_are_failures():
    rnn: Any = numpy_runtime.load(l2o.gallery.file_of("black-box"))
    state = rnn.init(
        {"x": {"low": 1e-10, "high": 1.0, "log": True}, "y": {"low": 0, "high": 9, "integer": True}}
    )
    for value in (-1.5e308, 1.5e308, -1.4e308):
        point, state = rnn.ask(state)
        state = rnn.tell(state, point, value)
    assert np.all(np.isfinite(state["queries"])) and state["best"][1] == -1.5e308
    # Within the slack of an end.
    assert np.isfinite(rnn.tell(state, {"x": 0.0, "y": 9}, 1.0)["queries"]).all()


def test_the_random_numbers_are_those_of_jax():
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            for seed in (0, 1, 2**31 + 5):
                key = jr.fold_in(jr.key(seed), 3_000_000_000)
                ours = _threefry.fold_in(np.asarray(jr.key_data(jr.key(seed))), 3_000_000_000)
                for k, own in zip(jr.split(key, 3), _threefry.split(ours, 3), strict=True):
                    expected = jr.uniform(k, (4, 5), dtype, -7.0, -2.0)
                    found = _threefry.uniform(own, (4, 5), np.dtype(dtype), -7.0, -2.0)
                    np.testing.assert_allclose(found, expected, rtol=float(4 * np.finfo(dtype).eps))


def test_it_needs_neither_jax_nor_the_package(tmp_path):
    """Copied alone, it minimizes."""
    shutil.copytree(Path(numpy_runtime.__file__).parent, tmp_path / "runtime")
    code = (
        "import sys, numpy as np, runtime\n"
        f"optimizer = runtime.load({str(l2o.gallery.file_of('quadratic'))!r})\n"
        "x = {'x': np.array([3.0, -2.0])}\n"
        "state = optimizer.init(x)\n"
        "for _ in range(80):\n"
        "    updates, state = optimizer.update({'x': np.array([2.0, 10.0]) * x['x']}, state)\n"
        "    x = {'x': x['x'] + updates['x']}\n"
        "print(sorted({'jax', 'equinox', 'l2o_eqx'} & {*sys.modules}), np.max(np.abs(x['x'])) < 1e-3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.stdout == "[] True\n", done.stderr


def test_what_it_does_not_know(tmp_path):
    path = tmp_path / "file"
    for optimizer, message in [
        (SubspaceRNN(key=jr.key(0)), "holds SubspaceRNN; without JAX there are AdamMLP"),
        (_lstm(preprocessors.AdamLike()), "the preprocessor AdamLike"),
        (_lstm(None, output=l2o.outputs.MomentumOutput()), "with an `output`"),
        ({"a": 3}, "holds no class"),
        (HierarchicalRNN(key=jr.key(0, impl="rbg")), "random numbers of rbg"),
    ]:
        l2o.save(path, optimizer)
        with pytest.raises(ValueError, match=message):
            numpy_runtime.load(path)
    content = l2o.gallery.file_of("quadratic").read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="sha256"):
        numpy_runtime.load(path)
    with pytest.raises(FileNotFoundError):
        numpy_runtime.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is damaged or not from"):
        numpy_runtime.load(tmp_path)


def test_groups_that_have_no_optimizer(tmp_path):
    l2o.save(tmp_path / "file", PerLayer({"rank1": Equation(), "rank2": Equation()}, by_rank))
    optimizer: Any = numpy_runtime.load(tmp_path / "file")
    with pytest.raises(ValueError, match="no optimizer for rank3; the groups are rank1, rank2"):
        optimizer.init({"a": np.ones((2, 2)), "b": np.ones((2, 2, 2))})
    l2o.save(tmp_path / "file", PerLayer({"class": Equation(), "y": Equation()}, by_leaf))
    known: Any = numpy_runtime.load(tmp_path / "file")
    assert known.optimizers.keys() == {"class", "y"}
    l2o.save(tmp_path / "file", PerLayer({"x": Equation(("theta",), (-0.1,))}, by_leaf))
    optimizer = numpy_runtime.load(tmp_path / "file")
    params = {"x": np.full(2, 2.0)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["x"], -0.2)
    with pytest.raises(ValueError, match="has the params in it"):
        optimizer.update(params, optimizer.init(params))


@pytest.mark.parametrize("name", ["gallery", "adam_mlp", "identity", "classifiers", "per_leaf"])
def test_arrays_that_are_others_than_those_of_init(name, tmp_path):
    l2o.save(tmp_path / "file.safetensors", OPTIMIZERS[name]())
    optimizer: Any = numpy_runtime.load(tmp_path / "file.safetensors")
    params = {"a": np.ones((2, 3)), "b": np.ones(2)}
    if name == "per_leaf":
        optimizer = numpy_runtime.PerLayer({name: optimizer.optimizers["a.w"] for name in params}, "by_leaf")
    state = optimizer.init(params)
    for grads in ({"a": np.ones((2, 3))}, {**params, "b": np.ones(3)}, {**params, "c": np.ones(1)}):
        with pytest.raises(ValueError, match="the names and shapes of `init`"):
            optimizer.update(grads, state, params)
    with pytest.raises(ValueError, match="'b' must be an array of real floating-point numbers. Got int64"):
        optimizer.update({**params, "b": np.ones(2, np.int64)}, state, params)


@pytest.mark.parametrize("name", ["gallery", "layer", "identity", "classifiers"])
def test_the_order_of_names_does_not_matter(name, tmp_path):
    l2o.save(tmp_path / "file.safetensors", OPTIMIZERS[name]())
    optimizer: Any = numpy_runtime.load(tmp_path / "file.safetensors")
    params = {"a": np.array([1.0, -2.0]), "b": np.full((2, 2), 0.5)}
    found = []
    for backwards in (False, True):
        state, x = optimizer.init(params), dict(params)
        for step in range(6):
            names = [*x][::-1] if backwards and step % 2 else [*x]
            updates, state = optimizer.update({n: x[n] + 0.1 * step for n in names}, state, x)
            x = {n: x[n] + updates[n] for n in x}
        found.append(x)
    np.testing.assert_equal(found[1], found[0])
