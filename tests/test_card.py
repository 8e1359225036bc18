import json
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.image
import numpy as np
import optax
import pytest
from helpers import LEARNED
from l2o_cli._app import app
from typer.testing import CliRunner

import l2o_eqx as l2o
from l2o_eqx import Card, CardRow, Variation, plots
from l2o_eqx.objectives import (
    HELD_OUT_ACTIVATIONS,
    MNIST,
    AbstractObjectiveFamily,
    FromModel,
    Quadratic,
    Rescaled,
    Scaled,
    params_shapes,
)
from l2o_eqx.optimizers import AbstractOptimizer

RATES = (0.01, 0.1)
TINY = {"num_objectives": 2, "num_tuning_objectives": 2, "learning_rates": RATES}
BASELINES = {"SGD": l2o.Baseline(optax.sgd), "Adam": l2o.Baseline(optax.adam, ({"b1": 0.9}, {"b1": 0.8}))}
EVERYWHERE = {
    "as trained",
    "horizon × 3",
    "horizon × 10",
    "loss × 0.001",
    "loss × 1000",
    "params × 0.1",
    "params × 10",
    "params × 0.05 to 20",
}


class ForOneSize(AbstractOptimizer):
    """Learned rates for 3 coordinates and no others."""

    rates: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params):
        return -self.rates * grads, state


def _widths(family):
    return [leaf.shape for leaf in jax.tree.leaves(params_shapes(family)) if leaf.ndim == 2]


# Variations.


def test_variations_of_quadratics():
    found = l2o.variations(Quadratic(3, squared=False, theta_std=0.5))
    dims = {"dimension × ½": 2, "dimension × 2": 6, "dimension × 4": 12}
    assert found.keys() == EVERYWHERE | dims.keys() | {"other family: mnist"}
    for name, dim in dims.items():
        assert found[name].family == Quadratic(dim, squared=False, theta_std=0.5)
    assert [found[f"horizon × {n}"].horizon for n in (3, 10)] == [3, 10]
    assert found["as trained"] == (Quadratic(3, squared=False, theta_std=0.5), 1.0, 1.0, 1.0)
    assert isinstance(found["other family: mnist"].family, FromModel)
    # There is no half of one dimension.
    assert "dimension × ½" not in l2o.variations(Quadratic(1))


def test_variations_of_networks():
    family = MNIST((3, 5), ("tanh", "relu"), 4, data="embedded")
    found: dict[str, Any] = {name: one.family for name, one in l2o.variations(family).items()}
    assert _widths(found["width × ½"]) == [(2, 784), (3, 2), (10, 3)]
    assert _widths(found["width × 2"]) == [(6, 784), (10, 6), (10, 10)]
    assert _widths(found["width × 4"]) == [(12, 784), (20, 12), (10, 20)]
    assert _widths(found["depth + 1"]) == [(3, 784), (5, 3), (5, 5), (10, 5)]
    activations = {name.split()[1]: one for name, one in found.items() if name.startswith("activation")}
    assert activations.keys() == {"sigmoid", "leaky_relu", "gelu"}
    model = activations["gelu"].make_model(jr.key(0))
    assert model.activation is HELD_OUT_ACTIVATIONS["gelu"]
    assert all(one.data[0] is family.data[0] for one in activations.values())
    assert found["other family: quadratic"] == Quadratic()


def test_variations_of_convolutional_networks():
    found = MNIST((), conv_channels=(2,), batch_size=4, data="embedded").variations()
    shapes = [leaf.shape for leaf in jax.tree.leaves(params_shapes(found["width × 2"])) if leaf.ndim > 3]
    deeper = [leaf.shape for leaf in jax.tree.leaves(params_shapes(found["depth + 1"])) if leaf.ndim > 3]
    assert shapes == [(4, 1, 3, 3)] and deeper == [(2, 1, 3, 3), (2, 2, 3, 3)]


def test_other_families_vary_in_horizon_and_scale_alone_unless_they_say_more():
    class Own(AbstractObjectiveFamily):
        def sample(self, key):
            return Quadratic(2).sample(key)

    class Larger(Own):
        def variations(self):
            return {"larger": Quadratic(5)}

    assert l2o.variations(Own()).keys() == EVERYWHERE
    assert l2o.variations(Larger())["larger"].family == Quadratic(5)
    scaled = l2o.variations(Scaled(Quadratic(2)))["dimension × 2"].family
    assert scaled == Scaled(Quadratic(4))
    rescaled = l2o.variations(Rescaled(Quadratic(2), 2.0))
    assert rescaled["dimension × 2"].family == Rescaled(Quadratic(4), 2.0)
    assert "other family: mnist" in rescaled


