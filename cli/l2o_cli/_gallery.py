"""`l2o gallery`: the trained optimizers of the package. Only `build` starts JAX."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import l2o_eqx as l2o

from ._errors import UsageError, counted, suggestion
from ._folder import check_free
from ._options import AsJson, Cache, Cores, Quiet, folder_option
from ._resolve import read_toml, resolve
from ._start import start

# What a card keeps of a row of the comparison.
_ROW = ("name", "median", "mean", "q25", "q75", "diverged", "broken", "settings", "evaluations_per_step")
_ROW += ("beaten", "beaten_low", "beaten_high")
# And of the comparison beside its rows.
_FACTS = ("objective", "objective_settings", "num_steps", "num_objectives", "seed", "data")
_NUMBERS = ("averaged_steps", "best_so_far", "best_baseline", "steps_to_pass")


def gallery(
    action: Annotated[
        Literal["list", "show", "build", "page"],
        typer.Argument(help="What to do; page prints all cards as one document."),
    ] = "list",
    name: Annotated[
        str | None, typer.Argument(help="Which optimizer to show or to build.", metavar="[NAME]")
    ] = None,
    out: Annotated[
        Path | None,
        folder_option("With build: run folder to make; gallery-NAME if not given."),
    ] = None,
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """List the trained optimizers of the package, show the card of one, or train it again.

    What build makes is in its run folder, with NAME.safetensors and its card NAME.json beside the files of
    the training.
    """
    given = {
        "--out": out is not None,
        "--cores": cores is not None,
        "--no-cache": not cache,
        "--quiet": quiet,
    }
    if action != "build" and any(given.values()):
        option = next(option for option, is_given in given.items() if is_given)
        raise UsageError(f"option '{option}': is for `l2o gallery build NAME`, not for {action}")
    if action in ("list", "page"):
        if name is not None:
            raise UsageError(f"NAME: got {name!r}, but {action} is of all of them; `l2o gallery show {name}`")
        _show_all(action, as_json)
        return
    known = l2o.gallery.names()
    if name is None:
        raise UsageError(f"NAME: must be given; possible: {', '.join(known)}")
    if name not in known:
        raise UsageError(f"NAME: got {name!r}; {suggestion(name, known)}")
    if action == "show":
        card = l2o.gallery.card(name)
        typer.echo(json.dumps(card, indent=2) if as_json else as_markdown(card))
        return
    out = out or Path(f"gallery-{name}")
    check_free(out)
    config = resolve([read_toml(l2o.gallery.recipe_of(name))])
    start(cores=cores, cache=cache)
    from ._output import Output
    from ._train import run

    output = Output(quiet, as_json)
    run(config, out, output)
    make_card(name, out)
    output.say(f"The optimizer and its card are {out / name}.safetensors and {out / name}.json.")


def _show_all(action: str, as_json: bool) -> None:
    cards = [l2o.gallery.card(name) for name in l2o.gallery.names()]
    if as_json:
        typer.echo(json.dumps(cards, indent=2))
    elif action == "page":
        typer.echo(as_page(cards), nl=False)
    else:
        width = max(len(card["name"]) for card in cards)
        for card in cards:
            typer.echo(f"{card['name']:<{width}}  {card['summary']}")
        typer.echo("`l2o gallery show NAME` tells what one is good for, and what not.")


def make_card(name: str, folder: Path) -> dict[str, Any]:
    """Writes `NAME.safetensors` and the card `NAME.json` into a finished run's folder.

    **Arguments:**

    - `name`: of the gallery, which has the words of the card.
    - `folder`: of the run of its recipe, with one restart.

    **Returns:** the card.
    """
    import datetime

    from l2o_eqx.files import dumps, write_text

    from ._run import OPTIMIZER_FILE

    run, comparison = (
        json.loads((folder / file).read_text(encoding="utf-8")) for file in ("run.json", "comparison.json")
    )
    file = shutil.copyfile(folder / OPTIMIZER_FILE, folder / f"{name}.safetensors")
    begun, ended = (datetime.datetime.fromisoformat(run[key]) for key in ("started", "ended"))
    card = {
        "format": 1,
        "name": name,
        **l2o.gallery.notes_on(name),
        "optimizer": type(l2o.load(file)).__name__,
        "num_meta_parameters": run["num_meta_parameters"],
        "command": f"l2o gallery build {name}",
        "seed": run["seed"],
        "cost": {
            "seconds": round((ended - begun).total_seconds()),
            **{key: run[key] for key in ("cpu", "cores", "device", "platform")},
        },
        "versions": {**run["versions"], "python": run["python"]},
        "training": {
            "restarts": 1,
            "super_epochs": run["super_epochs_done"],
            "skipped_updates": run["skipped_updates"],
            "failed_objectives": len(run["failed_objectives"]),
            "taken": run.get("taken"),
        },
        "comparison": {key: comparison[key] for key in _FACTS} | _numbers(comparison),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    write_text(folder / f"{name}.json", dumps(card, indent=2) + "\n")
    return card


def _numbers(comparison: dict[str, Any]) -> dict[str, Any]:
    # Of several families, each has its own.
    if "families" in comparison:
        return {"families": {name: _numbers(one) for name, one in comparison["families"].items()}}
    rows = [{key: row[key] for key in _ROW} for row in comparison["summary"]]
    return {**{key: comparison[key] for key in _NUMBERS}, "summary": rows}


# Cards as text.


def as_page(cards: list[dict[str, Any]]) -> str:
    """docs/gallery.md."""
    return "\n".join([_HEAD, *(f"{as_markdown(card)}\n" for card in cards)]).rstrip() + "\n"


_HEAD = """# The gallery: trained optimizers

