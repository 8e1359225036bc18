"""`l2o evaluate`. What starts JAX is imported once the options are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import l2o_eqx as l2o
from l2o_eqx.hub import is_on_hub, local_path

from ._errors import Failure, UsageError, describe
from ._folder import RECORD, check_free, make_folder, read_record
from ._interrupt import interrupted, run_interruptibly
from ._kinds import classes_in, classes_of, import_reference
from ._options import AsJson, Assignments, Cache, Classes, Cores, Quiet, Source, folder_option, with_settings
from ._resolve import Layer, Table, merge, read_assignments, resolve, with_names_of_today
from ._start import start

if TYPE_CHECKING:
    from ._build import Parts
    from ._comparison import Comparisons
    from ._output import Output

# Far from the small numbers that splitting the seed's key amounts to.
_CARD = 2000
SECOND_NAMES = {"evaluation.num_steps": "--steps", "evaluation.num_objectives": "--objectives"}


@with_settings(
    lambda path: path[0] in ("objective", "evaluation", "seed"),
    SECOND_NAMES,
    show_defaults=False,
)
def evaluate(
    source: Source,
    assignments: Assignments = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Compare with hand-designed optimizers."),
    ] = True,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Also how far it generalizes: longer, other sizes and kinds, scales; takes minutes.",
        ),
    ] = False,
    modules: Classes = None,
    out: Annotated[
        Path | None,
        folder_option("Folder to make; RUN/evaluations/<time>-<objective> if not given; a file: none."),
    ] = None,
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Compare a trained optimizer again: other draws, longer, or another objective.

    Whatever is not given is as in the training, but for the seed, which is the next one.
    """
    if card and not baselines:
        raise UsageError("option '--card': compares with baselines; leave out --no-baselines")
    layers = [*read_assignments(assignments or []), settings]

    start(cores=cores, cache=cache)
    from ._output import Output

    output = Output(quiet, as_json)
    run(source, layers, out, output, with_baselines=baselines, with_card=card, modules=modules or ())


def run(
    source: Path,
    layers: Sequence[Layer],
    out: Path | None,
    output: "Output",
    *,
    with_baselines: bool,
    with_card: bool = False,
    modules: Sequence[str] = (),
) -> None:
    """Compares the optimizers of a run, or one from a file.

    **Arguments:**

    - `source`: the folder or the file.
    - `layers`: settings over those of the training.
    - `out`: a folder to make for the results. If `None`, it is made in the run's folder; for a
        file, nothing is written.
    - `output`: what the user sees.
    - `with_baselines`: whether to compare with hand-designed optimizers.
    - `modules`: whose classes the file may have, beside those of the plug-ins in its settings.
    - `with_card`: whether to make a card of generalization; after Ctrl-C, the part that is done is kept.

    **Raises:** `UsageError` before anything is written; `typer.Exit(130)` after Ctrl-C.
    """
    import jax.random as jr

    from ._build import build
    from ._card import keep_card, run_card
    from ._comparison import LEARNED, facts_of, numbers_of, show_comparisons, title_of, write_comparisons
    from ._few_shot import write_fits

    files = files_of(source)
    check_free(out)
    optimizers, metadata = load_optimizers(files, modules)
    config = settings_for(metadata, layers)
    parts = build(config)
    check_fits(optimizers[0], parts)
    if with_card:
        check_one_family(parts, "option '--card'")
    restarts = len(optimizers) if len(optimizers) > 1 else None
    optimizer = _stack(optimizers) if restarts else optimizers[0]
    facts = {**facts_of(parts, config.seed), "source": [str(file) for file in files]}
    facts["optimizer"] = type(optimizers[0]).__name__
    title = title_of(facts)
    output.say(_intention(source, facts))

    comparisons = compared({LEARNED: optimizer}, parts, output, restarts, with_baselines=with_baselines)
    folder = None
    # First, because it may be that nothing can be written.
    show_comparisons(comparisons, output, title)
    unwritten = None
    if out or source.is_dir():
        try:
            folder = make_folder(out, source / "evaluations", config.objective.kind)
            write_comparisons(folder, comparisons, output, title=title, facts=facts)
            write_fits(folder, {LEARNED: optimizer}, parts, output, restarts=restarts)
        except (OSError, UsageError) as error:
            unwritten = describe(error) or str(error)
        else:
            output.say(f"Curves and numbers are in {folder}.")
    answer = {"folder": str(folder) if folder else None, **facts, **numbers_of(comparisons)}
    if with_card:
        key = jr.fold_in(jr.key(config.seed), _CARD)
        card = run_card(optimizer, parts, output, restarts=restarts, key=key)
        keep_card(folder, card, output, facts)
        answer["card"] = card.as_dict()
    output.result(answer)
    if unwritten:
        raise Failure(f"{unwritten}; nothing was kept but what is shown")
    if with_card and not answer["card"]["complete"]:
        interrupted()


