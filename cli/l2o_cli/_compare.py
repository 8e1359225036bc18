"""`l2o compare`. What starts JAX is imported once the options are read."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import l2o_eqx as l2o
from l2o_eqx.hub import is_on_hub

from ._errors import UsageError, suggestion
from ._evaluate import SECOND_NAMES, check_fits, compared, files_of, load_optimizers, settings_for
from ._folder import check_free, make_folder
from ._options import AsJson, Assignments, Cache, Classes, Cores, Quiet, folder_option, with_settings
from ._resolve import read_assignments
from ._start import start

_NAMES = "NAME"
# Settings of the training's own comparison: which baselines it has, and a learned start's rival.
_OTHERS = (("evaluation", "against"), ("evaluation", "joint"))


@with_settings(
    lambda path: path[0] in ("objective", "evaluation", "seed") and path not in _OTHERS,
    SECOND_NAMES,
    show_defaults=False,
)
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, files of trained optimizers, names in the gallery, and optax's optimizers.",
            metavar=f"{_NAMES}...",
        ),
    ],
    assignments: Assignments = None,
    modules: Classes = None,
    out: Annotated[
        Path | None,
        folder_option("Folder to make for curves and numbers; nothing is written if not given."),
    ] = None,
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Compare optimizers with one another: trained ones, and any of optax's, tuned.

    The objective is that of the first trained optimizer if not given. Each other row says on which share of
    the objectives the first name ends lower.
    """
    layers = [*read_assignments(assignments or []), settings]
    check_free(out)
    start(cores=cores, cache=cache)
    from ._build import build
    from ._comparison import facts_of, numbers_of, show_comparisons, title_of
    from ._comparison import write_comparisons as write
    from ._output import Output

    output = Output(quiet, as_json)
    optimizers, metadata = find(names, modules or ())
    parts = build(settings_for(metadata, layers))
    for optimizer in optimizers.values():
        if isinstance(optimizer, l2o.optimizers.AbstractOptimizer):
            check_fits(optimizer, parts)
    first = next(iter(optimizers))
    facts = {**facts_of(parts, parts.config.seed), "sources": list(names)}
    del facts["optimizer"]
    title = title_of(facts)
    comparisons = compared(optimizers, parts, output)
    if out:
        make_folder(out, out.parent, "")
        write(out, comparisons, output, title=title, facts=facts, by=first)
    show_comparisons(comparisons, output, title, first)
    if out:
        output.say(f"Curves and numbers are in {out}.")
    output.result({"folder": str(out) if out else None, **facts, **numbers_of(comparisons, first)})


def find(names: Sequence[str], modules: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The optimizers that names mean, by what they are called in a table.

    **Arguments:**

    - `names`: paths, which count first, names in the gallery, and optax's. A run of several restarts is as
        many optimizers, called `run:0`, `run:1`, …
    - `modules`: whose classes files may have.

    **Returns:** the optimizers, and what the file of the first trained one says of itself.

    **Raises:** `UsageError` for a name that means nothing, or the same twice.
    """
    found: dict[str, Any] = {}
    metadata: dict[str, Any] | None = None
    for name in names:
        path = Path(name)
        if path.exists() or name in l2o.gallery.names() or is_on_hub(path):
            files = files_of(path, _NAMES)
            optimizers, facts = load_optimizers(files, modules, _NAMES)
            metadata = facts if metadata is None else metadata
            label = path.stem if path.is_file() else path.name or name
            several = {f"{label}:{i}": one for i, one in enumerate(optimizers)}
            new = {label: optimizers[0]} if len(optimizers) == 1 else several
        else:
            new = _of_optax(name)
        if both := sorted(new.keys() & found.keys()):
            raise UsageError(f"{_NAMES}: two are called {both[0]!r}; rename a file, or leave one out")
        found |= new
    return found, metadata or {}


def _of_optax(name: str) -> dict[str, Any]:
    import optax

    asked = name.lower().replace("_", "-")
    tuned = {known.lower().replace(" ", "-"): known for known in l2o.BASELINES}
    if asked in tuned:
        return {tuned[asked]: l2o.BASELINES[tuned[asked]]}
    if asked == "random-search":
        return {"random search": l2o.RandomSearch()}
    make: Any = getattr(optax, name, None)
    if not _takes_rate_alone(make):
        possible = [*l2o.gallery.names(), *tuned, "random-search"]
        raise UsageError(
            f"{_NAMES}: {name!r} is no file, run folder, name in the gallery, or optimizer of optax that "
            f"needs a learning rate alone; {suggestion(name, possible)}"
        )
    return {name: l2o.Baseline(make)}


def _takes_rate_alone(make: Any) -> bool:
    # As optax's own aliases do, with defaults for all else.
    if not inspect.isfunction(make):
        return False
    parameters = inspect.signature(make).parameters
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return needed == ["learning_rate"]
