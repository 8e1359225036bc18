import itertools
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from l2o_eqx.recipes import _panels as panels
from l2o_eqx.recipes import _statistics as statistics
from l2o_eqx.recipes import _thesis as thesis

STEPS = 40
REFERENCE = {
    "a": thesis.ReferenceCurve(STEPS, ((0.0, 4.0), (0.5, 2.0), (1.0, 1.595)), 1.6),
    "b": thesis.ReferenceCurve(STEPS, ((0.0, 4.0), (1.0, 3.0)), 3.1),
}


def falling(scale, restarts=5):
    spread = np.linspace(0.8, 1.2, restarts)[:, None]
    return scale * spread * np.exp(-np.arange(STEPS) / 20.0)


def curves_axes(curves, reference):
    axes: Any = Figure().subplots()
    caption = panels.draw_curves_panel(axes, curves, reference, title="a title")
    return axes, caption


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def hollow(axes):
    return [line for line in axes.lines if line.get_marker() not in ("None", None)]


def solid(axes):
    return [line for line in axes.lines if line.get_marker() in ("None", None)]


def test_curves_are_medians_with_quartile_bands_and_the_thesis_values():
    curves = {"a": falling(4.0), "b": falling(5.0)}
    axes, caption = curves_axes(curves, REFERENCE)
    assert axes.get_title(loc="left") == "a title" and "median" in caption and "thesis" in caption
    for i, (label, losses) in enumerate(curves.items()):
        line, theirs, band = solid(axes)[i], hollow(axes)[i], axes.collections[i]
        np.testing.assert_allclose(line.get_ydata(), np.median(losses, axis=0))
        edges = band.get_paths()[0].vertices
        at_start = edges[edges[:, 0] == 0][:, 1]
        np.testing.assert_allclose((at_start.min(), at_start.max()), np.quantile(losses[:, 0], (0.25, 0.75)))
        np.testing.assert_array_equal(theirs.get_xdata(), REFERENCE[label].positions())
        np.testing.assert_array_equal(theirs.get_ydata(), [loss for _, loss in REFERENCE[label].points])
        assert line.get_color() == theirs.get_color()
        assert to_hex(theirs.get_markerfacecolor()) == "#ffffff" and theirs.is_dashed()
    assert solid(axes)[0].get_color() != solid(axes)[1].get_color()


def test_the_last_step_is_where_the_final_value_is():
    axes, _ = curves_axes({"a": falling(4.0)}, {"a": REFERENCE["a"]})
    assert hollow(axes)[0].get_xdata()[-1] == solid(axes)[0].get_xdata()[-1] == STEPS - 1
    assert axes.get_xlim() == (0, STEPS - 1)
    assert legend(axes) == [f"a: {np.median(falling(4.0)[:, -1]):.3f}, thesis 1.595"]


def test_either_side_may_have_more_labels():
    axes, _ = curves_axes({"ours": falling(4.0)}, {"b": REFERENCE["b"]})
    assert legend(axes)[0].startswith("ours: 0.") and legend(axes)[1] == "b: thesis 3.000"
    assert len({line.get_color() for line in axes.lines}) == 2
    without, caption = curves_axes({"ours": falling(4.0)}, {})
    assert len(without.lines) == 1 and "thesis" not in caption


def test_axes_are_linear_and_show_all_that_does_not_diverge():
    axes, _ = curves_axes({"a": falling(4.0)}, REFERENCE)
    assert axes.get_yscale() == "linear"
    low, high = axes.get_ylim()
    assert low == 0 and np.quantile(falling(4.0), 1.0) < high + 0.2 and high < 6


@pytest.mark.parametrize("value", [1e30, np.inf, np.nan])
def test_what_diverges_leaves_the_picture_upwards(value):
    losses = falling(4.0)
    losses[:3, 10:] = value
    axes, _ = curves_axes({"a": losses, "b": falling(3.0)}, REFERENCE)
    drawn = np.asarray(solid(axes)[0].get_ydata())
    assert axes.get_ylim()[1] < 7 and np.all(np.isfinite(drawn)) and np.all(drawn[10:] > 7)
    assert legend(axes)[0].startswith("a: 1e+30" if value == 1e30 else "a: diverged")
    # Two of five restarts that diverged do not reach the median.
    losses = falling(4.0)
    losses[:2, 10:] = value
    axes, _ = curves_axes({"a": losses}, REFERENCE)
    assert np.all(np.asarray(solid(axes)[0].get_ydata()) < 7)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_curves_without_a_usable_value_can_be_drawn(value):
    axes, _ = curves_axes({"a": np.full((3, 5), value)}, {})
    assert axes.get_ylim() == (0, 1)


def histogram_axes(series, reference):
    axes: Any = Figure().subplots()
    caption = panels.draw_histogram_panel(axes, series, reference, title="a title")
    return axes, caption


def losses_in_bins(counts):
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.25, 3.0])
    return np.repeat(middles, counts)


def bars_of(axes):
    """The containers of bars, without those of the whiskers."""
    return [container for container in axes.containers if hasattr(container[0], "get_height")]


