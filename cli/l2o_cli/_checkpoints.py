"""The states that a run keeps on its way, to be taken up again."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ._errors import UsageError
from ._kinds import classes_in
from ._options import OUTPUT
from ._resolve import Table, plain

# The folders in that of a run.
TRAINING, PRETRAINING, JOINT_TRAINING = "checkpoints", "checkpoints/pretraining", "checkpoints/joint"
DEFAULT_MINUTES = 1.0

Every = Annotated[
    int | None,
    typer.Option(min=1, help="Super epochs between checkpoints.", metavar="INT", rich_help_panel=OUTPUT),
]
Minutes = Annotated[
    float,
    typer.Option(
        min=0.001,
        help="Or minutes, if sooner.",
        metavar="FLOAT",
        rich_help_panel=OUTPUT,
        show_default="1",
    ),
]


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often the state is kept: every so many super epochs, and after so many minutes."""

    every: int | None = None
    minutes: float = DEFAULT_MINUTES


def checkpoint(folder: Path, name: str, config: Table, cadence: Cadence) -> Any:
    """The callback that keeps the states of a run.

    **Arguments:**

    - `folder`: of the run.
    - `name`: `TRAINING`, `PRETRAINING` or `JOINT_TRAINING`.
    - `config`: of the run.
    """
    from l2o_eqx.callbacks import Checkpoint

    return Checkpoint(folder / name, cadence.every, cadence.minutes, settings=plain(config))


def state_of(folder: Path, name: str, config: Table) -> Any:
    """The last state that was kept, or `None` if there is none yet; arguments as of `checkpoint`.

    **Raises:** `UsageError` if all are damaged, or of other settings.
    """
    from l2o_eqx.callbacks import load_checkpoint

    try:
        return load_checkpoint(folder / name, settings=plain(config), classes=classes_in(config))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"RUN: {error}") from None
