"""What optimizers make of a gradient and its past, what their networks answer, and the pictures of both."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.image
import numpy as np
import optax
import pytest
from helpers import OPTIMIZERS, as_if_trained, draw_grads, updates_of
from test_cli import _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o
from l2o_eqx import plots
from l2o_eqx.optimizers import (
    AdamMLP,
    Clipped,
    CoordinatewiseLSTM,
    HierarchicalRNN,
    LearnedMomentum,
    PerLayer,
    Safeguarded,
    SubspaceRNN,
    UnitRMS,
)

FAMILY = l2o.objectives.Quadratic(3)
STEPS = (1, 4, 7)
SMALL = {"num_steps": 8, "steps": STEPS, "past": 3, "num_objectives": 2, "num_coordinates": 2}
GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)


def probe(optimizer, **settings):
    given = {**SMALL, "gradients": GRID, "key": jr.key(3), **settings}
    return l2o.probe_updates(optimizer, FAMILY, **given)


# Probes.


def test_sgd_is_a_line_whatever_the_past():
    """The update −lr·x·rms over the rms of the updates, lr·rms, is −x."""
    found = probe(optax.sgd(0.05))
    assert found.updates.shape == (3, 3, 5, 4) and found.tensor == "params"
    expected = np.broadcast_to(-np.array(GRID)[:, None], found.updates.shape)
    np.testing.assert_allclose(found.updates, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.update_units, 0.05 * found.gradient_units, rtol=1e-5)


def test_momentum_is_its_closed_form():
    """After k replaced gradients p·rms, u = −lr·(x + p·Σ_{i=1}^{k} β^i)·rms + what was before them."""
    rate, beta = 0.05, 0.8
    found = probe(optax.sgd(rate, momentum=beta))
    updates = np.asarray(found.updates) * np.asarray(found.update_units)[:, None, None]
    rms = np.asarray(found.gradient_units)
    slope = (updates[:, :, -1] - updates[:, :, 0]) / 4
    np.testing.assert_allclose(slope, np.broadcast_to(-rate * rms[:, None], slope.shape), rtol=1e-4)
    # The first stop comes after one step: nothing was before that.
    total = np.array([sum(beta**i for i in range(1, min(step, 3) + 1)) for step in STEPS])
    for p, own in zip((-1.0, 1.0), (updates[:, 0], updates[:, 2]), strict=True):
        moved = own - updates[:, 1]
        expected = -rate * p * total[:, None] * rms
        np.testing.assert_allclose(moved, np.broadcast_to(expected[:, None], moved.shape), rtol=1e-3)
    np.testing.assert_allclose(updates[0, 1, 2], 0, atol=1e-7)


def test_the_probes_of_gradients_as_they_were_are_the_updates_of_the_run():
    """Of one step's past, replaced by itself, and the gradient that came then: what the run did next."""
    optimizer = as_if_trained(LearnedMomentum(4, key=jr.key(0)), jr.key(1))
    family = l2o.objectives.Bowl()
    okey, ikey, lkey, _ = jr.split(jr.split(jr.key(3), 1)[0], 4)
    objective = family.sample(okey)
    start = objective.init(ikey)
    state = optimizer.init_for(start, 8)

    def gradient(params, step):
        return jax.grad(lambda p: objective.loss(p, step, lkey))(params)

    first = gradient(start, 0)
    update, state = optimizer.update(first, state, start)
    second = gradient(start + update, 1)
    expected, _ = optimizer.update(second, state, start + update)
    found = l2o.probe_updates(
        optimizer,
        family,
        num_steps=8,
        steps=(1,),
        past=1,
        pasts=(-1.0, 1.0),
        gradients=np.ravel(second / jnp.abs(first)).tolist(),
        num_objectives=1,
        num_coordinates=2,
        key=jr.key(3),
    )
    scaled = np.asarray(found.updates[0]) * np.asarray(found.update_units[0])
    for entry in range(2):
        # Which of the probes is of this entry, its unit tells.
        column = int(np.argmin(np.abs(np.asarray(found.gradient_units[0]) - abs(float(first[entry])))))
        row = 0 if first[entry] < 0 else 1
        np.testing.assert_allclose(scaled[row, entry, column], expected[entry], rtol=1e-3)


