"""The thesis's curves and histograms as numbers, recovered from the vector graphics of its figures.

Reference: L. Schröter, "Machine learning of gradient-based optimization methods", bachelor thesis,
TU Hamburg, 2022.
"""

import dataclasses
import math
from collections.abc import Mapping

from ._claims import CLAIMS as CLAIMS
from ._claims import ThesisClaim as ThesisClaim


@dataclasses.dataclass(frozen=True)
class ReferenceCurve:
    """One curve of a figure: the loss at a few points of a run, to ±0.002.

    On the quadratic these are single steps. On MNIST, those between the start and the end are means over
    the 10 steps on either side, because the loss of a minibatch is noisy.

    **Fields:**

    - `steps`: the length of the run.
    - `points`: (fraction of the run, loss), from (0, start) to (1, final).
    - `mean_last_20`: the mean loss of the last 20 steps.
    """

    steps: int
    points: tuple[tuple[float, float], ...]
    mean_last_20: float

    @property
    def start(self) -> float:
        """The loss before the first step."""
        return self.points[0][1]

    @property
    def final(self) -> float:
        """The loss at the last step."""
        return self.points[-1][1]

    def at(self, fraction: float) -> float:
        """The loss at one of the `fraction`s that there are in `points`."""
        return dict(self.points)[fraction]

    def positions(self) -> tuple[int, ...]:
        """The step of every point, counted from 0; the last one is `steps - 1`."""
        return tuple(min(round(fraction * self.steps), self.steps - 1) for fraction, _ in self.points)


_FRACTIONS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


def _curve(steps: int, *losses: float, between: Mapping[int, float] | None = None) -> ReferenceCurve:
    # `losses`: one per fraction, then the mean of the last 20; `between`: more points, by step.
    points = dict(zip(_FRACTIONS, losses[:-1], strict=True))
    points.update({step / steps: loss for step, loss in (between or {}).items()})
    return ReferenceCurve(steps, tuple(sorted(points.items())), losses[-1])


