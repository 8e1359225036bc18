"""In PyTorch: the updates are those of the library, along recorded gradients."""

import copy
import pickle
import subprocess
import sys
from typing import Any, cast

import jax.random as jr
import numpy as np
import pytest
from test_numpy_runtime import OPTIMIZERS, PARAMS, STEPS, flat, recorded, updates_of_jax

import l2o_eqx as l2o

torch = pytest.importorskip("torch")
runtime: Any = pytest.importorskip("l2o_eqx.torch_runtime")


def parameters(dtype):
    return {name: torch.nn.Parameter(torch.tensor(x, dtype=dtype)) for name, x in flat(PARAMS).items()}


def steps_of(optimizer, params, rows, steps):
    """The updates of `steps`, each from the same params."""
    found = []
    for step in steps:
        before = {name: p.detach().clone() for name, p in params.items()}
        for name, p in params.items():
            p.grad = torch.tensor(np.array(rows[name][step]), dtype=p.dtype)
        optimizer.step()
        found.append({name: (p.detach() - before[name]).double().numpy() for name, p in params.items()})
        for name, p in params.items():
            p.data.copy_(before[name])
    return found


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-6), ("float32", 2e-3)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_100_steps_are_those_of_jax(name, dtype, rtol, tmp_path):
    """Where JAX, too, computes in float64; in float32 both round, and steps build on steps."""
    path = tmp_path / "file"
    l2o.save(path, OPTIMIZERS[name]())
    # What is drawn is drawn in the dtype of the params.
    x64 = dtype == "float64" or name not in ("zoo", "attention")
    rows, params, expected = flat(recorded()), parameters(getattr(torch, dtype)), updates_of_jax(name, x64)
    optimizer = runtime.LearnedOptimizer(params.items(), path)
    # Differences of params lose what is small beside them.
    atol = {"float64": 1e-12, "float32": 2e-4}[dtype]
    for step, updates in enumerate(steps_of(optimizer, params, rows, range(STEPS))):
        for key, update in updates.items():
            np.testing.assert_allclose(update, expected[key][step], rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["quadratic", "mnist"])
def test_it_goes_on_from_its_state(name, tmp_path):
    """Through a file that `torch.load` takes with weights only, a pickle and a copy."""
    rows = flat(recorded())
    params = parameters(torch.float32)
    optimizer = runtime.LearnedOptimizer(params.items(), name, num_steps=20)
    steps_of(optimizer, params, rows, range(10))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    kept = {key: p.detach().clone() for key, p in params.items()}
    expected = steps_of(optimizer, params, rows, range(10, 20))

    again = {key: torch.nn.Parameter(x.clone()) for key, x in kept.items()}
    resumed = runtime.LearnedOptimizer(again.items(), name, num_steps=20)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    np.testing.assert_equal(steps_of(resumed, again, rows, range(10, 20)), expected)
    copies = []
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        own = dict(zip(params, other.param_groups[0]["params"], strict=True))
        copies.append(steps_of(other, own, rows, [20]))
    following = steps_of(optimizer, params, rows, [20])
    for steps in copies:
        np.testing.assert_equal(steps, following)
    wrong = torch.optim.SGD(params.values(), 0.1).state_dict()
    with pytest.raises(ValueError, match="the state of another optimizer"):
        optimizer.load_state_dict(wrong)


def test_a_learned_start_is_gone_to():
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(torch.nn.Linear(*x) for x in ((1, 40), (40, 40), (40, 1)))
    optimizer = runtime.LearnedOptimizer(model.named_parameters(), "sinusoid")
    optimizer.move_to_start()
    start = cast(Any, l2o.pretrained("sinusoid")).start
    np.testing.assert_array_equal(model.layers[1].weight.detach().numpy(), start.layers[1].weight)
    with pytest.raises(RuntimeError, match="the learned start has"):
        runtime.LearnedOptimizer([("x", parameters(torch.float32)["a.w"])], "sinusoid").move_to_start()
    with pytest.raises(RuntimeError, match="has no learned start"):
        runtime.LearnedOptimizer(parameters(torch.float32).items(), "mnist").move_to_start()
    with pytest.raises(l2o.ArgumentError, match="searches by values alone"):
        runtime.LearnedOptimizer(parameters(torch.float32).items(), "black-box")


