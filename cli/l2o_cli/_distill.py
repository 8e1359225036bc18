"""`l2o distill`. What starts JAX is imported once the options are read."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import l2o_eqx as l2o

from ._errors import UsageError
from ._evaluate import (
    SECOND_NAMES,
    check_fits,
    check_one_family,
    compared,
    file_of,
    load_optimizers,
    settings_for,
)
from ._folder import check_free, make_folder
from ._interrupt import interrupted, run_interruptibly
from ._options import AsJson, Assignments, Cache, Classes, Cores, Quiet, Source, folder_option, with_settings
from ._resolve import plain, read_assignments
from ._start import start

EQUATION = "equation"
_SYMBOLS = (
    "g: gradient; m0.9: its running mean, v: that of its square; u: the last update; L: curvature; theta: "
    "params; cos*: times a cosine to nearly zero at the end. l2o_eqx.optimizers.Equation has all terms."
)
FILE, FACTS = "equation.safetensors", "distillation.json"


@with_settings(
    lambda path: path[0] in ("objective", "seed") or path[:2] in _EVALUATION,
    SECOND_NAMES,
    show_defaults=False,
)
def distill(
    source: Source,
    assignments: Assignments = None,
    terms: Annotated[int, typer.Option(help="Most terms that the equation may have.", min=1, max=10)] = 4,
    min_gain: Annotated[
        float, typer.Option(help="Least that a further term must add to R².", min=0.0, max=0.99)
    ] = 0.01,
    per: Annotated[
        Literal["tree", "layer", "leaf", "rank"],
        typer.Option(
            help="Whether all params have one equation, or each layer, array, or number of axes its own."
        ),
    ] = "tree",
    out: Annotated[
        Path | None,
        folder_option("Folder to make, with the equation as an optimizer; none if not given."),
    ] = None,
    modules: Classes = None,
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Fit an equation to what a trained optimizer does, and compare the two as optimizers.

    The objective is that of the training if not given. R² tells how much of the updates the equation
    says; the table, what it is worth as an optimizer.
    """
    layers = [*read_assignments(assignments or []), settings]
    check_free(out)
    start(cores=cores, cache=cache)
    import jax.random as jr

    from l2o_eqx.files import dumps, write_text

    from ._build import build
    from ._comparison import facts_of, numbers_of, show_comparisons, title_of
    from ._comparison import write_comparisons as write
    from ._output import Output

    output = Output(quiet, as_json)
    (optimizer,), metadata = load_optimizers([file_of(source)], modules or ())
    config = settings_for(metadata, layers)
    trained = {name: metadata[name] for name in ("super_epochs_done", "versions") if name in metadata}
    parts = build(config)
    check_one_family(parts, "option '--objective'")
    check_fits(optimizer, parts)
    key = jr.key(config.seed)
    name = source.stem if source.is_file() else source.resolve().name
    if name == EQUATION:
        name = f"{EQUATION} before"

    def work() -> l2o.Distillation:
        with output.progress("fitting", 1, "") as update:
            found = l2o.distill(
                optimizer,
                parts.family,
                num_steps=parts.evaluation_steps,
                max_terms=terms,
                min_gain=min_gain,
                label=None if per == "tree" else getattr(l2o.optimizers, f"by_{per}"),
                key=jr.fold_in(key, 1),
            )
            update(1, "done")
        return found

    try:
        found = run_interruptibly(work)
    except l2o.ArgumentError as error:
        raise UsageError(f"RUN_OR_FILE: {error}") from None
    except KeyboardInterrupt:
        output.say("Interrupted; nothing was written.")
        interrupted()
    comparisons = compared({name: optimizer, EQUATION: found.optimizer}, parts, output)
    facts = {**facts_of(parts, config.seed), "source": str(source), "optimizer": type(optimizer).__name__}
    groups = {name: _facts(one) for name, one in found.groups.items()}
    title = title_of(facts)
    if out:
        make_folder(out, out.parent, "")
        # With the seed of the training, after which comparisons of both have the same draws.
        seed = (metadata.get("config") or plain(config))["seed"]
        about = {
            "config": {**plain(config), "seed": seed},
            "distilled_from": {"source": str(source), **trained},
        }
        l2o.save(out / FILE, found.optimizer, metadata=about)
        write_text(out / FACTS, dumps({"format": 1, **facts, "groups": groups}, indent=2) + "\n")
        write(out, comparisons, output, title=title, facts=facts, by=name)
    for label, group in found.groups.items():
        output.say(f"{label}: {group.equation}")
        for fit in group.fits:
            equation = l2o.optimizers.Equation(fit.terms, fit.coefficients)
            output.say(f"  R² {fit.r2:.3f}, on other runs {fit.held_out_r2:.3f}: {equation}")
        output.say(f"  R² {group.all_terms_r2:.3f} with all candidates.")
    output.say(_SYMBOLS)
    show_comparisons(comparisons, output, title, name)
    if out:
        output.say(f"The equation, as an optimizer, is {out / FILE}.")
    output.result(
        {"folder": str(out) if out else None, **facts, "groups": groups, **numbers_of(comparisons, name)}
    )


def _facts(group: l2o.FittedEquation) -> dict[str, Any]:
    return {
        "equation": str(group.equation),
        "terms": list(group.equation.terms),
        "coefficients": group.equation.coefficients.tolist(),
        "r2": group.r2,
        "held_out_r2": group.held_out_r2,
        "all_terms_r2": group.all_terms_r2,
        "fits": [fit._asdict() for fit in group.fits],
    }


_EVALUATION = (("evaluation", "num_steps"), ("evaluation", "num_objectives"), ("evaluation", "last"))