def compared(
    optimizers: dict[str, Any],
    parts: "Parts",
    output: "Output",
    restarts: int | None = None,
    *,
    with_baselines: bool = False,
) -> "Comparisons":
    """Comparisons on the draws that those at the end of a training with this seed have.

    **Arguments:**

    - `optimizers`, `parts`, `output`, `restarts`, `with_baselines`: of `run_comparisons`.

    **Raises:** `typer.Exit(130)` after Ctrl-C, which it tells.
    """
    import jax.random as jr

    from ._comparison import run_comparisons

    key = jr.split(jr.key(parts.config.seed), 3)[2]
    try:
        return run_interruptibly(
            lambda: run_comparisons(
                optimizers, parts, output, restarts=restarts, key=key, with_baselines=with_baselines
            )
        )
    except KeyboardInterrupt:
        output.say("Interrupted; nothing was written.")
        interrupted()


def files_of(source: Path, label: str = "RUN_OR_FILE") -> list[Path]:
    """The files of a run's trained optimizers, or the one that is named, by its path or in the gallery.

    **Raises:** `UsageError` if there is none, about the argument called `label`.
    """
    from ._run import OPTIMIZER_FILE, RESTART_PATTERN

    if source.is_file():
        return [source]
    if is_on_hub(source):
        try:
            return [Path(local_path(source))]
        except (ImportError, OSError, ValueError) as error:
            raise UsageError(f"{label}: {error}") from None
    gallery = l2o.gallery.names()
    if not source.is_dir() and str(source) in gallery:
        return [l2o.gallery.file_of(str(source))]
    if not source.is_dir():
        raise UsageError(
            f"{label}: there is neither a folder nor a file {source}; in the gallery are {', '.join(gallery)}"
        )
    going_on = ""
    if (source / RECORD).is_file() and read_record(source, label).get("result") != "completed":
        going_on = f"; `l2o resume {source}` goes on with it"
    single = source / OPTIMIZER_FILE
    files = [single] if single.is_file() else sorted(source.glob(RESTART_PATTERN))
    if not files:
        raise UsageError(
            f"{label}: {source} holds no trained optimizer, neither {OPTIMIZER_FILE} nor {RESTART_PATTERN}"
            f"{going_on}"
        )
    return files


def file_of(source: Path, label: str = "RUN_OR_FILE") -> Path:
    """As `files_of`, where there is one.

    **Raises:** `UsageError` for a run of several restarts, too.
    """
    files = files_of(source, label)
    if len(files) > 1:
        raise UsageError(f"{label}: {source} holds {len(files)} restarts; name one of its files, {files[0]}")
    return files[0]


