"""Section 5.4.3: meta-gradients that vanish in a network of two convolutions and a dense layer."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool

from ._experiment import Experiment, Pretraining, Results
from ._figure import Figure, Panel, PanelResults
from ._setup import Setup
from ._statistics import Estimate, median_interval, share_interval
from ._verdicts import MIN_RESTARTS, Verdict, beside, combine, judge_share

_FIRST = "layers.0"
_DEFAULT = "normalized per tensor"
_ACTIVATIONS = {"ReLU": "relu", "sigmoid": "sigmoid"}
_PANELS = {"ReLU": "conv a", "sigmoid": "conv b"}


def conv(setup: Setup) -> Figure:
    """Two convolutions and a dense layer, one optimizer for each."""
    short = {"num_steps": 160, "super_epochs": 5, "num_test_objectives": 1}
    pretraining = Pretraining(2_560 if setup.quick else 200_000)

    def series(activation: str) -> dict[str, Experiment]:
        normalizations = {_DEFAULT: "tensor", "normalized per optimizer": "block", "not normalized": "none"}
        return {
            label: setup.conv_network(activation, normalization=normalization, **short)
            for label, normalization in normalizations.items()
            if label == _DEFAULT or not setup.quick
        }

    found = {name: series(activation) for name, activation in _ACTIVATIONS.items()}
    found["ReLU"]["pretrained"] = setup.conv_network("relu", pretraining=pretraining, **short)

    def judge(results: PanelResults) -> list[Verdict]:
        panels = {name: results[panel] for name, panel in _PANELS.items()}
        defaults = {name: some[_DEFAULT] for name, some in panels.items()}
        claimed = "of {} restarts whose first layer's meta-gradient was exactly zero in a whole super epoch"
        zero = [
            judge_share(25, vanished(r), claimed.format(name), at_least=0.5) for name, r in defaults.items()
        ]
        context = [
            *(_norm(r, name) for name, r in defaults.items() if len(r.losses)),
            *(
                _kept(r, f"{name}, {label}")
                for name, some in panels.items()
                for label, r in some.items()
                if len(r.losses)
            ),
        ]
        return [beside(combine(25, zero), *context), _judge_learning(defaults)]

    return Figure(
        "Two convolutions and a dense layer",
        "5.4.3",
        [
            Panel(_PANELS[name], f"MNIST, {name}", some, setup.restarts("network"))
            for name, some in found.items()
        ],
        (25, 26),
        judge,
        "The thesis gives no sizes for this network, and the released code leaves it out. Here a "
        "convolution has 8 channels and halves the image; trainings are as short as in figure 13. Non-zero "
        "in all super epochs means that none had meta-gradients of exactly zero only.",
    )


def vanished(results: Results) -> Bool[np.ndarray, " restarts"]:
    """Whether all meta-gradients of the first layer's optimizer were exactly zero in some super epoch."""
    # A mean of ones need not be one to the last digit.
    return np.any(results.metrics[f"zero_share/{_FIRST}"] > 1 - 1e-6, axis=1)


def _kept(results: Results, label: str) -> Estimate:
    kept = ~vanished(results)
    return share_interval(int(kept.sum()), kept.size, what=f"share non-zero in all super epochs, {label}")


def _norm(results: Results, label: str) -> Estimate:
    norms = np.median(results.metrics[f"grad_norm/{_FIRST}"], axis=1)
    return median_interval(norms, what=f"norm of the first layer's meta-gradient, {label}")


def _judge_learning(defaults: Mapping[str, Results]) -> Verdict:
    # The claim is about networks that have lost their first layer.
    lost = np.concatenate([vanished(r) for r in defaults.values()])
    ratio = np.concatenate([r.last() / r.at(0) for r in defaults.values()])
    if lost.sum() < MIN_RESTARTS:
        statement = f"{int(lost.sum())} of {lost.size} restarts lost the first layer: too few to judge"
        whole = [median_interval(ratio, what="median of end / start of all restarts")] if ratio.size else []
        return beside(Verdict(26, "undecided", statement, ()), *whole)
    learned = ratio[lost] < 0.9
    return judge_share(
        26, learned, "of restarts without the first layer that end below 90 % of their start", at_least=0.5
    )