CURVES: dict[str, dict[str, ReferenceCurve]] = {
    "7a": {
        "trained on 320 steps": _curve(320, 4.253, 2.374, 1.818, 1.646, 1.737, 1.595, 1.637),
        "trained on 3200 steps": _curve(320, 4.253, 3.782, 3.355, 2.689, 2.239, 1.997, 2.017),
    },
    "7b": {
        "trained on 1 epoch": _curve(375, 2.561, 1.167, 0.755, 0.498, 0.415, 0.264, 0.268),
        "trained on 10 epochs": _curve(375, 2.466, 1.532, 1.056, 0.645, 0.500, 0.249, 0.322),
    },
    "8a": {
        "trained on 320 steps": _curve(
            3200, 4.253, 1.634, 1.829, 1.955, 2.013, 2.041, 1.999, between={277: 1.531, 320: 1.595}
        ),
        "trained on 3200 steps": _curve(3200, 4.253, 1.876, 1.614, 1.444, 1.392, 1.360, 1.361),
    },
    "8b": {
        "trained on 1 epoch": _curve(3750, 2.706, 0.297, 0.262, 0.209, 0.253, 0.231, 0.158),
        "trained on 10 epochs": _curve(3750, 2.443, 0.353, 0.285, 0.216, 0.189, 0.148, 0.124),
    },
    "10a": {
        "no preprocessing": _curve(320, 4.884, 3.723, 3.130, 2.461, 1.901, 1.473, 1.545),
        "preprocessing": _curve(320, 4.884, 4.896, 4.912, 4.946, 4.980, 5.015, 5.011),
    },
    "10b": {
        "no preprocessing": _curve(375, 2.434, 2.291, 2.296, 2.302, 2.302, 2.302, 2.302),
        "preprocessing": _curve(375, 2.381, 1.075, 0.719, 0.438, 0.392, 0.237, 0.241),
    },
    "11a": {
        "no normalization": _curve(320, 4.020, 3.938, 3.851, 3.683, 3.523, 3.370, 3.388),
        "normalization": _curve(320, 4.020, 2.412, 1.810, 0.925, 0.522, 0.371, 0.377),
    },
    "11b": {
        "no normalization": _curve(375, 2.381, 1.221, 0.764, 0.448, 0.390, 0.227, 0.240),
        "normalization": _curve(375, 2.381, 1.059, 0.679, 0.435, 0.385, 0.245, 0.246),
    },
    "12a": {
        "sigmoid": _curve(375, 2.381, 1.056, 0.676, 0.438, 0.386, 0.244, 0.247),
        "tanh": _curve(375, 2.627, 0.883, 0.552, 0.409, 0.384, 0.216, 0.234),
    },
    "12b": {
        "ReLU": _curve(375, 2.372, 0.763, 0.519, 0.403, 0.416, 0.214, 0.253),
        "leaky ReLU": _curve(375, 2.381, 0.691, 0.596, 0.421, 0.359, 0.109, 0.212),
    },
    "14a": {
        "one optimizer": _curve(375, 2.381, 1.120, 0.695, 0.445, 0.407, 0.254, 0.267),
        "one per layer": _curve(375, 2.441, 1.449, 0.985, 0.600, 0.460, 0.213, 0.283),
    },
    "14b": {
        "one optimizer": _curve(375, 2.372, 0.832, 0.597, 0.454, 0.409, 0.238, 0.247),
        "one per layer": _curve(375, 2.391, 0.751, 0.635, 0.496, 0.420, 0.290, 0.274),
    },
    "18a": {
        "T=8": _curve(320, 4.205, 3.601, 3.432, 3.183, 3.006, 2.852, 2.862),
        "T=16": _curve(320, 4.205, 3.511, 3.063, 2.529, 2.151, 1.963, 1.969),
        "T=32": _curve(320, 4.205, 3.322, 2.870, 2.356, 2.039, 1.872, 1.883),
    },
    "18b": {
        "T=8": _curve(375, 2.459, 0.948, 0.589, 0.418, 0.381, 0.259, 0.258),
        "T=16": _curve(375, 2.381, 1.060, 0.680, 0.432, 0.381, 0.235, 0.242),
        "T=32": _curve(375, 2.479, 1.319, 0.688, 0.420, 0.394, 0.211, 0.282),
    },
    "19a": {
        "w_t = 1": _curve(320, 3.874, 2.693, 2.038, 1.687, 1.530, 1.313, 1.398),
        "linear": _curve(320, 3.874, 2.844, 2.257, 1.775, 1.564, 1.406, 1.423),
    },
    "19b": {
        "w_t = 1": _curve(80, 3.874, 3.764, 3.465, 2.924, 2.555, 2.293, 2.408),
        "linear": _curve(80, 3.874, 3.747, 3.426, 2.863, 2.478, 2.219, 2.334),
    },
}
"""The curves of figures 7 to 19, by panel and by the legend's words."""

BIN_EDGES: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, math.inf)
"""The edges of the six bins of final losses; a loss on an edge belongs to the bin above it."""

CHANCE_LOSS: float = math.log(10)
"""The cross-entropy of guessing one of ten digits, near 2.3."""

_SIGMOID = (4, 44, 9, 8, 35, 0)
_RELU = (19, 15, 3, 0, 59, 4)

HISTOGRAMS: dict[str, dict[str, tuple[int, ...]]] = {
    "13a": {"sigmoid": _SIGMOID, "tanh": (35, 57, 7, 1, 0, 0)},
    "13b": {"ReLU": _RELU, "leaky ReLU": (46, 30, 2, 0, 0, 22)},
    "15a": {"one optimizer": _SIGMOID, "one per layer": (0, 25, 6, 6, 45, 18)},
    "15b": {"one optimizer": _RELU, "one per layer": (7, 26, 4, 4, 57, 2)},
    "17a": {"no pretraining": _SIGMOID, "pretraining": (0, 5, 15, 31, 49, 0)},
    "17b": {"no pretraining": _RELU, "pretraining": (47, 23, 1, 0, 22, 7)},
}
"""How many of 100 runs ended in each bin, by panel and series. The first series of figures 15 and 17 are the
runs of figure 13 again."""
