import json
import math

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
from l2o_eqx._card import ratio_of
from l2o_eqx.objectives import (
    Quadratic,
    Rescaled,
)
from l2o_eqx.optimizers import AbstractOptimizer

RATES = (0.01, 0.1)
TINY = {"num_objectives": 2, "num_tuning_objectives": 2, "learning_rates": RATES}
BASELINES = {"SGD": l2o.Baseline(optax.sgd), "Adam": l2o.Baseline(optax.adam, ({"b1": 0.9}, {"b1": 0.8}))}


class ForOneSize(AbstractOptimizer):
    """Learned rates for 3 coordinates and no others."""

    rates: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        return -self.rates * grads, state


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
        callbacks=[lambda p: seen.append((len(p.card.rows), p.name, p.share))],
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


def test_what_a_callback_raises_is_no_failure_of_a_variation(getkey):
    def stop(progress):
        if progress.share > 0:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        l2o.generalization_card(
            ForOneSize(jnp.full(3, 0.01)),
            Quadratic(3),
            num_steps=4,
            baselines=BASELINES,
            callbacks=[stop],
            key=getkey(),
            **TINY,
        )


def test_a_card_can_be_stopped(getkey):
    card = l2o.generalization_card(
        ForOneSize(jnp.full(3, 0.01)),
        Quadratic(3),
        num_steps=4,
        variations={"one": Variation(Quadratic(3)), "two": Variation(Quadratic(3))},
        baselines=BASELINES,
        callbacks=[lambda p: l2o.StopTraining if p.share > 0.6 else None],
        key=getkey(),
        **TINY,
    )
    assert [row.name for row in card.rows] == ["one"] and not card.complete


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
    monkeypatch.setattr("l2o_eqx._generalization.usual_variations", lambda family: tried)
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
    assert "activation leaky_relu: cannot be run: ArgumentError: `PerLayer`" in output
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

    def interrupted(*args, callbacks, **kwargs):
        def stop(progress):
            if progress.card.rows:
                raise KeyboardInterrupt

        return real(*args, callbacks=[*callbacks, stop], **kwargs)

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


def test_losses_below_zero_have_no_ratio_and_a_winner():
    """Of functions whose minimum is below zero; lower wins, and the picture says so in words."""
    common = {"num_steps": 3, "num_coordinates": 2, "restart_losses": (-1.0,), "best": "Adam", "better": 0.5}
    rows = tuple(
        CardRow(name, learned=a, best_loss=b, ratio=ratio_of(a, b), diverged=0.0, **common)
        for name, a, b in (
            ("lower", -1.0, -0.5),
            ("higher", -1.0, -2.0),
            ("apart", 1.0, -2.0),
            ("usual", 1.0, 2.0),
        )
    )
    assert [row.ratio for row in rows] == [None, None, None, 0.5]
    assert [row.won for row in rows] == [True, False, False, True]
    figure = l2o.plots.plot_card(l2o.Card(rows, ("a",) * 4).as_dict()["rows"])
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["Adam; learned ends lower", *2 * ["Adam; learned ends higher"], "Adam"]
    assert ratio_of(1.0, 0.0) == float("inf") and ratio_of(0.0, 0.0) == 1.0
