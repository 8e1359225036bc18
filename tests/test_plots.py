import jax.random as jr
import matplotlib.image
import numpy as np
import optax
import pytest

import l2o_eqx
from l2o_eqx import callbacks, plots

STEPS = 50


def _falling(scale):
    median = scale * np.exp(-np.arange(STEPS) / 5.0)
    return np.stack([median / 2, median, median * 2])


def _legend(figure):
    legend = figure.axes[0].get_legend()
    return [text.get_text() for text in legend.get_texts()]


def test_curves_are_drawn_best_first_with_their_final_values():
    figure = plots.plot_curves({"SGD": _falling(3.0), "learned": _falling(1.0)}, title="a title")
    axes = figure.axes[0]
    assert axes.get_yscale() == "log" and axes.get_title(loc="left") == "a title"
    final = _falling(1.0)[1, -1]
    assert _legend(figure) == [f"learned  {final:.3g}", f"SGD  {3 * final:.3g}"]
    learned, sgd = axes.lines
    np.testing.assert_allclose(np.asarray(learned.get_ydata()), _falling(1.0)[1])
    assert learned.get_linewidth() > sgd.get_linewidth()
    assert learned.get_color() != sgd.get_color()


def test_a_diverging_curve_does_not_squash_the_others():
    diverging = np.full((3, STEPS), np.inf)
    diverging[:, :10] = 10.0 ** np.arange(0, 30, 3)
    figure = plots.plot_curves({"SGD": diverging, "learned": _falling(1.0)})
    low, high = figure.axes[0].get_ylim()
    assert high < 100 and low > 1e-7
    assert _legend(figure)[1] == "SGD  diverged"


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan, 1e-30])
def test_curves_without_a_usable_value_can_be_drawn(value, tmp_path):
    plots.plot_curves({"learned": np.full((3, STEPS), value)}, tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[0] > 400


def test_one_step_can_be_drawn():
    assert plots.plot_curves({"learned": np.ones((3, 1))}).axes[0].get_xlim() == (0, 1)


def test_no_curves_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        plots.plot_curves({})


def test_curves_read_back_as_written(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("optimizer,step,q25,median,q75\nSGD,0,1.0,2.0,inf\nSGD,1,0.5,1.5,2.5\n")
    curves = plots.read_curves(path)
    np.testing.assert_array_equal(curves["SGD"], [[1.0, 0.5], [2.0, 1.5], [np.inf, 2.5]])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no file of curves"):
        plots.read_curves(path)


def test_metrics_read_back_with_restarts_and_without_a_broken_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = '{"super_epoch": 1, "final_loss": 2.0, "restarts": {"final_loss": [1.0, null, 3.0]}}\n'
    path.write_text(row + row + '{"super_epoch": 3, "fin')
    metrics = callbacks.read_metrics(path)
    np.testing.assert_array_equal(metrics["super_epoch"], [1, 1])
    np.testing.assert_array_equal(metrics["final_loss"], [[1.0, np.nan, 3.0]] * 2)
    path.write_text("")
    assert callbacks.read_metrics(path) == {}


@pytest.mark.parametrize("shape", [(6,), (6, 3), (1,)])
def test_trainings_are_drawn(shape, tmp_path):
    values = np.linspace(1.0, 2.0, int(np.prod(shape))).reshape(shape)
    values[0] = np.nan
    metrics = {"mean_loss": values, "final_loss": values / 2, "grad_norm": values * 0}
    figure = plots.plot_training(metrics, tmp_path / "training.png")
    assert matplotlib.image.imread(tmp_path / "training.png").shape[0] > 400
    assert _legend(figure) == ["mean over the steps", "last step"]


def _trained(shape, **further):
    values = np.geomspace(9.0, 1.0, int(np.prod(shape))).reshape(shape)
    return {"mean_loss": values, "final_loss": values / 2, "grad_norm": values, **further}


def _objective(*, runs):
    objective = l2o_eqx.objectives.Booth().sample(jr.key(0))
    optimizers = {"SGD": l2o_eqx.optimizers.FromOptax(optax.sgd(0.05))} if runs else {}
    return plots.plot_objective(objective, optimizers, num_steps=2, key=jr.key(0))


CURVES = {"learned": _falling(1.0), "SGD": _falling(3.0)}
FITS = [
    {(name, i): np.array([[0.0, 1.0], [0.0, 1.0]]) for name, i in [("support", 0), ("query", 0), ("a", 0)]}
]
ROW = {"name": "wider", "ratio": 0.5, "best": "Adam", "failure": None, "diverged": 0.0}
PICTURES = {
    "curves": (lambda: plots.plot_curves(CURVES), "Band: their middle half", "Thick: learned"),
    "diverging": (lambda: plots.plot_curves({"a": np.full((3, 2), [1, 1e9])}), "worse than any start"),
    "families": (
        lambda: plots.plot_families({"booth": CURVES, "ackley": CURVES}),
        "median",
        "Thick: learned",
    ),
    "training": (lambda: plots.plot_training(_trained((6,))), "Dot", "each super epoch"),
    "restarts": (lambda: plots.plot_training(_trained((40, 3))), "Thin: one restart each", "Value: mean"),
    "calls": (
        lambda: plots.plot_training(_trained((3,), super_epoch=np.array([10, 20, 30]))),
        "since the dot before",
    ),
    "policy": (
        lambda: plots.plot_training(_trained((6,), teacher_loss=np.ones(6), disagreement=np.ones(6))),
        "Controllers are what the policy learns from",
    ),
    "pretraining": (lambda: plots.plot_pretraining(np.ones(100)), "median over 2 neighboring updates"),
    "pretrainings": (lambda: plots.plot_pretraining(np.ones((3, 9))), "each update of each restart"),
    "card": (lambda: plots.plot_card([ROW]), "Dot: the median final loss", "Green", "Orange"),
    "arrow": (lambda: plots.plot_card([{**ROW, "ratio": None}]), "Arrow: beyond the picture"),
    "fits": (lambda: plots.plot_fits(FITS), "Triangles", "Black line"),
    "paths": (lambda: _objective(runs=True), "White circle: start", "Dot: one step"),
    "contours": (lambda: _objective(runs=False), "thin lines are contours"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_says_what_is_drawn_and_its_words_hide_nothing(name):
    draw, *parts = PICTURES[name]
    figure = draw()
    figure.draw_without_rendering()
    note = " ".join(figure.get_supxlabel().split())
    assert [part for part in parts if part not in note] == []
    (label,) = (text for text in figure.texts if text.get_text() == figure.get_supxlabel())
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    boxes = [words.get_window_extent() for words in (label, *legends)]
    for box in boxes:
        # Lines end at the edges of their axes.
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_a_meta_loss_has_a_panel_of_its_own():
    """Which is linear, as it may be negative; with one step it is the loss after it, beside the other."""
    metrics = _trained((9,), meta_loss=np.linspace(1.0, -8.0, 9))
    figure = plots.plot_training(metrics)
    assert [axes.get_ylabel() for axes in figure.axes][1] == "meta-loss"
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "log"]
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), metrics["meta_loss"])
    of_one_step = plots.plot_training({**metrics, "final_loss": metrics["mean_loss"]})
    assert len(of_one_step.axes) == 2 and _legend(of_one_step) == ["mean over the steps", "meta-loss"]


def test_every_label_of_close_numbers_can_be_read():
    figure = plots.plot_training({name: np.array([2.1, 2.4]) for name in _trained((1,))})
    assert {axes.get_yscale() for axes in figure.axes} == {"linear"}


def test_losses_below_zero_are_drawn_on_a_linear_scale():
    falling = np.linspace(0.5, -2.0, 10)
    curves = {"one": np.stack([falling - 0.1, falling, falling + 0.1])}
    for figure in (plots.plot_curves(curves), plots.plot_families({"a": curves, "b": curves})):
        axes = figure.axes[0]
        assert axes.get_yscale() == "linear"
        low, high = axes.get_ylim()
        assert low < falling.min() and high > falling.max()
    assert plots.plot_curves({"one": curves["one"] + 3}).axes[0].get_yscale() == "log"
