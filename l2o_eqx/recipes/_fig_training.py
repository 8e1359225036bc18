"""Figures 7 and 8: the length of the super epoch; figures 18 and 19: windows and weightings."""

from ..strategies import EveryWindow
from ..weightings import Linear
from ._experiment import Experiment
from ._figure import Figure, Panel, PanelResults
from ._setup import Setup
from ._verdicts import Verdict, combine, judge_not_smaller, judge_share, judge_similar, judge_smaller

_SHORT, _LONG = "trained on 320 steps", "trained on 3200 steps"
_ONE, _TEN = "trained on 1 epoch", "trained on 10 epochs"
# A control: as many meta-updates as the long training makes.
_FAIR = f"{_SHORT}, as many updates"


def _lengths(setup: Setup) -> dict[str, dict[str, Experiment]]:
    # Both figures test the same optimizers; the first looks at the beginning of the test only.
    common = {"test_steps": 3200, "measure_travel": True}
    short = setup.quadratic(**common)
    long = setup.quadratic(num_steps=3200, super_epochs=2 if setup.quick else 25, **common)
    fair = setup.quadratic(super_epochs=250, **common)
    epoch = 375
    network = {"test_steps": 10 * epoch if not setup.quick else 460, "measure_travel": True}
    return {
        "a": {_SHORT: short, _LONG: long, _FAIR: fair},
        "b": {
            _ONE: setup.network(super_epochs=10, **network),
            _TEN: setup.network(num_steps=10 * epoch, super_epochs=1, **network),
        },
    }


def _length_panels(setup: Setup, number: int, steps: tuple[int | None, int | None]) -> list[Panel]:
    a, b = _lengths(setup).values()
    return [
        Panel(f"{number}a", "quadratic", a, setup.restarts("quadratic"), steps=steps[0]),
        Panel(f"{number}b", "MNIST, sigmoid", b, setup.restarts("network"), steps=steps[1]),
    ]


