"""`l2o objectives`. Lists come from the library's sources; only a picture starts JAX."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ._errors import UsageError, suggestion
from ._folder import check_free
from ._kinds import entry_points, is_plain_kind, kinds, own_kinds, signature
from ._options import OUTPUT, Assignments, Quiet, with_settings
from ._resolve import Layer, merge, nested, read_assignments, resolve
from ._settings import OLD_KINDS
from ._signatures import Signature
from ._start import start

# Far from the small numbers that splitting the seed's key amounts to.
_KEY = 3000
_FORMATS = (".png", ".svg", ".pdf")


@with_settings(lambda path: path in (("seed",),) or (path[0] == "objective" and path[1:] != ("kind",)))
def objectives(
    name: Annotated[
        str | None,
        typer.Argument(help="Family to describe; all are listed if not given.", metavar="[NAME]"),
    ] = None,
    assignments: Assignments = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to make with a picture of a family of two coordinates: png, svg or pdf.",
            metavar="FILE",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    optimizer: Annotated[
        Path | None,
        typer.Option(
            help="File or run folder of a trained optimizer, the first of several, to draw beside Adam.",
            metavar="FILE",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of the paths.", metavar="INT", rich_help_panel=OUTPUT)
    ] = 200,
    quiet: Quiet = False,
    *,
    settings: dict[str, Any],
) -> None:
    """List what can be minimized, describe one family, or draw it.

    A picture has the contours of one objective, its minimum, and the path of an Adam whose learning rate is
    tuned on other draws.
    """
    if name is None:
        if out or optimizer or settings or assignments:
            raise UsageError("NAME: must be given for a picture or settings")
        _say(quiet, _listed())
        return
    name = OLD_KINDS["objective"].get(name, name)
    if name not in kinds("objectives") and is_plain_kind("objectives", name):
        raise UsageError(f"NAME: got {name!r}; {suggestion(name, kinds('objectives'))}")
    if not out and (optimizer or settings or assignments):
        raise UsageError("option '--out': must be given for settings, and for the path of an --optimizer")
    if out:
        _check_picture(out)
    _say(quiet, _described(name))
    if out:
        layers = [*read_assignments(assignments or []), settings, nested(("objective", "kind"), name)]
        _draw(name, layers, out, optimizer, steps)
        _say(quiet, [f"The picture is in {out}."])


def _say(quiet: bool, lines: Any) -> None:
    if not quiet:
        for line in lines:
            typer.echo(line)


def _listed() -> Iterator[str]:
    known = {kind: signature("objectives", kind) for kind in sorted(own_kinds("objectives"))}
    wrappers = {kind: s for kind, s in known.items() if _wraps(s)}
    yield from _section("Families", {k: s.summary for k, s in known.items() if k not in wrappers})
    yield from _section("Around other families", {k: s.summary for k, s in wrappers.items()})
    # They are not imported to be listed.
    others = {k: p.value for k, p in entry_points("objectives").items() if k not in known}
    yield from _section("Of other packages", others)


def _wraps(known: Signature) -> bool:
    return any(p.type.group == "objectives" for p in known.parameters.values())


def _section(title: str, lines: Mapping[str, str]) -> Iterator[str]:
    if lines:
        width = max(map(len, lines))
        yield f"{title}:"
        yield from (f"  {kind:<{width}}  {text}" for kind, text in lines.items())


def _described(name: str) -> Iterator[str]:
    import inspect

    from ._kinds import load

    start()
    yield inspect.getdoc(load("objectives", name)) or ""


def _check_picture(out: Path) -> None:
    if out.suffix not in _FORMATS or not out.parent.is_dir():
        raise UsageError(f"option '--out': {out} must end in {', '.join(_FORMATS)}, in a folder that exists")
    check_free(out)


def _draw(name: str, layers: list[Layer], out: Path, optimizer: Path | None, steps: int) -> None:
    start()
    import jax
    import jax.random as jr

    from l2o_eqx import plots
    from l2o_eqx.files import replacing
    from l2o_eqx.objectives import params_shapes

    from ._build import build
    from ._evaluate import check_fits, files_of, load_optimizers

    asked: Layer = {}
    for layer in layers:
        asked = merge(asked, layer)
    parts = build(resolve([asked]))
    shapes = [leaf.shape for leaf in jax.tree.leaves(params_shapes(parts.family))]
    if shapes != [(2,)]:
        raise UsageError(f"option '--out': only two coordinates can be drawn, but {name!r} has {shapes}")
    runs: dict[str, Any] = {}
    if optimizer:
        files = files_of(optimizer, "option '--optimizer'")
        runs["learned"] = load_optimizers(files[:1], label="option '--optimizer'")[0][0]
        check_fits(runs["learned"], parts)
    okey, tkey, key = jr.split(jr.fold_in(jr.key(parts.config.seed), _KEY), 3)
    runs |= _tuned_adam(parts.family, steps, tkey)
    objective = parts.family.sample(okey)
    with replacing(out) as temporary:
        plots.plot_objective(objective, runs, temporary, num_steps=steps, title=name, key=key)


def _tuned_adam(family: Any, steps: int, key: Any) -> dict[str, Any]:
    import optax

    import l2o_eqx as l2o
    from l2o_eqx.optimizers import FromOptax

    baseline = l2o.Baseline(optax.adam, schedules=("cosine",))
    comparison = l2o.compare(
        {"Adam": baseline}, family, num_steps=steps, num_objectives=1, num_tuning_objectives=32, key=key
    )
    if "Adam" not in comparison.settings:
        # It diverges with every rate: there is no path to draw.
        return {}
    setting = comparison.settings["Adam"]
    name = f"Adam from {setting['learning_rate']:.3g} on a cosine"
    return {name: FromOptax(baseline.with_settings(steps, **setting))}