def test_rescaled_objectives_are_the_same_draws(getkey):
    key, step = getkey(), 0
    one = Quadratic(3).sample(key)
    other = Rescaled(Quadratic(3), loss=1e3, params=0.1).sample(key)
    start, scaled = one.init(key), other.init(key)
    np.testing.assert_allclose(scaled, 0.1 * start, rtol=1e-6)
    loss = one.loss(start, step, key)
    np.testing.assert_allclose(other.loss(scaled, step, key), 1e3 * loss, rtol=1e-5)
    with pytest.raises(ValueError, match="above 0"):
        Rescaled(Quadratic(3), loss=0.0)


# Rows.


def test_a_row_is_what_compare_gives(getkey):
    optimizer, key = LEARNED["lstm_identity"](getkey()), getkey()
    tried = {
        "longer": Variation(Quadratic(2), horizon=2, objectives=1.5),
        "scaled": Variation(Rescaled(Quadratic(2), 10.0), rates=0.1),
    }
    card = l2o.generalization_card(
        optimizer, Quadratic(2), num_steps=4, variations=tried, baselines=BASELINES, last=2, key=key, **TINY
    )
    assert card.complete and [row.name for row in card.rows] == ["longer", "scaled"]
    settings = ((8, RATES, 3), (4, (0.001, *RATES), 2))
    for row, (steps, rates, count) in zip(card.rows, settings, strict=True):
        comparison = l2o.compare(
            {"learned": optimizer, **BASELINES},
            tried[row.name].family,
            num_steps=steps,
            last=2,
            key=key,
            num_objectives=count,
            num_tuning_objectives=count,
            learning_rates=rates,
        )
        medians = {r["name"]: r for r in comparison.summary()}
        best = comparison.best_baseline()
        assert (row.num_steps, row.num_coordinates, row.best) == (steps, 2, best) and best is not None
        assert row.learned is not None and row.best_loss is not None
        assert row.learned == medians["learned"]["median"] and row.best_loss == medians[best]["median"]
        assert row.ratio == row.learned / row.best_loss and row.settings == medians[best]["settings"]
        assert (row.better, row.better_low) == (medians[best]["beaten"], medians[best]["beaten_low"])
        assert row.at_edge == medians[best]["at_edge"] and row.failure is None


def test_restarts_are_summed_up(getkey):
    batch = eqx.filter_vmap(LEARNED["lstm_identity"])(jr.split(getkey(), 3))
    card = l2o.generalization_card(
        batch,
        Quadratic(2),
        num_steps=4,
        variations={"alone": Variation(Quadratic(2))},
        baselines=BASELINES,
        restarts=3,
        key=getkey(),
        **TINY,
    )
    (row,) = card.rows
    assert row.restart_losses is not None and len(row.restart_losses) == 3
    assert row.learned == np.median(row.restart_losses)
    assert row.restarts_better == np.mean(np.array(row.restart_losses) < row.best_loss)


def test_what_an_optimizer_cannot_take_is_reported(getkey):
    tried = {"fits": Variation(Quadratic(3)), "larger": Variation(Quadratic(4))}
    seen = []
    card = l2o.generalization_card(
        ForOneSize(jnp.full(3, 0.01)),
        Quadratic(3),
        num_steps=4,
        variations=tried,
        baselines=BASELINES,
        callback=lambda card, name, share: seen.append((len(card.rows), name, share)),
        key=getkey(),
        **TINY,
    )
    fits, larger = card.rows
    assert fits.failure is None and card.complete
    assert larger.failure is not None and larger.failure.startswith("TypeError: ")
    assert larger.learned is None and larger.best is None
    assert seen[0] == (0, "fits", 0.0) and seen[-1] == (2, "larger", 1.0)
    shares = [share for _, _, share in seen]
    assert shares == sorted(shares)


def test_what_ends_above_where_it_began_is_counted(getkey):
    card = l2o.generalization_card(
        ForOneSize(jnp.full(3, 10.0)),
        Quadratic(3),
        num_steps=40,
        variations={"alone": Variation(Quadratic(3))},
        baselines=BASELINES,
        key=getkey(),
        **TINY,
    )
    (row,) = card.rows
    assert row.diverged == 1 and row.learned == math.inf == row.ratio and row.better == 0


@pytest.mark.parametrize("wrong", [{"num_objectives": 0}, {"learning_rates": ()}, {"restarts": 5}])
def test_wrong_arguments(wrong, getkey):
    optimizer = ForOneSize(jnp.ones(3))
    with pytest.raises(ValueError, match=next(iter(wrong))):
        l2o.generalization_card(optimizer, Quadratic(3), **{"num_steps": 2, **TINY, **wrong}, key=getkey())


# Files and figures.