def test_a_coordinate_alone_is_the_same_as_among_all():
    """A coordinatewise optimizer is shown one coordinate; hidden in a wrapper that is not, all of them."""
    lstm = CoordinatewiseLSTM((3,), learning_rate=0.1, key=jr.key(0))
    alone, among = probe(lstm), probe(PerLayer({"params": lstm}))
    np.testing.assert_allclose(alone.updates, among.updates, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm_adam_output", "hierarchical_rnn", "celo2", "safeguarded"])
def test_any_optimizer_can_be_probed(name, getkey):
    found = probe(OPTIMIZERS[name](getkey()), num_objectives=1)
    # One in the list is 0/0 where all gradients have been zero.
    assert np.isfinite(np.asarray(found.updates)[:, :, np.array(GRID) != 0]).all()


def test_coordinates_without_a_gradient_are_left_out():
    family = l2o.objectives.SparseGradients(l2o.objectives.Projection(3, 8, 2), 0.5)
    found = l2o.probe_updates(
        optax.sgd(0.1), family, num_steps=3, num_objectives=2, num_coordinates=3, key=jr.key(0)
    )
    known = np.asarray(found.gradient_units) > 0
    assert np.array_equal(np.isfinite(found.updates[:, 0, 0]), known)


@pytest.mark.parametrize(
    "settings, argument",
    [
        ({"num_steps": 1, "steps": None}, "num_steps"),
        ({"steps": (0,)}, "steps"),
        ({"steps": (8,)}, "steps"),
        ({"steps": ()}, "steps"),
        ({"past": 0}, "past"),
        ({"num_coordinates": 0}, "num_coordinates"),
        ({"tensor": "nothing"}, "tensor"),
    ],
)
def test_bad_arguments_are_named(settings, argument):
    with pytest.raises(l2o.ArgumentError, match=argument) as caught:
        probe(optax.sgd(0.1), **settings)
    assert caught.value.argument == argument


def test_black_boxes_are_refused():
    with pytest.raises(l2o.ArgumentError, match="never looks at a gradient"):
        probe(l2o.optimizers.BlackBoxRNN(3, key=jr.key(0)))


# Answers.


def tree(key):
    wkey, bkey = jr.split(key)
    return {"w": jr.normal(wkey, (3, 2)), "b": jr.normal(bkey, (3,))}


def told(optimizer, grads, params):
    """What it answers along recorded gradients."""

    @jax.jit
    def run(grads):
        def step(state, g):
            answers = optimizer.answers(g, state, params)
            return optimizer.update(g, state, params)[1], answers

        return jax.lax.scan(step, optimizer.init(params), grads)[1]

    return run(grads)


def answer(answers, name):
    return np.asarray(answers.answered[:, answers.answered_names.index(name)])


@pytest.mark.parametrize("per, groups", [("tensor", ("b", "w")), ("tree", ("all",))])
def test_rate_and_momentum_reproduce_the_updates(per, groups, getkey):
    """u_t = −rate·g_t + momentum·u_{t−1} of every group."""
    optimizer = as_if_trained(LearnedMomentum(4, per=per, key=getkey()), getkey())
    params = tree(getkey())
    grads = draw_grads(getkey(), 6, params)
    updates, answers = updates_of(optimizer, grads, params), told(optimizer, grads, params)
    assert answers.groups == groups and answers.seen.shape == (6, 6, len(groups))
    rate, momentum = answer(answers, "rate"), answer(answers, "momentum")
    for i, name in enumerate(("b", "w")):
        own = i if len(groups) > 1 else 0
        before = np.concatenate([np.zeros_like(updates[name][:1]), updates[name][:-1]])
        shape = (6, *(1,) * params[name].ndim)
        expected = -rate[:, own].reshape(shape) * grads[name] + momentum[:, own].reshape(shape) * before
        np.testing.assert_allclose(updates[name], expected, rtol=1e-4, atol=1e-6)
    # As long as no curvature is known, there is none that the rate could be relative to.
    assert np.isnan(answer(answers, "rate · L")[0]).all()
    assert np.isfinite(answer(answers, "rate · L")[1:]).all()


def test_an_untrained_subspace_rnn_answers_with_its_settings(getkey):
    optimizer = SubspaceRNN(4, momentum=0.8, gates=(0.1, 0.6), factor=1.5, key=getkey())
    optimizer = eqx.tree_at(lambda o: o.readout, optimizer, jnp.zeros_like(optimizer.readout))
    params = tree(getkey())
    grads = draw_grads(getkey(), 4, params)
    answers, updates = told(optimizer, grads, params), updates_of(optimizer, grads, params)
    for name, value in (("momentum", 0.8), ("factor", 1.5), ("gate to 1/L", 0.6)):
        np.testing.assert_allclose(answer(answers, name), value, rtol=1e-5)
    np.testing.assert_allclose(answer(answers, "gate to the Barzilai–Borwein step"), 0.1, rtol=1e-5)
    np.testing.assert_array_equal(answer(answers, "coefficient of y"), 0)
    # Without coefficients it is gradient descent with momentum.
    rate = answer(answers, "rate")
    expected = -rate[1:, 0, None] * grads["b"][1:] + 0.8 * updates["b"][:-1]
    np.testing.assert_allclose(updates["b"][1:], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("matrices", [False, True])
def test_an_untrained_adam_mlp_answers_with_adam(matrices, getkey):
    """e_k picks a_0.9, or Muon's direction; the rate is r₀ times its decay, at s = 0, ¼, … of H = 4."""
    optimizer = AdamMLP((4,), 0.03, num_steps=4, matrices=matrices, decay="cosine", key=getkey())
    params = tree(getkey())
    answers = told(optimizer, draw_grads(getkey(), 3, params), params)
    picked = "coefficient of Muon's" if matrices else "coefficient of a_0.9"
    for name in answers.answered_names[1:]:
        np.testing.assert_array_equal(answer(answers, name), float(name == picked))
    rate = 0.03 * ((1 + np.cos(np.pi * np.arange(3) / 4)) / 2 + 0.01)
    np.testing.assert_allclose(answer(answers, "rate")[:, 0], rate, rtol=1e-5)
    # Of a matrix with fan-in 2.
    factor = (1000 / 2) ** 0.25 if matrices else 1.0
    np.testing.assert_allclose(answer(answers, "rate")[:, 1], factor * rate, rtol=1e-5)
    seen = dict(zip(answers.seen_names, np.moveaxis(np.asarray(answers.seen), 1, 0), strict=True))
    np.testing.assert_allclose(seen["2s - 1"][:, 0], 2 * np.arange(3) / 4 - 1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen["ln(n) / 5 - 1"][0], np.log([3, 6]) / 5 - 1, rtol=1e-5)


def test_an_untrained_hierarchical_rnn_leaves_its_rates(getkey):
    """a and b are zero: η does not change, and the rate is e^(mean η − 1)."""
    optimizer, params = HierarchicalRNN(2, 3, 3, key=getkey()), tree(getkey())
    answers = told(optimizer, draw_grads(getkey(), 3, params), params)
    assert answers.groups == ("b", "w")
    np.testing.assert_array_equal(answer(answers, "log rate, change"), 0)
    first = [float(jnp.mean(t.log_rates)) for t in optimizer.init(params).coordinates]
    np.testing.assert_allclose(answer(answers, "rate"), np.exp(np.array([first] * 3) - 1), rtol=1e-4)
    assert ((answer(answers, "decay of means, d") > 0) & (answer(answers, "decay of means, d") < 1)).all()


def test_wrappers_tell_what_they_wrap(getkey):
    inner, params = LearnedMomentum(4, key=getkey()), tree(getkey())
    grads = jax.tree.map(lambda x: x[0], draw_grads(getkey(), 1, params))
    expected = inner.answers(grads, inner.init(params), params)
    for wrapper in (Clipped(inner, 0.1), UnitRMS(inner, 0.1), Safeguarded(inner, optax.sgd(0.1))):
        given = {"value": jnp.float32(1.0)} if "value" in wrapper.needs() else {}
        found = wrapper.answers(grads, wrapper.init(params), params, **given)
        assert found is not None and found.groups == expected.groups
        np.testing.assert_array_equal(found.seen, expected.seen)
        np.testing.assert_array_equal(found.answered, expected.answered)
    parted = PerLayer({"b": inner, "w": SubspaceRNN(3, key=getkey())}, l2o.optimizers.by_leaf)
    found = parted.answers(grads, parted.init(params), params)
    assert found is not None and found.groups == ("b", "w")
    np.testing.assert_array_equal(found.answered[:3, 0], expected.answered[:, 0])
    # What the other one does not have.
    assert np.isnan(found.answered[found.answered_names.index("factor")][0])
    assert CoordinatewiseLSTM((3,), key=getkey()).answers(grads, None, params) is None


def test_records_have_the_losses_and_answers_of_runs(getkey):
    optimizer = LearnedMomentum(4, key=getkey())
    record = l2o.record_answers(optimizer, FAMILY, num_steps=5, num_objectives=2, key=jr.key(0))
    assert record is not None and record.answers.answered.shape == (2, 5, 3, 1)
    found = l2o.evaluate(optimizer, FAMILY, num_steps=5, num_objectives=2, key=jr.key(0))
    np.testing.assert_allclose(record.losses, found.losses, rtol=1e-4)
    lstm = CoordinatewiseLSTM((3,), key=getkey())
    assert l2o.record_answers(lstm, FAMILY, num_steps=2, num_objectives=1, key=jr.key(0)) is None


# Files and pictures.


def test_updates_read_back_as_written_and_are_drawn(tmp_path):
    probes = {"SGD (rate 0.1)": probe(optax.sgd(0.1)), "learned": probe(LearnedMomentum(3, key=jr.key(0)))}
    plots.write_updates(probes, tmp_path / "updates.json", title="a title")
    found = plots.read_updates(tmp_path / "updates.json")
    assert list(found) == list(probes)
    for name, one in probes.items():
        assert found[name].tensor == "params" and found[name].past == 3
        np.testing.assert_allclose(found[name].updates, one.updates, rtol=1e-5)
    figure = plots.plot_updates(found, tmp_path / "updates.png", title="a title")
    assert matplotlib.image.imread(tmp_path / "updates.png").shape[0] > 400
    # A line for each past after those of the axes; SGD's are the same.
    np.testing.assert_allclose(
        np.asarray(figure.axes[2].lines[2].get_ydata()), -np.array(GRID), rtol=1e-4, atol=1e-5
    )
    text = " ".join(t.get_text() for legend in figure.legends for t in legend.get_texts())
    assert "last 3 gradients: -1 rms" in text and "medians" in figure.legends[0].get_title().get_text()


def test_answers_read_back_as_written_and_are_drawn(tmp_path):
    record = l2o.record_answers(LearnedMomentum(3, key=jr.key(0)), FAMILY, num_steps=4, key=jr.key(1))
    assert record is not None
    plots.write_answers(record, tmp_path / "answers.json")
    found = plots.read_answers(tmp_path / "answers.json")
    assert found.answers.symbols == record.answers.symbols
    np.testing.assert_allclose(found.losses, record.losses, rtol=1e-5)
    np.testing.assert_allclose(found.answers.answered, record.answers.answered, rtol=1e-5)
    figure = plots.plot_answers(found, tmp_path / "answers.png")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == ["loss", "answer: rate", "answer: momentum"]
    assert "quartiles" in figure.legends[0].get_title().get_text()


def test_nothing_finite_is_refused():
    found = probe(optax.sgd(0.1), num_objectives=1)
    nothing = dataclasses.replace(found, updates=jnp.full_like(found.updates, jnp.nan))
    with pytest.raises(ValueError, match="no finite update"):
        plots.plot_updates({"SGD": nothing})
    with pytest.raises(ValueError, match="no finite update"):
        plots.plot_updates({})


@pytest.mark.parametrize("name", ["updates", "answers"])
@pytest.mark.parametrize("text", ["", "[]", '{"optimizers": [1]}', '{"optimizers": {"a": {}}}', "[" * 9999])
def test_damaged_files_are_named(name, text, tmp_path):
    path = tmp_path / f"{name}.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=name):
        getattr(plots, f"read_{name}")(path)
    stderr = l2o_cli("plot", tmp_path, code=2).stderr
    assert stderr.count("\n") == 1 and f"{name}.json" in stderr
    assert not (tmp_path / f"{name}.png").exists()


# `l2o plot --updates`.


def save(path, optimizer):
    config = {"objective": {"kind": "quadratic", "dim": 3}, "optimizer": {"kind": "learned-momentum"}}
    short = {"strategy": {"kind": "every-window", "window": 2}, "meta": {"num_steps": 4}}
    l2o.save(path, optimizer, metadata={"config": config | short})


def test_a_file_is_drawn_beside_others_and_again(tmp_path):
    save("one.safetensors", LearnedMomentum(3, key=jr.key(0)))
    output = l2o_cli("plot", "one.safetensors", "--updates", "--out", "out", "--cores", "1").output
    assert "updates.png" in output and "answers.png" in output
    content = json.loads((tmp_path / "out/updates.json").read_text())
    names = list(content["optimizers"])
    assert names[0] == "LearnedMomentum" and names[3].startswith("Adam (not tuned: rate 0.001")
    (tmp_path / "out/updates.png").unlink()
    (tmp_path / "out/answers.png").unlink()
    l2o_cli("plot", "out")
    assert matplotlib.image.imread("out/updates.png").shape[0] > 400
    assert matplotlib.image.imread("out/answers.png").shape[0] > 400


def test_an_optimizer_without_answers_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("l2o_cli._updates._BESIDE", {})
    save("one.safetensors", CoordinatewiseLSTM((3,), key=jr.key(0)))
    result = l2o_cli("plot", "one.safetensors", "--updates", "--cores", "1")
    assert "has no answers to tell" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.safetensors", "updates.json", "updates.png"]
    stderr = l2o_cli("plot", "one.safetensors", "--updates", code=2).stderr
    assert "updates.png exists and is not overwritten" in stderr


@pytest.mark.parametrize(
    "arguments, named",
    [
        ("nothing --updates", "RUN"),
        ("one.safetensors", "RUN"),
        ("one.safetensors --updates --tensor w", "--tensor"),
        ("one.safetensors --updates --steps 1", "--steps"),
        ("one.safetensors --updates --out one.safetensors", "--out"),
        ("one.safetensors --updates --objective nothing", "--objective"),
        ("bare.safetensors --updates", "--objective"),
        ("black-box --updates", "gradient"),
        (". --dim 3", "--updates"),
    ],
)
def test_mistakes_give_one_line_and_no_file(arguments, named, tmp_path):
    optimizer = LearnedMomentum(3, key=jr.key(0))
    save("one.safetensors", optimizer)
    l2o.save("bare.safetensors", optimizer)
    before = sorted(tmp_path.rglob("*"))
    stderr = l2o_cli("plot", *arguments.split(), code=2).stderr
    errors = [line for line in stderr.splitlines() if line.startswith("l2o: ")]
    assert len(errors) == 1 and named in errors[0] and "Traceback" not in stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_line_search_is_refused():
    with pytest.raises(l2o.ArgumentError, match="searches the line and needs f itself"):
        l2o.probe_updates(optax.lbfgs(), l2o.objectives.Booth(), num_steps=3, key=jr.key(0))
