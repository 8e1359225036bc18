"""Section 5.4.1: different activations in the two layers of the network."""

import numpy as np
from jaxtyping import Float

from ._experiment import Results
from ._figure import Figure, Panel, PanelResults
from ._setup import Setup
from ._statistics import median_interval
from ._verdicts import Verdict, beside, combine, judge_smaller

_SOFTMAX, _SIGMOID = "softmax output", "sigmoid output"
_WRONG = "share of held-out digits classified wrongly"
_OUTPUTS = {_SOFTMAX: "softmax", _SIGMOID: "sigmoid"}
_PANELS = {"sigmoid": "output-layer a", "tanh": "output-layer b"}


def output_layer(setup: Setup) -> Figure:
    """The softmax output of the figures, and the sigmoid output of the thesis's text."""
    series = {
        hidden: {label: setup.short_network(hidden, output=output) for label, output in _OUTPUTS.items()}
        for hidden in _PANELS
    }

    def judge(results: PanelResults) -> list[Verdict]:
        found = {hidden: results[panel] for hidden, panel in _PANELS.items()}
        same = _errors(found["sigmoid"][_SIGMOID])
        parts = [
            judge_smaller(22, same, _errors(found[hidden][output]), (f"{_WRONG}, sigmoid twice", what))
            for hidden, output, what in (
                ("tanh", _SIGMOID, "tanh and sigmoid"),
                ("sigmoid", _SOFTMAX, "sigmoid and softmax"),
            )
        ]
        other = _errors(found["tanh"][_SOFTMAX])
        context = [median_interval(other, what=f"median of {_WRONG}, tanh and softmax")] if other.size else []
        return [beside(combine(22, parts), *context)]

    return Figure(
        "Activations of hidden and output layer",
        "5.4.1",
        [
            Panel(panel, f"MNIST, {hidden} hidden", series[hidden], 2 if setup.quick else 20)
            for hidden, panel in _PANELS.items()
        ],
        (22,),
        judge,
        "The thesis's own comparison is moot: its released code takes the cross-entropy of a softmax "
        "whatever the output layer is, so that the network with the same and the one with different "
        "activations are one function. Here a sigmoid output really is one, with probabilities normalized "
        "to one. Its loss is another function than that of a softmax; therefore shares of held-out digits "
        "are compared that are classified wrongly. The claim holds if sigmoid in both layers beats tanh "
        "before sigmoid, and sigmoid before softmax. Held-out loss and entropy are those of a softmax in "
        "all series. Trainings are as short as in figure 13.",
    )


def _errors(results: Results) -> Float[np.ndarray, " restarts"]:
    return 1.0 - results.measured["accuracy"].astype(float)