def test_from_a_learned_start_all_is_as_if_it_began_there(tmp_path):
    start = {"a": {"b": 3 * PARAMS["a"]["b"], "w": PARAMS["a"]["w"]}, "c": PARAMS["c"]}
    inner = l2o.optimizers.HierarchicalRNN(3, 4, 5, key=jr.key(3))
    l2o.save(tmp_path / "file", l2o.optimizers.LearnedStart(inner, start))
    found = []
    for scale in (1.0, 0.0):
        params = {name: torch.nn.Parameter(scale * p) for name, p in parameters(torch.float64).items()}
        optimizer = runtime.LearnedOptimizer(params.items(), tmp_path / "file")
        optimizer.move_to_start()
        found.append(steps_of(optimizer, params, flat(recorded()), [0]))
    np.testing.assert_equal(found[1], found[0])


def test_two_parameters_of_one_name():
    model = torch.nn.Linear(2, 2)
    groups = [
        {"params": [*model.named_parameters()]},
        {"params": [*torch.nn.Linear(2, 2).named_parameters()]},
    ]
    with pytest.raises(l2o.ArgumentError, match="the name 'bias' is there in two groups"):
        runtime.LearnedOptimizer(groups, "quadratic")


def test_it_trains_a_model_without_jax():
    """A network on two spirals, with a closure, in a process that has no JAX."""
    code = """
import sys, torch
from l2o_eqx.torch_runtime import LearnedOptimizer
torch.manual_seed(0)
t = torch.linspace(0.5, 6, 100)
a = torch.stack([t * t.cos(), t * t.sin()], 1)
x, y = torch.cat([a, -a]) / 6, torch.cat([torch.zeros(100), torch.ones(100)]).long()
model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
optimizer = LearnedOptimizer(model.named_parameters(), "quadratic")
def closure():
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss
losses = [float(optimizer.step(closure)) for _ in range(300)]
print(sorted({"jax", "equinox"} & {*sys.modules}), losses[-1] < 0.3 < losses[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout == "[] True\n", done.stderr


def test_params_without_gradient_stay_where_they_are():
    params = parameters(torch.float32)
    optimizer = runtime.LearnedOptimizer(params.values(), "mnist")
    params["a.w"].grad = torch.ones(4)
    before = params["c.w"].detach().clone()
    optimizer.step()
    assert torch.equal(params["c.w"], before) and torch.all(params["a.w"] != 1.0)


def test_what_it_refuses(tmp_path):
    make = runtime.LearnedOptimizer
    params = parameters(torch.float32)
    l2o.save(tmp_path / "file", l2o.optimizers.SubspaceRNN(key=jr.key(0)))
    for arguments, settings, message in [
        ((params.values(), "mnst"), {}, "no such file, and the gallery has 'quadratic'"),
        ((params.values(), "sinusoid"), {}, "goes by the names of parameters"),
        ((params.values(), tmp_path / "file"), {}, "holds SubspaceRNN; without JAX there are"),
        ((params.values(), "mnist"), {"num_steps": 0}, "num_steps"),
        (([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], "mnist"), {}, "floating dtypes"),
        (([], "mnist"), {}, "empty parameter list"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(*arguments, **settings)
    l2o.save(tmp_path / "layer", l2o.optimizers.LearnedMomentum(3, per="layer", key=jr.key(0)))
    with pytest.raises(l2o.ArgumentError, match="named_parameters"):
        make(params.values(), tmp_path / "layer")
    optimizer = make(params.values(), "mnist")
    with pytest.raises(RuntimeError, match="further parameters"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    sparse = make(embedding.parameters(), "mnist")
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        sparse.step()