def load_optimizers(
    files: Sequence[Path], modules: Sequence[str] = (), label: str = "RUN_OR_FILE"
) -> tuple[list[Any], dict[str, Any]]:
    """Trained optimizers and what the first one's file says of itself.

    **Arguments:**

    - `files`: of `files_of`.
    - `modules`: whose classes the files may have, beside those of the plug-ins in their settings.
    - `label`: what an error blames.

    **Raises:** `UsageError` for files that cannot be read, or hold something else.
    """
    for name in modules:
        try:
            import_reference(name, name)
        except UsageError as error:
            raise UsageError(f"option '--classes': {error.format_message()}") from None
    try:
        metadata = l2o.load_metadata(files[0])
        config = metadata.get("config")
        classes = classes_of(modules) + (classes_in(config) if isinstance(config, dict) else [])
        optimizers = [l2o.load(file, classes=classes) for file in files]
    except (OSError, ValueError) as error:
        here = "; on the command line that is --classes MODULE" if "classes=[" in str(error) else ""
        raise UsageError(f"{label}: {error}{here}") from None
    if not isinstance(optimizers[0], l2o.optimizers.AbstractOptimizer):
        what = type(optimizers[0]).__name__
        raise UsageError(f"{label}: {files[0]} holds no optimizer, but an object of type {what}")
    return optimizers, metadata


def settings_for(metadata: dict[str, Any], layers: Sequence[Layer]) -> Table:
    """The settings of a comparison: those of the training, with the next seed, and over them the given ones.

    **Arguments:**

    - `metadata`: of `load_optimizers`.
    - `layers`: what was asked for.
    """
    asked: Layer = {}
    for layer in map(with_names_of_today, layers):
        asked = merge(asked, layer)
    trained = metadata.get("config")
    if not isinstance(trained, dict):
        # Saved by `l2o_eqx.save`, not by `l2o train`: the presets of the objective hold.
        return resolve([asked])
    trained = dict(trained)
    table = asked.get("objective", {})
    kind = (table if isinstance(table, dict) else {"kind": table}).get("kind", trained["objective"]["kind"])
    if kind != trained["objective"]["kind"]:
        # What was fit for one objective may take hours on another one, whose presets know better.
        trained.pop("evaluation", None)
    return resolve([trained, {"seed": trained.get("seed", 0) + 1}, asked])


def check_fits(optimizer: Any, parts: "Parts") -> None:
    """Refuses an optimizer that cannot have a state for the objective, with a `UsageError`."""
    import jax

    from l2o_eqx.objectives import params_shapes
    from l2o_eqx.objectives._mixture import families_of

    for name, family in families_of(parts.family).items():
        shapes = params_shapes(family)
        try:
            jax.eval_shape(optimizer.init, jax.eval_shape(optimizer.initial_params, shapes))
        except ValueError as error:
            which = f" {name}" if name else ""
            raise UsageError(f"this optimizer does not fit the objective{which}: {error}") from None


def check_one_family(parts: "Parts", label: str) -> None:
    """Refuses several families, with a `UsageError` about `label`."""
    from l2o_eqx.objectives._mixture import families_of

    families = families_of(parts.family)
    if "" not in families:
        raise UsageError(
            f"{label}: works on one kind of objective, but there are several here ({', '.join(families)}); "
            "name one, such as --objective rosenbrock"
        )


def _stack(optimizers: Sequence[Any]) -> Any:
    import jax
    import jax.numpy as jnp

    def stack(*leaves: Any) -> Any:
        return jnp.stack(leaves) if isinstance(leaves[0], jax.Array) else leaves[0]

    return jax.tree.map(stack, *optimizers)


def _intention(source: Path, facts: dict[str, Any]) -> str:
    from ._comparison import LEARNED
    from ._run import describe_device

    data = f"; {facts['data']['description']}" if facts["data"] else ""
    return (
        f"Comparing {LEARNED} ({facts['optimizer']}, from {source}) on {facts['objective']}: "
        f"{facts['num_objectives']} objectives x {facts['num_steps']} steps, seed {facts['seed']}"
        f"{data}; on {describe_device()}"
    )
