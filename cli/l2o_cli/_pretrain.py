"""`l2o pretrain`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._fields import Leaf
from ._needs import refuse_ignored
from ._options import OUTPUT, AsJson, Assignments, Cache, Cores, Quiet, with_settings
from ._resolve import read_assignments, read_toml, resolve
from ._start import start


def _keep(leaf: Leaf) -> bool:
    if leaf.name in ("meta.restarts", "seed"):
        return True
    return leaf.path[0] in ("objective", "optimizer", "pretraining") and leaf.path[-1] != "enabled"


@with_settings(_keep)
def pretrain(
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings, such as a run's config.toml.", metavar="FILE"),
    ] = None,
    assignments: Assignments = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to make; runs/<time>-pretrained-<optimizer> if not given.",
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train an optimizer to start as gradient descent, without any objective.

    It learns to answer random inputs with the updates of gradient descent. The objective only tells the
    defaults, and an optimizer with a part per layer what the layers are.

    `l2o train --config` with this run's config.toml does the same and then meta-trains.
    """
    # What is pretrained is the thesis's network unless said otherwise: others start as something already.
    file = [{"preset": "thesis"}, *([read_toml(config)] if config else [])]
    enabled = {"pretraining": {"enabled": True}}
    given = [*read_assignments(assignments or []), settings]
    checked = resolve([*file, *given, enabled])
    refuse_ignored(checked, given)

    start(cores=cores, cache=cache)
    from ._output import Output
    from ._pretraining import pretrain as run

    run(checked, out, Output(quiet, as_json))