def fig7(setup: Setup) -> Figure:
    """The length of the super epoch, tested on a short one."""
    epoch = 46 if setup.quick else 375

    def judge(results: PanelResults) -> list[Verdict]:
        a, b = results["7a"], results["7b"]
        slower = [
            judge_smaller(5, a[_SHORT].at(80), a[_LONG].at(80), ("short at step 80", "long at step 80")),
            judge_smaller(5, a[_FAIR].at(80), a[_LONG].at(80), (f"{_FAIR}, at step 80", "long at step 80")),
            judge_smaller(
                5,
                b[_ONE].last(20, epoch // 4 + 10),
                b[_TEN].last(20, epoch // 4 + 10),
                ("1 epoch at a quarter of it", "10 epochs at a quarter of one"),
            ),
        ]
        smaller = [
            judge_smaller(
                6,
                panel[long].measured["travel"],
                panel[short].measured["travel"],
                (f"way of a coordinate in 20 steps, {long}", short),
            )
            for panel, long, short in ((a, _LONG, _SHORT), (a, _LONG, _FAIR), (b, _TEN, _ONE))
        ]
        return [combine(5, slower), combine(6, smaller)]

    return Figure(
        "Length of the super epoch, tested on a short one",
        "5.2",
        _length_panels(setup, 7, (320, epoch)),
        (5, 6),
        judge,
        "The thesis's long training on the quadratic makes ten times the meta-updates of the short one; the "
        "third curve gives the short one as many, and the claims must hold against both.",
    )


def fig8(setup: Setup) -> Figure:
    """The length of the super epoch, tested on a long one."""

    def judge(results: PanelResults) -> list[Verdict]:
        a, b = results["8a"], results["8b"]
        better = [
            judge_smaller(7, a[_LONG].final, a[_SHORT].final, (_LONG, _SHORT)),
            judge_smaller(7, a[_LONG].final, a[_FAIR].final, (_LONG, _FAIR)),
            judge_smaller(7, b[_TEN].last(), b[_ONE].last(), (_TEN, _ONE)),
        ]
        rises = a[_SHORT].final > a[_SHORT].at(319)
        return [
            combine(7, better),
            judge_share(8, rises, "of restarts whose loss at step 3200 is above that at 320", at_least=0.5),
        ]

    return Figure(
        "Length of the super epoch, tested on a long one",
        "5.2",
        _length_panels(setup, 8, (None, None)),
        (7, 8),
        judge,
        "The same optimizers as in figure 7.",
    )


def fig18(setup: Setup) -> Figure:
    """The length of the window."""
    windows = (8, 16, 32)

    def quadratic(window: int, super_epochs: int = 25) -> Experiment:
        return setup.quadratic(strategy=setup.every_window(window), super_epochs=super_epochs)

    same_steps = {f"T={t}": quadratic(t) for t in windows}
    same_updates = {f"T={t}": quadratic(t, round(25 * t / 16)) for t in windows}
    network = {f"T={t}": setup.network(strategy=setup.every_window(t)) for t in windows}

    def judge(results: PanelResults) -> list[Verdict]:
        b = results["18b"]
        quadratic = []
        for panel, note in (("18a", ""), ("18c", ", as many updates")):
            eight, sixteen, more = (results[panel][f"T={t}"].final for t in windows)
            names = tuple(f"T={t}{note}" for t in windows)
            quadratic += [
                judge_smaller(30, sixteen, eight, (names[1], names[0])),
                judge_similar(30, more, sixteen, (names[2], names[1])),
            ]
        pairs = (("T=8", "T=16"), ("T=16", "T=32"), ("T=8", "T=32"))
        alike = [judge_similar(31, b[x].last(), b[y].last(), (x, y)) for x, y in pairs]
        return [combine(30, quadratic), combine(31, alike)]

    return Figure(
        "Length T of the window",
        "5.5.2",
        [
            Panel("18a", "quadratic, same steps", same_steps, setup.restarts("quadratic")),
            Panel("18b", "MNIST, sigmoid", network, setup.restarts("network")),
            Panel("18c", "quadratic, same meta-updates", same_updates, setup.restarts("quadratic")),
        ],
        (30, 31),
        judge,
        "With as many steps, T = 8 makes four times the meta-updates of T = 32 (1000, 500, 250); panel c has "
        "about 500 for each, and claim 30 must hold in both.",
    )


def fig19(setup: Setup) -> Figure:
    """Weights that grow linearly within a window."""
    linear = Linear(first=0) if setup.source == "code" else Linear()
    once = {
        "num_steps": 80,
        "super_epochs": 100,
        "strategy": EveryWindow(80, setup.estimator()),
    }
    every = {"w_t = 1": setup.quadratic(), "linear": setup.quadratic(weighting=linear)}
    whole = {"w_t = 1": setup.quadratic(**once), "linear": setup.quadratic(**once, weighting=linear)}

    def judge(results: PanelResults) -> list[Verdict]:
        a, b = results["19a"], results["19b"]
        names = ("linear", "w_t = 1")
        return [
            judge_similar(34, a["linear"].final, a["w_t = 1"].final, names, paired=True),
            judge_smaller(35, b["linear"].final, b["w_t = 1"].final, names, paired=True),
        ]

    return Figure(
        "Weighting of the losses",
        "5.6",
        [
            Panel("19a", "quadratic, every 16 steps", every, setup.restarts("quadratic")),
            Panel("19b", "quadratic, once per 80 steps", whole, setup.restarts("quadratic")),
        ],
        (34, 35),
        judge,
        "The text's w_t = t + 1 counts t from 1; the released code's weights are 1 to T (`--as code`).",
    )


def every_step(setup: Setup) -> Figure:
    """A meta-update after every step, which the thesis has no figure of."""
    series = {
        "every 16 steps": setup.quadratic(),
        "every step, replayed": setup.quadratic(strategy=setup.every_step()),
        "every step, recorded": setup.quadratic(strategy=setup.every_step(16, "recorded")),
        "every 16 steps, 16 times as long": setup.quadratic(super_epochs=400),
    }

    def judge(results: PanelResults) -> list[Verdict]:
        found = results["every step"]
        often, window = found["every step, replayed"], found["every 16 steps"]
        quarter = often.metrics["final_loss"].shape[1] // 4 + 1
        soon, later = (r.metrics["final_loss"][:, :quarter].mean(1) for r in (often, window))
        names = ("final loss in the first quarter of training, every step", "every 16 steps")
        longer = found["every 16 steps, 16 times as long"]
        return [
            combine(
                33,
                [
                    judge_smaller(33, soon, later, names),
                    judge_not_smaller(
                        33, often.final, longer.final, ("every step", "every 16 steps, as many updates")
                    ),
                ],
            )
        ]

    restarts = 5 if setup.quick else 20
    return Figure(
        "A meta-update after every step",
        "5.5.3",
        [Panel("every step", "quadratic", series, restarts)],
        (33,),
        judge,
        "The thesis gives this strategy up for its cost; here a step needs the time and the memory of one "
        "window, however long the super epoch.",
    )
