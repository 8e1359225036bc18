"""Figure 9: the preprocessing ρ; figures 10 and 11: preprocessed gradients, normalized meta-gradients."""

import jax.numpy as jnp
import numpy as np

from ..preprocessors import Identity, LogSign, TwoFeature
from ._figure import Figure, Panel, PanelResults
from ._setup import Setup
from ._statistics import near_chance, share_interval
from ._verdicts import Verdict, beside, combine, judge_median, judge_share, judge_similar, judge_smaller

_NO_RHO, _RHO, _TWO = "no preprocessing", "preprocessing", "two features"
_NO_NORM, _NORM = "no normalization", "normalization"
# A hundredth of the norm that meta-gradients are then scaled to.
_VERY_SMALL = 0.01


def fig9(setup: Setup) -> Figure:
    """The preprocessing ρ of eq. 5.2 as a function, whole and near zero."""
    del setup

    def rho(largest: float) -> tuple[np.ndarray, np.ndarray]:
        # Dense about zero, where ρ jumps.
        x = (largest * np.sinh(np.linspace(-12, 12, 4001)) / np.sinh(12)).astype(np.float32)
        return x, np.asarray(LogSign()(jnp.asarray(x), None)[0])[:, 0]

    return Figure(
        "The preprocessing ρ",
        "5.3.1",
        [
            Panel("9", "ρ, p = 10", graph=rho(2.0)),
            Panel("9, near zero", "ρ between −2e⁻¹⁰ and 2e⁻¹⁰", graph=rho(2 * float(np.exp(-10.0)))),
        ],
        notes="Not an experiment. ρ takes every value in (−1, 0) and (0, 1) at least twice: it jumps "
        "between ±1 at e⁻¹⁰.",
    )


def fig10(setup: Setup) -> Figure:
    """Preprocessing of the objective's gradients, with the two-feature form as a control."""
    quadratic = {
        _NO_RHO: setup.quadratic(),
        _RHO: setup.quadratic(preprocessor=LogSign()),
        _TWO: setup.quadratic(preprocessor=TwoFeature()),
    }
    network = {
        _NO_RHO: setup.network(preprocessor=Identity()),
        _RHO: setup.network(),
        _TWO: setup.network(preprocessor=TwoFeature()),
    }

    def judge(results: PanelResults) -> list[Verdict]:
        a, b = results["10a"], results["10b"]
        stuck = a[_RHO].final > 0.9 * a[_RHO].at(0)
        alone = near_chance(b[_NO_RHO].last()).near
        by_loss = (
            [share_interval(int(alone.sum()), alone.size, what="share near ln 10 in loss alone")]
            if alone.size
            else []
        )
        return [
            judge_share(9, stuck, "of restarts that end above 90 % of where they begin", at_least=0.5),
            # If ρ fails because it is not one to one, the same logarithm and sign kept apart must not.
            judge_smaller(10, a[_TWO].final, a[_RHO].final, ("log and sign apart", "ρ")),
            beside(
                judge_share(
                    11,
                    b[_NO_RHO].chance().near,
                    "within 0.02 of ln 10, in loss and in entropy of the outputs",
                    at_least=0.5,
                ),
                *by_loss,
            ),
        ]

    return Figure(
        "Preprocessing of the gradients",
        "5.3.1",
        [
            Panel("10a", "quadratic", quadratic, setup.restarts("quadratic")),
            Panel("10b", "MNIST, sigmoid", network, setup.restarts("network")),
        ],
        (9, 10, 11),
        judge,
        "ρ is eq. 5.2, one feature. The two-feature form is that of Andrychowicz et al., to whom the thesis "
        "ascribes ρ.",
    )


def fig11(setup: Setup) -> Figure:
    """Meta-gradients scaled to norm one."""
    quadratic = {_NO_NORM: setup.quadratic(normalization="none"), _NORM: setup.quadratic()}
    network = {_NO_NORM: setup.network(normalization="none"), _NORM: setup.network()}

    def judge(results: PanelResults) -> list[Verdict]:
        a, b = results["11a"], results["11b"]
        names = (_NORM, _NO_NORM)
        small, large = (np.median(panel[_NO_NORM].metrics["grad_norm"], axis=1) for panel in (b, a))
        return [
            combine(
                14,
                [
                    *(
                        judge_median(14, norms, f"norm of the meta-gradient {where}", at_most=_VERY_SMALL)
                        for norms, where in ((large, "on the quadratic"), (small, "on MNIST"))
                    ),
                    judge_smaller(
                        14, small, large, ("norm of the meta-gradient on MNIST", "on the quadratic")
                    ),
                ],
            ),
            judge_smaller(15, a[_NORM].final, a[_NO_NORM].final, names, paired=True),
            judge_similar(16, b[_NORM].last(), b[_NO_NORM].last(), names, paired=True),
        ]

    return Figure(
        "Normalization of the meta-gradient",
        "5.3.2",
        [
            Panel("11a", "quadratic", quadratic, setup.restarts("quadratic")),
            Panel("11b", "MNIST, sigmoid", network, setup.restarts("network")),
        ],
        (14, 15, 16),
        judge,
        "Norm one per weight tensor, as in the released code; its floor of 1e-6 comes with `--as code`. "
        "Very small meta-gradients have a norm of at most 0.01, a hundredth of what they are scaled to.",
    )
