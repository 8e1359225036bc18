"""Equations: each term is what it is called, and distillation finds the equation that there is."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, draw_grads, updates_of
from test_cli import _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o
from l2o_eqx.optimizers import (
    BlackBoxRNN,
    Equation,
    FromOptax,
    LearnedMomentum,
    LearnedStart,
    PerLayer,
    by_leaf,
)
from l2o_eqx.optimizers._equation import TERMS

PARAMS = {"w": jnp.sin(jnp.arange(12.0)).reshape(3, 4), "b": jnp.full(3, 0.5)}
GRADS = draw_grads(jr.key(0), 6, PARAMS)


@pytest.mark.parametrize(
    "terms, coefficients, other",
    [
        (("m0.9/sqrt(v)",), (-0.1,), optax.adam(0.1, b1=0.9, b2=0.99, eps=0.0)),
        (("g", "u"), (-0.1, 0.9), optax.sgd(0.1, momentum=0.9)),
        (("sign(m0.9)",), (-0.1,), optax.lion(0.1, b1=0.9, b2=0.9, weight_decay=0.0)),
        (("g", "theta"), (-0.1, -0.01), optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))),
        # Of which the untrained network answers a = 0 and b for a decay of 0.9.
        (("g/L", "u"), (-1.0, 0.9), "learned momentum"),
    ],
    ids=["adam", "momentum", "lion", "weight decay", "curvature"],
)
def test_equations_that_have_a_name(terms, coefficients, other):
    if other == "learned momentum":
        network = LearnedMomentum(2, key=jr.key(0))
        network = eqx.tree_at(lambda x: x.readout, network, 0 * network.readout)
        expected = updates_of(network, GRADS, PARAMS)
    else:
        expected = updates_of(FromOptax(other), GRADS, PARAMS)
    assert_trees_close(updates_of(Equation(terms, coefficients), GRADS, PARAMS), expected, rtol=2e-4)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_is_finite_and_starts_at_nothing(term):
    """Also where all gradients are zero; terms that have no unit do not see the scale of the gradients."""
    equation = Equation((term,), (1.0,), num_steps=4)
    zeros = updates_of(equation, jax.tree.map(jnp.zeros_like, GRADS), PARAMS)
    found = updates_of(equation, GRADS, PARAMS)
    for x, nothing in zip(jax.tree.leaves(found), jax.tree.leaves(zeros), strict=True):
        assert np.all(np.isfinite(x)) and np.all(np.isfinite(nothing))
        assert "theta" in term or np.all(np.asarray(nothing) == 0)
        assert term.endswith("u") == bool(np.all(np.asarray(x) == 0))
    if any(word in term for word in ("sqrt", "rms", "sign", "muon")):
        scaled = updates_of(equation, jax.tree.map(lambda x: 1e6 * x, GRADS), PARAMS)
        assert_trees_close(scaled, found, rtol=1e-3)


def test_the_cosine_is_of_the_share_done():
    """(1 + cos πs)/2 + 1/100 at s = 0, 1/4, …; `init` may be told another number of steps."""
    equation = Equation(("cos*g",), (1.0,), num_steps=4)
    expected = [1.01, 0.5 + np.sqrt(0.5) / 2 + 0.01, 0.51, 0.5 - np.sqrt(0.5) / 2 + 0.01, 0.01, 0.01]
    found = updates_of(equation, GRADS, PARAMS)["b"] / GRADS["b"]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)
    assert float(equation.init(PARAMS, 7).horizon) == 7.0


def test_fan_in_and_the_length_of_the_run():
    """(1000/4)^¼ for a matrix of four columns, 1 for a bias; (100/4)^¼ for four steps."""
    found = updates_of(Equation(("fan*run*g",), (1.0,), num_steps=4), GRADS, PARAMS)
    for name, factor in {"w": (250 * 25) ** 0.25, "b": 25**0.25}.items():
        np.testing.assert_allclose(found[name], factor * GRADS[name], rtol=1e-5)


@pytest.mark.parametrize(
    "rule, terms, coefficients",
    [
        (optax.sgd(0.003, momentum=0.9), ("g", "u"), (-0.003, 0.9)),
        (optax.adam(0.01, b1=0.9, b2=0.99, eps=0.0), ("m0.9/sqrt(v)",), (-0.01,)),
    ],
    ids=["momentum", "adam"],
)
def test_it_finds_the_equation_that_there_is(rule, terms, coefficients):
    found = l2o.distill(rule, l2o.objectives.Quadratic(8), num_steps=12, num_objectives=3, key=jr.key(0))
    equation, (group,) = found.optimizer, found.groups.values()
    assert isinstance(equation, Equation) and equation.terms == terms
    np.testing.assert_allclose(equation.coefficients, coefficients, rtol=1e-3)
    assert group.r2 > 0.9999 and group.held_out_r2 > 0.9999 and group.all_terms_r2 >= group.r2
    assert [len(fit.terms) for fit in group.fits] == [*range(1, len(terms) + 1)]
    assert str(equation) in str(found)


RULES = {"a": FromOptax(optax.adam(0.01, b2=0.99, eps=1e-12)), "b": FromOptax(optax.sgd(0.1))}


def test_groups_have_equations_of_their_own():
    """Matrices by Adam, biases by gradient descent, and the whole as an optimizer that does both."""
    label = {"layers.0.weight": "a", "layers.1.weight": "a", "layers.0.bias": "b", "layers.1.bias": "b"}
    rule = PerLayer({name: RULES[which] for name, which in label.items()}, label=by_leaf)
    family = l2o.objectives.MNIST((3,), batch_size=8, num_examples=60, data="embedded")
    candidates = ("g", "m0.9", "m0.9/sqrt(v)", "theta")
    found = l2o.distill(
        rule, family, num_steps=8, num_objectives=2, terms=candidates, label=by_leaf, key=jr.key(0)
    )
    assert isinstance(found.optimizer, PerLayer) and set(found.groups) == set(label)
    expected = {"a": ("m0.9/sqrt(v)",), "b": ("g",)}
    assert all(one.equation.terms == expected[label[name]] for name, one in found.groups.items())
    settings = {"num_steps": 8, "num_objectives": 2, "key": jr.key(1)}
    losses = [l2o.evaluate(each, family, **settings).losses for each in (rule, found.optimizer)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-17, 3e-19, 1e-20])
def test_directions_that_are_far_longer_than_updates(scale):
    """Then params say nothing, and the rule is found all the same."""
    family = l2o.objectives.Rescaled(l2o.objectives.Quadratic(8), loss=scale)
    candidates = ("g", "theta", "g/sqrt(v)")
    settings = {"num_steps": 20, "num_objectives": 2, "terms": candidates, "key": jr.key(0)}
    (group,) = l2o.distill(optax.sgd(0.1), family, **settings).groups.values()
    assert group.equation.terms == ("g",)
    np.testing.assert_allclose(group.equation.coefficients, [-0.1], rtol=1e-4)
    assert 0.9999 < group.r2 <= 1.00001


def test_a_learned_start_stays():
    family = l2o.objectives.Quadratic(3)
    rule = LearnedStart(FromOptax(optax.sgd(0.01)), jnp.full(3, 7.0))
    found = l2o.distill(rule, family, num_steps=4, num_objectives=2, terms=("g",), key=jr.key(0))
    assert isinstance(found.optimizer, LearnedStart)
    settings = {"num_steps": 4, "num_objectives": 2, "key": jr.key(1)}
    losses = [l2o.evaluate(each, family, **settings).losses for each in (rule, found.optimizer)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_what_it_refuses():
    family = l2o.objectives.Booth()
    for optimizer, settings, message in [
        (optax.sgd(0.1), {"num_steps": 0}, "num_steps"),
        (optax.sgd(0.1), {"min_gain": 1.0}, "min_gain"),
        (optax.sgd(0.1), {"terms": ("g", "h")}, "needs different ones of g, m0.5"),
        (optax.sgd(0.0), {}, "never moves"),
        (BlackBoxRNN(2, key=jr.key(0)), {}, "looks at no gradient"),
    ]:
        with pytest.raises(l2o.ArgumentError, match=message):
            l2o.distill(
                optimizer, family, **{"num_steps": 3, "num_objectives": 1, "key": jr.key(0)} | settings
            )
    for arguments in [((), ()), (("g", "g"), (1.0, 1.0)), (("g",), (1.0, 2.0))]:
        with pytest.raises(l2o.ArgumentError):
            Equation(*arguments)
    with pytest.raises(l2o.ArgumentError, match="hand them"):
        equation = Equation(("theta",), (1.0,))
        equation.update(PARAMS, equation.init(PARAMS), None)


def test_from_the_shell():
    small = ["--dim", 2, "--steps", 6, "--objectives", 2]
    answer = json.loads(
        l2o_cli("distill", "quadratic", *small, "--terms", 2, "--out", "out", "--json").stdout
    )
    group = answer["groups"]["all"]
    assert len(group["terms"]) == len(group["coefficients"]) <= 2 and 0 < group["r2"] <= 1
    assert {row["name"] for row in answer["summary"]} == {"quadratic", "equation"}
    equation = l2o.load("out/equation.safetensors")
    assert isinstance(equation, Equation) and list(equation.terms) == group["terms"]
    assert json.loads(Path("out/distillation.json").read_text())["groups"] == answer["groups"]
    assert Path("out/curves.png").exists()
    # The file is an optimizer like others, and the draws are those of `l2o compare`.
    again = json.loads(l2o_cli("compare", "out/equation.safetensors", "quadratic", *small, "--json").stdout)
    medians = [{row["name"]: row["median"] for row in one["summary"]} for one in (answer, again)]
    np.testing.assert_allclose(medians[1]["equation"], medians[0]["equation"], rtol=1e-3)
    error = l2o_cli("distill", "quadratic", "--objective", "booth,beale", code=2).stderr
    assert "one kind of objective" in error and error.count("\n") == 1
    for name, message in {
        "zoo": "several here (two-dim",
        "black-box": "at no gradient",
    }.items():
        error = l2o_cli("distill", name, code=2).stderr
        assert message in error and error.count("\n") <= 2
    assert "RUN_OR_FILE" in l2o_cli("distill", "nothing", code=2).stderr
    assert "--per" in l2o_cli("distill", "quadratic", "--per", "row", code=2).stderr
