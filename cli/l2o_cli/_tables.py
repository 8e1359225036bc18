"""The settings beside the plug-ins: which parameters of the library's verbs they are, and their options."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from ._kinds import verb_parameters
from ._presets import DEFAULT_PRESET, PRESETS
from ._signatures import Parameter
from ._types import FLOAT, INT, TEXT, Type


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
            raise ValueError(f"must be less than or equal to {self.most:g}")


_OPTIONAL_INT, _OPTIONAL_FLOAT = (dataclasses.replace(t, optional=True) for t in (INT, FLOAT))
_RATES = Type("list", item=FLOAT, container=lambda x: tuple(sorted(set(x))), optional=True)
_COUNT: dict[str, Any] = {"type": INT, "least": 1}
_POSITIVE: dict[str, Any] = {"above": 0}
_NOT_NEGATIVE: dict[str, Any] = {"least": 0}

# `of`: the verb whose parameter it is. What is the command line's own: `option` if it is not the parameter's
# name, `type`, `default` and `help` if they are not the library's.
_ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "meta": {
        "learning_rate": {"of": "default_meta_optimizer", "option": "--meta-learning-rate", **_POSITIVE},
        "normalization": {"of": "default_meta_optimizer"},
        "norm_floor": {"of": "default_meta_optimizer", **_NOT_NEGATIVE},
        "clip_norm": {"of": "default_meta_optimizer", **_POSITIVE},
        "drop_norm": {"of": "default_meta_optimizer", **_POSITIVE},
        "b1": {"of": "default_meta_optimizer", "option": "--meta-b1", **_NOT_NEGATIVE, "below": 1},
        "b2": {"of": "default_meta_optimizer", "option": "--meta-b2", **_NOT_NEGATIVE, "below": 1},
        "eps": {"of": "default_meta_optimizer", "option": "--meta-eps", **_POSITIVE},
        "warmup_updates": {"of": "default_meta_optimizer", "option": "--meta-warmup", **_NOT_NEGATIVE},
        "decay": {
            "option": "--meta-decay",
            "type": Type("choice", ("none", "cosine")),
            "default": "none",
            "help": "How the learning rate falls to the end of the training.",
        },
        "final_share": {
            "of": "default_meta_optimizer",
            "option": "--meta-final-share",
            "least": 0,
            "most": 1,
        },
        "average": {"of": "meta_train", **_POSITIVE, "most": 1},
        "num_steps": {"of": "meta_train", **_COUNT, "help": "Inner steps of a super epoch."},
        "num_epochs": {
            "type": _OPTIONAL_INT,
            "least": 1,
            "default": None,
            "help": "The same in epochs of the data, for objectives that have data.",
        },
        "super_epochs": {"of": "meta_train", **_COUNT, "help": "Inner optimizations, one after the other."},
        "num_objectives": {"of": "meta_train", **_COUNT},
        "restarts": {
            "of": "meta_train",
            **_COUNT,
            "default": 1,
            "help": "Independent trainings from different initial weights.",
        },
    },
    "pretraining": {
        "enabled": {
            "option": "--pretrain",
            "type": Type("bool"),
            "default": False,
            "help": "Pretrain the optimizer to start as gradient descent.",
        },
        "loss": {"of": "pretrain"},
        "omega": {"of": "pretrain", "help": "How much signs matter to the loss.", **_NOT_NEGATIVE},
        "input_std": {"of": "pretrain", **_POSITIVE},
        "num_steps": {"of": "pretrain", "option": "--pretrain-steps", **_COUNT},
        "batch_size": {"of": "pretrain", **_COUNT},
        "num_samples": {"of": "pretrain", "option": "--pretrain-samples", **_COUNT},
        "carry_state": {"of": "pretrain"},
        "learning_rate": {"type": FLOAT, "default": 1e-3, **_POSITIVE, "help": "Adam's, of the pretraining."},
        "eps": {
            "type": FLOAT,
            "default": 1e-7,
            **_POSITIVE,
            "help": "Adam's ε, of the pretraining; smaller for small learning rates of the optimizer.",
        },
    },
    "validation": {
        "every": {
            "of": "Validation",
            "option": "--validate-every",
            "default": 0,
            "least": 0,
            "help": "Super epochs between two validations, by which the best optimizer is kept; 0: none.",
        },
        "num_objectives": {"of": "Validation", "option": "--validation-objectives", **_COUNT},
        "num_steps": {
            "of": "Validation",
            "option": "--validation-steps",
            "type": _OPTIONAL_INT,
            "least": 1,
            "default": None,
            "help": "Inner steps on each; as in training if not given.",
        },
        "last": {"of": "Validation", **_COUNT},
    },
    "evaluation": {
        "num_objectives": {"of": "compare", "option": "--eval-objectives", **_COUNT},
        "num_tuning_objectives": {
            "of": "compare",
            "option": "--tuning-objectives",
            **_COUNT,
            "help": "Draws on which the hand-designed optimizers are tuned.",
        },
        "num_steps": {
            "option": "--eval-steps",
            "type": _OPTIONAL_INT,
            "least": 1,
            "default": None,
            "help": "Inner steps of the comparison; as in training if not given.",
        },
        "learning_rates": {
            "of": "compare",
            "option": "--learning-rates",
            "type": _RATES,
            "default": None,
            **_POSITIVE,
        },
        "tuning": {"of": "compare", "option": "--tuning"},
        "last": {"of": "compare", "option": "--last-steps", **_COUNT},
    },
}
TABLES = tuple(_ROWS)
_PREFIXES = {"meta": "", "pretraining": "pretrain-", "validation": "validation-", "evaluation": ""}

ROOT = {
    "format": Setting(Parameter("format", INT, 1), "", least=1, most=1),
    "preset": Setting(
        Parameter(
            "preset",
            Type("choice", tuple(PRESETS)),
            DEFAULT_PRESET,
            "What all other settings are if they are not given.",
        ),
        "--preset",
    ),
    "seed": Setting(Parameter("seed", INT, 0, "Same seed, same numbers."), "--seed", least=0, most=2**31 - 2),
}


@functools.cache
def settings(table: str) -> Mapping[str, Setting]:
    """The settings of a table, by name, with what the library's docstrings say of them."""
    return {name: _setting(table, name, dict(row)) for name, row in _ROWS[table].items()}


def _setting(table: str, name: str, row: dict[str, Any]) -> Setting:
    found = Parameter(name, TEXT)
    if verb := row.pop("of", ""):
        found = verb_parameters(verb)[name]
    option = row.pop("option", f"--{_PREFIXES[table]}{name.replace('_', '-')}")
    own = {key: row.pop(key) for key in ("type", "default", "help") if key in row}
    return Setting(dataclasses.replace(found, **own), option, verb=verb, **row)


# Settings that mean something only next to others: (table, name), the other's name in the table, and the
# values it may have. What comes first is asked first.
_ANY = range(1, 2**31)
NEEDS: list[tuple[tuple[str, str], str, Any]] = [
    *((("pretraining", n), "enabled", (True,)) for n in _ROWS["pretraining"] if n != "enabled"),
    *((("validation", n), "every", _ANY) for n in _ROWS["validation"] if n != "every"),
    (("pretraining", "omega"), "loss", ("sign-weighted",)),
    (("meta", "norm_floor"), "normalization", ("tensor", "block", "global")),
    (("meta", "clip_norm"), "normalization", ("clip",)),
    (("meta", "final_share"), "decay", ("cosine",)),
]
