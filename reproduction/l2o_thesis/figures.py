"""The figures: which experiments they have, how these are shown, and which claims they decide."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from .facts import read_toml

Scale = Literal["full", "quick"]
Source = Literal["figures", "text", "code"]
# All settings of an experiment, as JSON has them.
Spec = dict[str, Any]

_FIGURES, _EXPERIMENTS = read_toml("figures.toml"), read_toml("experiments.toml")
_LAYERS = ("quick", "code", "text")

FIGURES: tuple[str, ...] = tuple(_FIGURES)
"""The names of the figures. Figure 16 is a diagram and has no numbers."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """Part of a figure: experiments drawn together.

    **Fields:**

    - `name`: the thesis's, such as `"18a"`, or one of ours.
    - `title`: what is shown.
    - `series`: the settings of experiments by label.
    - `restarts`: of each, in the thesis's place of one run or of the best of ten.
    - `histogram`: of final losses, in place of losses over steps.
    - `steps`: draws and judges only so many steps.
    - `graph`: in place of experiments, the preprocessing ρ up to there.
    """

    name: str
    title: str
    series: Mapping[str, Spec] = dataclasses.field(default_factory=dict)
    restarts: int = 0
    histogram: bool = False
    steps: int | None = None
    graph: float | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure, or one section of the text that has none.

    **Fields:**

    - `name`, `title`, `section`, `notes`: what it is about, where in the thesis, and what one must know.
    - `panels`: its experiments.
    - `claims`, `beside`: by number, the parts that decide a claim, and what is said beside them.
    - `measurement`: a function of `MEASUREMENTS` whose numbers are no experiment's, such as times.
    - `seconds`: roughly how long that takes.
    """

    name: str
    title: str
    section: str
    notes: str = ""
    panels: tuple[Panel, ...] = ()
    claims: Mapping[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    beside: Mapping[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    measurement: str | None = None
    seconds: float = 0.0

    def experiments(self) -> Iterator[tuple[Panel, str, Spec]]:
        """Every series: its panel, its label, its settings."""
        for panel in self.panels:
            for label, spec in panel.series.items():
                yield panel, label, spec


def read_figure(name: str, scale: Scale = "full", source: Source = "figures") -> Figure:
    """A figure at a scale, after one reading of the thesis.

    **Arguments:**

    - `name`: one of `FIGURES`.
    - `scale`: `"full"` is the thesis's; `"quick"` has the same experiments at small sizes, for a look.
    - `source`: `"text"` follows the text; `"code"` the released code, as far as the report says; `"figures"`
        the text on the quadratic of the code, which is the one that the thesis's figures show.

    **Raises:** `ValueError` for an unknown name, scale or source.
    """
    possible = {"name": FIGURES, "scale": get_args(Scale), "source": get_args(Source)}
    for (what, choices), given in zip(possible.items(), (name, scale, source), strict=True):
        if given not in choices:
            raise ValueError(f"`read_figure({what}={given!r})`: must be one of {', '.join(choices)}.")
    fields = dict(_FIGURES[name])
    fields["panels"] = tuple(_panel(table, scale, source) for table in fields.get("panels", ()))
    for kind in ("claims", "beside"):
        fields[kind] = {int(number): parts for number, parts in fields.get(kind, {}).items()}
    fields["seconds"] = fields.get("seconds", (0.0, 0.0))[scale == "quick"]
    return Figure(name, **fields)


def experiment_settings(kind: str, scale: Scale, source: Source, *changes: Mapping[str, Any]) -> Spec:
    """All settings of an experiment of some kind after changes, by which it is made, kept and told apart."""
    code = _EXPERIMENTS["code"] if source == "code" else {}
    spec: Spec = {}
    for layer in (*_kinds(kind), code, *changes):
        spec |= _at(layer, scale, source)
    if scale == "quick":
        spec["super_epochs"] = min(spec["super_epochs"], 4 if "dim" in spec else 2)
        if "dim" not in spec:
            spec |= {"num_steps": max(32, spec["num_steps"] // 8), "batch_size": spec["batch_size"] // 4}
    return {"test_steps": spec["num_steps"], **spec}


def _kinds(kind: str) -> list[dict[str, Any]]:
    table = dict(_EXPERIMENTS["kinds"][kind])
    like = table.pop("like", None)
    return [*(_kinds(like) if like else ()), table]


def _at(layer: Mapping[str, Any], scale: Scale, source: Source) -> dict[str, Any]:
    found = {name: value for name, value in layer.items() if name not in (*_LAYERS, "only")}
    for name in _LAYERS:
        found |= layer.get(name, {}) if name in (scale, source) else {}
    return found


def _panel(table: Mapping[str, Any], scale: Scale, source: Source) -> Panel:
    table = _at(table, scale, source)
    if "like" in table:
        # The same experiments to their end.
        figure, name = table.pop("like")
        (other,) = (one for one in _FIGURES[figure]["panels"] if one["name"] == name)
        table = {**_at(other, scale, source), **table, "steps": None}
    kind, common = table.pop("kind", None), table.pop("common", {})
    key = "histogram" if table.get("histogram") else kind
    restarts = table.pop("restarts", _EXPERIMENTS["restarts"].get(key, (0, 0)))
    series = {
        label: experiment_settings(kind, scale, source, common, changes)
        for label, changes in table.pop("series", {}).items()
        if changes.get("only", scale) == scale
    }
    return Panel(series=series, restarts=restarts[scale == "quick"], **table)