They come with the package; nothing is downloaded. This page is made from their cards by `l2o gallery page`.

    tx = l2o_eqx.as_optax(l2o_eqx.pretrained("quadratic"))

`l2o gallery show NAME` prints a card, `l2o gallery build NAME` trains an optimizer again, `l2o evaluate NAME`
and `l2o compare NAME adam` judge it on objectives of yours. Below are medians and quartiles, over unseen
objectives, of the loss where the last step begins; each optimizer is from a single training. *beaten* is the
share of objectives on which the trained one (*learned*) ends lower.
"""


def as_markdown(card: dict[str, Any]) -> str:
    """A card for people."""
    found, training = card["comparison"], card["training"]
    parts = [
        f"## {card['name']}\n\n{card['summary']}",
        *(_list(title, card[key]) for key, title in _LISTS.items()),
        f"`{card['optimizer']}`, {card['num_meta_parameters']:,} meta-parameters.{_way(card)}",
        *comparison_tables(found),
    ]
    numbers = [*found["families"].values()] if "families" in found else [found]
    if any(row["evaluations_per_step"] > 1 for one in numbers for row in one["summary"]):
        parts.append("`*` evaluates f several times a step.")
    if numbers[0]["averaged_steps"] > 1:
        parts.append(f"Losses are means of the last {numbers[0]['averaged_steps']} steps.")
    if numbers[0]["best_so_far"]:
        parts.append("A loss is the lowest of the run until then.")
    if training["failed_objectives"] or training["skipped_updates"]:
        failed, skipped = training["failed_objectives"], training["skipped_updates"]
        lost = f"{counted(failed, 'objective')} with losses that were not finite"
        parts.append(f"{lost}, {counted(skipped, 'meta-update')} left out.")
    return "\n\n".join(parts)


_LISTS = {"good_for": "Good for", "not_for": "Not for", "failures": "Where it fails"}


def _list(title: str, lines: list[str]) -> str:
    return "\n".join([f"{title}:", "", *(f"- {line};" for line in lines[:-1]), f"- {lines[-1]}."])


def _way(card: dict[str, Any]) -> str:
    cost, training = card["cost"], card["training"]
    return (
        f" Trained by `{card['command']}` (seed {card['seed']}, {training['super_epochs']} super epochs) in "
        f"{cost['seconds']} seconds on {cost['cores']} {'core' if cost['cores'] == 1 else 'cores'} "
        f"({cost['cpu']}), comparison included."
    )


def comparison_tables(found: Mapping[str, Any]) -> list[str]:
    """The rows of a `comparison.json` in Markdown, a table for each family."""
    if "families" not in found:
        return [_table(found)]
    return [_table({**found, **own, "objective": name}) for name, own in found["families"].items()]


def _table(found: Mapping[str, Any]) -> str:
    from ._output import _setting, show_number

    objectives = counted(found["num_objectives"], "unseen objective")
    title = f"{objectives} of {found['objective']}, {found['num_steps']} steps:"
    rows = ["| optimizer | median | 25 % | 75 % | setting | beaten |", "|---|---|---|---|---|---|"]
    for row in found["summary"]:
        numbers = [show_number(float("inf") if row[k] is None else row[k]) for k in ("median", "q25", "q75")]
        several = "*" if row["evaluations_per_step"] > 1 else ""
        beaten = "" if row["beaten"] is None else f"{row['beaten']:.0%}"
        cells = [row["name"] + several, *numbers, _setting(row["settings"]), beaten]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([title, "", *rows])
