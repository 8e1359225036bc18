"""The settings beside the plug-ins: which parameters of the library's verbs they are, and their options."""

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ._kinds import verb_parameters
from ._presets import DEFAULT_PRESET, PRESETS
from ._signatures import Parameter
from ._types import BOOL, FLOAT, INT, TEXT, Type


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: a parameter, its option, and the smallest and largest values it may have.

    **Arguments:**

    - `parameter`: name, type, default and help.
    - `option`: e.g. `"--num-steps"`.
    - `least`, `above`, `most`, `below`: bounds; of the entries of a list.
    - `verb`: of which this is a parameter, if it is not the command line's own.
    """

    parameter: Parameter
    option: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    verb: str = ""

    def read(self, value: Any) -> Any:
        """The value of the right type and within the bounds.

        **Raises:** `ValueError` that says what it must be.
        """
        read = self.parameter.type.read(value)
        for x in read if isinstance(read, tuple) else (read,):
            if isinstance(x, int | float) and not isinstance(x, bool):
                self._check(x)
        return read

    def _check(self, x: float) -> None:
        if self.above is not None and x <= self.above:
            raise ValueError(f"must be greater than {self.above:g}")
        if self.least is not None and x < self.least:
            raise ValueError(f"must be greater than or equal to {self.least:g}")
        if self.below is not None and x >= self.below:
            raise ValueError(f"must be less than {self.below:g}")
        if self.most is not None and x > self.most:
            raise ValueError(f"must be less than or equal to {self.most:.10g}")


_TYPES = {
    "bool": BOOL,
    "int": INT,
    "int?": dataclasses.replace(INT, optional=True),
    "float": FLOAT,
    "text?": dataclasses.replace(TEXT, optional=True),
    "names?": Type("list", item=TEXT, optional=True),
    "lengths": Type("list", item=INT, scalar=True),
    "rates": Type("list", item=FLOAT, container=lambda x: tuple(sorted(set(x))), optional=True),
}
_ROWS = tomllib.loads(Path(__file__).with_name("settings.toml").read_text(encoding="utf-8"))
_ROWS["root"]["preset"] |= {"type": "|".join(PRESETS), "default": DEFAULT_PRESET}
TABLES = tuple(name for name in _ROWS if name != "root")


@functools.cache
def settings(table: str) -> Mapping[str, Setting]:
    """The settings of a table, by name, with what the library's docstrings say of them."""
    return {name: _setting(name, dict(row)) for name, row in _ROWS[table].items()}


def _setting(name: str, row: dict[str, Any]) -> Setting:
    verb = row.pop("of", "")
    found = verb_parameters(verb)[name] if verb else Parameter(name, TEXT, None)
    own = {key: row.pop(key) for key in ("type", "default", "help") if key in row}
    if kind := own.get("type"):
        own["type"] = _TYPES.get(kind) or Type("choice", tuple(kind.split("|")))
        own.setdefault("default", None if own["type"].optional else found.default)
    option = row.pop("option", "--" + name.replace("_", "-"))
    return Setting(dataclasses.replace(found, **own), option, verb=verb, **row)


class Need(NamedTuple):
    """A setting that means something only where another one has certain values.

    **Arguments:**

    - `setting`: its table and name; without a name, all of the table.
    - `other`: table and name of the other one.
    - `values`: what that may be.
    """

    setting: tuple[str, str | None]
    other: tuple[str, str]
    values: Any


# What comes first is asked first.
_ANY = range(1, 2**31)
TRAINERS = GRADIENT, SEARCH = tuple(_ROWS["trainer"]["kind"]["type"].split("|"))
NEEDS = [
    *(Need(("pretraining", n), ("pretraining", "enabled"), (True,)) for n in _ROWS["pretraining"]),
    *(Need(("validation", n), ("validation", "every"), _ANY) for n in _ROWS["validation"]),
    *(Need(("trainer", n), ("trainer", "kind"), (SEARCH,)) for n in _ROWS["trainer"]),
    *(
        Need(("trainer", n), ("trainer", "method"), ("badmm",))
        for n in ("initial_rate", "penalty", "dual_rate")
    ),
    *(Need((table, None), ("trainer", "kind"), (GRADIENT,)) for table in ("strategy",)),
    *(Need(("meta", n), ("trainer", "kind"), (GRADIENT,)) for n in ("average", "per_call", "debug_nans")),
    Need(("pretraining", "omega"), ("pretraining", "loss"), ("sign-weighted",)),
    Need(("meta", "norm_floor"), ("meta", "normalization"), ("tensor", "part", "global")),
    Need(("meta", "clip_norm"), ("meta", "normalization"), ("clip",)),
    Need(("meta", "final_share"), ("meta", "decay"), ("cosine",)),
]