def test_bars_are_shares_and_hollow_ones_the_thesis():
    ours = {"sigmoid": (1, 2, 3, 4, 0, 0), "tanh": (10, 0, 0, 0, 5, 5)}
    series = {label: losses_in_bins(counts) for label, counts in ours.items()}
    reference = thesis.HISTOGRAMS["13a"]
    axes, caption = histogram_axes(series, reference)
    bars = bars_of(axes)
    assert len(bars) == 4 and "Wilson" in caption
    for i, (label, counts) in enumerate(ours.items()):
        filled, outlined = bars[2 * i], bars[2 * i + 1]
        np.testing.assert_allclose([b.get_height() for b in filled], np.array(counts) / sum(counts))
        np.testing.assert_allclose([b.get_height() for b in outlined], np.array(reference[label]) / 100)
        assert filled[0].get_facecolor() == outlined[0].get_edgecolor()
        assert outlined[0].get_facecolor() == to_rgba("white")
    assert legend(axes) == ["sigmoid", "sigmoid, thesis", "tanh", "tanh, thesis"]


def test_bars_stand_over_their_bins_and_apart():
    axes, _ = histogram_axes({"a": losses_in_bins([1] * 6), "b": losses_in_bins([2] * 6)}, {"a": (100,) * 6})
    spans = sorted((b.get_x(), b.get_x() + b.get_width()) for bars in bars_of(axes) for b in bars)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(spans))
    for i, (start, end) in enumerate(spans):
        assert abs((start + end) / 2 - i // 3) < 0.45
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(ticks) == 6 and ticks[0] == "<0.5" and ticks[4] == "2–2.5\n(chance)"


def test_whiskers_are_wilson_intervals():
    axes, _ = histogram_axes({"a": losses_in_bins([0, 3, 0, 0, 7, 0])}, {})
    whiskers = [segment for c in axes.collections for segment in c.get_segments()]
    for count, segment in zip((0, 3, 0, 0, 7, 0), whiskers, strict=True):
        share = statistics.share_interval(count, 10)
        np.testing.assert_allclose(segment[:, 1], (share.low, share.high), atol=1e-12)
    assert axes.get_ylim()[1] > statistics.share_interval(7, 10).high


def test_what_is_not_finite_is_counted_in_the_last_bin_and_named():
    axes, _ = histogram_axes({"a": np.array([0.1, np.inf, np.nan, 3.0])}, {})
    assert [b.get_height() for b in bars_of(axes)[0]] == [0.25, 0, 0, 0, 0, 0.75]
    assert legend(axes) == ["a, 2 not finite"]


def curves_panel(axes):
    return panels.draw_curves_panel(axes, {"a": falling(4.0)}, REFERENCE, title="curves")


def histogram_panel(axes):
    series = {label: losses_in_bins(counts) for label, counts in thesis.HISTOGRAMS["15a"].items()}
    return panels.draw_histogram_panel(axes, series, thesis.HISTOGRAMS["15a"], title="histogram")


def map_panel(axes):
    x = np.linspace(-1.0, 1.0, 11)
    return panels.draw_map_panel(axes, x, x**3, title="map")


def test_a_map_is_its_points():
    axes: Any = Figure().subplots()
    assert map_panel(axes) == ""
    x, y = axes.lines[0].get_data()
    np.testing.assert_allclose(y, np.asarray(x) ** 3)
    assert axes.get_xlim() == (-1, 1)


@pytest.mark.parametrize("columns", [1, 3])
def test_panels_stand_side_by_side_and_nothing_overlaps(columns, tmp_path):
    path = tmp_path / "figure.png"
    some = [curves_panel, histogram_panel, map_panel][:columns]
    figure = panels.figure_of_panels(*some, restarts=20, scale="quick", path=path)
    assert matplotlib.image.imread(path).shape == (720, 810 * columns, 4)
    figure.draw_without_rendering()
    drawn: list[list[Any]] = [[figure.texts[0]]]
    for axes in figure.axes:
        # The two axes enclose all of the data.
        drawn.append([axes.xaxis, axes.yaxis])
        if axes.get_legend():
            drawn.append([axes.get_legend()])
    boxes = [Bbox.union([artist.get_tightbbox() for artist in artists]) for artists in drawn]
    assert len(boxes) == (3 if columns == 1 else 6)
    for one, other in itertools.combinations(boxes, 2):
        assert Bbox.intersection(one, other) is None
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_the_caption_says_each_thing_once():
    def caption(*some, **facts):
        figure = panels.figure_of_panels(*some, **facts)
        return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)

    said = caption(curves_panel, histogram_panel, curves_panel, restarts=20, scale="full")
    assert said.startswith("20 restarts, full scale. Line: median over restarts;")
    assert said.count("Line:") == 1 and said.count("Bars:") == 1
    assert caption(histogram_panel, restarts=1).startswith("1 restart. Bars:")

    def without_thesis(axes):
        return panels.draw_curves_panel(axes, {"a": falling(4.0)}, {}, title="curves")

    for two in ((curves_panel, without_thesis), (without_thesis, curves_panel)):
        said = caption(*two, scale="quick")
        assert said.startswith("Quick scale. Line:") and said.count("Line:") == 1 and "hollow" in said
    assert caption(map_panel) == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curves_axes({}, REFERENCE), "at least one curve"),
        (lambda: histogram_axes({}, {}), "at least one series"),
        (lambda: panels.figure_of_panels(restarts=2, scale="full"), "one to three panels. Got 0"),
        (lambda: panels.figure_of_panels(*[map_panel] * 4), "one to three panels. Got 4"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