ROWS = (
    CardRow("wins", 4, 2, None, 1e-6, (1e-6,), "Adam", 1e-2, {"learning_rate": 0.1}, False, 1e-4, 1.0),
    CardRow("at par", 4, 2, None, 1.0, (0.5, 1.0, math.inf), "momentum", 1.0, {}, True, 1.0, 0.5, 0.1, 0.9),
    CardRow("diverges", 4, 2, None, math.inf, (math.inf,), "SGD", 1.0, {}, False, math.inf, diverged=1.0),
    CardRow("no baseline", 4, 2, None, 1.0, (1.0,)),
    CardRow("does not fit", 4, 2, "ValueError: no"),
)


def test_cards_survive_json(tmp_path):
    card = Card(ROWS, (*(row.name for row in ROWS), "not done"))
    card.write(tmp_path / "card.json")
    assert Card.read(tmp_path / "card.json") == card and not card.complete
    assert json.loads((tmp_path / "card.json").read_text())["complete"] is False
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(ValueError, match="no card"):
        Card.read(tmp_path / "card.json")


def test_the_figure_has_all_rows(tmp_path):
    path = tmp_path / "card.png"
    figure = plots.plot_card(Card(ROWS, ()).as_dict()["rows"], path, title="a title")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.name for row in ROWS]
    assert axes.get_title(loc="left") == "a title" and axes.get_xscale() == "log"
    assert matplotlib.image.imread(path).shape[1] > 1000
    texts = [text.get_text() for text in axes.texts]
    remarks = ["SGD; learned diverges: 100%", "all baselines diverge", "cannot be run"]
    assert texts == ["Adam", "momentum", *remarks]
    with pytest.raises(ValueError, match="at least one"):
        plots.plot_card([])


# The command.


def _l2o(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "80"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def few(monkeypatch):
    """Two variations, one of which does not fit, and two baselines."""
    tried = {"as trained": Variation(Quadratic(3)), "activation leaky_relu": Variation(Quadratic(4))}
    monkeypatch.setattr("l2o_eqx._card.usual_variations", lambda family: tried)
    monkeypatch.setattr("l2o_eqx._baselines.BASELINES", BASELINES)
    return tried


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "run").mkdir()
    optimizer = l2o.optimizers.PerLayer.make(
        LEARNED["lstm_identity"], jnp.zeros(3), label=l2o.optimizers.by_shape, key=jr.key(0)
    )
    l2o.save(tmp_path / "run" / "optimizer.safetensors", optimizer)
    return tmp_path / "run"


SIZES = ["--dim", 3, "--steps", 4, "--objectives", 2, "--tuning-objectives", 2]
OPTIONS = [*SIZES, "--learning-rates", "0.01,0.1"]


def test_the_command_shows_and_keeps_a_card(few, saved):
    del few
    out = saved / "card"
    output = _l2o("evaluate", saved, *OPTIONS, "--card", "--out", out).output
    assert "card 0%: as trained" in output and "card 100%: done" in output
    assert "activation leaky_relu: cannot be run: ValueError: `PerLayer`" in output
    table = output[output.index("beyond quadratic") :].split("Median losses")[0]
    assert all(len(line) <= 80 for line in table.splitlines()) and "ratio" in table
    assert {"card.json", "card.png", "comparison.json"} <= {p.name for p in out.iterdir()}
    card = Card.read(out / "card.json")
    assert card.complete and [row.failure is None for row in card.rows] == [True, False]
    (out / "card.png").unlink()
    _l2o("plot", out)
    assert (out / "card.png").is_file()


def test_the_command_answers_scripts(few, saved):
    del few
    answer = json.loads(_l2o("evaluate", saved, *OPTIONS, "--card", "--json").stdout)
    assert answer["card"]["complete"] and len(answer["card"]["rows"]) == 2


def test_ctrl_c_keeps_the_rows_that_are_done(few, saved, monkeypatch):
    del few

    real = l2o.generalization_card

    def interrupted(*args, callback, **kwargs):
        def stop(card, name, share):
            callback(card, name, share)
            if card.rows:
                raise KeyboardInterrupt

        return real(*args, callback=stop, **kwargs)

    monkeypatch.setattr("l2o_cli._card.run_interruptibly", lambda work: work())
    monkeypatch.setattr("l2o_eqx.generalization_card", interrupted, raising=False)
    output = _l2o("evaluate", saved, *OPTIONS, "--card", "--out", saved / "card", code=130).output
    assert "Incomplete, interrupted: without activation leaky_relu" in output
    content = json.loads((saved / "card" / "card.json").read_text())
    assert content["complete"] is False and len(content["rows"]) == 1
    assert (saved / "card" / "card.png").is_file()


def test_a_card_needs_baselines(saved):
    stderr = _l2o("evaluate", saved, "--card", "--no-baselines", code=2).stderr
    assert stderr.count("\n") == 1 and "--card" in stderr and not (saved / "evaluations").exists()
