"""What a figure of the thesis is made of: experiments, how they are drawn, which claims they decide."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ._experiment import Experiment, Results
from ._verdicts import Verdict

# Results by panel, then by label.
PanelResults = Mapping[str, Mapping[str, Results]]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Part of a figure: several experiments drawn together.

    **Fields:**

    - `name`: the thesis's, such as `"18a"`, or one of ours.
    - `title`: what is shown.
    - `series`: experiments by label.
    - `restarts`: of each, in the thesis's place of one run or of the best of ten.
    - `kind`: losses over steps, or a histogram of final losses.
    - `steps`: draws only so many steps.
    - `graph`: in place of experiments, a function as points x and y.
    """

    name: str
    title: str
    series: Mapping[str, Experiment] = dataclasses.field(default_factory=dict)
    restarts: int = 0
    kind: Literal["curves", "histogram"] = "curves"
    steps: int | None = None
    graph: tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]] | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure, or one section of the text that has none.

    **Fields:**

    - `title`: what it is about.
    - `section`: of the thesis.
    - `claims`: numbers of the claims that `judge` decides.
    - `panels`: its experiments.
    - `judge`: from the results, and from what `extra` gave if there is one, to one verdict per claim.
    - `notes`: where the text and the released code differ here, and what else one must know.
    - `extra`: from a seed to numbers that are no experiment's, as JSON has them, such as memory and times.
    - `extra_seconds`: roughly how long that takes.
    """

    title: str
    section: str
    panels: Sequence[Panel]
    claims: tuple[int, ...] = ()
    judge: Callable[..., Sequence[Verdict]] = lambda results: ()
    notes: str = ""
    extra: Callable[[int], dict[str, Any]] | None = None
    extra_seconds: float = 0.0

    def verdicts(self, results: PanelResults, extra: Mapping[str, Any] | None = None) -> Sequence[Verdict]:
        """What `judge` says.

        **Arguments:**

        - `results`: by panel, then by label.
        - `extra`: what the field `extra` gave, computed or read from where it was kept.

        **Raises:** `ValueError` if the figure has an `extra` and it is not given.
        """
        if self.extra is None:
            return self.judge(results)
        if extra is None:
            raise ValueError(f"`Figure.verdicts(extra=...)` must be given: {self.title!r} is judged by it.")
        return self.judge(results, extra)

    def experiments(self) -> dict[str, tuple[Experiment, int]]:
        """Every experiment and its number of restarts, by `panel/label`."""
        return {
            f"{panel.name}/{label}": (experiment, panel.restarts)
            for panel in self.panels
            for label, experiment in panel.series.items()
        }
