"""`l2o export`: a folder to be given away, as model hubs show them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import l2o_eqx as l2o
from l2o_eqx.hub import OPTIMIZER

from ._errors import UsageError, in_brief
from ._folder import check_free
from ._gallery import as_markdown, comparison_tables
from ._info import describe_file, facts_of_file
from ._options import folder_option
from ._start import start

_SOURCE = "RUN_OR_FILE"
FACTS, CARD = "optimizer.json", "README.md"


def export(
    source: Annotated[
        Path,
        typer.Argument(help="Run folder, file of `l2o_eqx.save`, or name in the gallery.", metavar=_SOURCE),
    ],
    to: Annotated[Path, folder_option("Folder to make.")],
) -> None:
    """Make a folder to share a trained optimizer: its file, its facts and a card.

    The file is optimizer.safetensors, the facts are optimizer.json, the card is README.md. Uploaded to the
    Hugging Face hub as it is, `l2o_eqx.load("hf://owner/name")` finds it there.
    """
    check_free(to, "--to")
    start()
    from l2o_eqx.files import dumps

    from ._evaluate import file_of

    file = file_of(source, _SOURCE)
    try:
        facts = facts_of_file(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{_SOURCE}: {error}") from None
    known = _gallery_card(source) or _comparison_beside(file)
    card = _card(to.name, facts | {"file": OPTIMIZER}, known)
    facts |= {"file": OPTIMIZER, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    facts |= {"comparison": known["comparison"]} if known else {}
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as scratch:
            folder = Path(scratch) / "made"
            folder.mkdir()
            shutil.copyfile(file, folder / OPTIMIZER)
            (folder / FACTS).write_text(dumps(facts, indent=2) + "\n", encoding="utf-8")
            (folder / CARD).write_text(card, encoding="utf-8")
            os.rename(folder, to)
    except OSError as error:
        raise UsageError(f"option '--to': {to} cannot be made: {error.strerror}") from None
    typer.echo(f"{to} holds {OPTIMIZER}, {FACTS} and {CARD}.")


def _gallery_card(source: Path) -> dict[str, Any] | None:
    is_named = str(source) in l2o.gallery.names() and not source.exists()
    return l2o.gallery.card(str(source)) if is_named else None


def _comparison_beside(file: Path) -> dict[str, Any] | None:
    # A run's own, which is of the optimizer that it has taken.
    path = file.parent / "comparison.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"comparison": found, "tables": comparison_tables(found)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{_SOURCE}: {path} is no comparison of `l2o train` ({in_brief(repr(error))})"
        ) from None


def _card(name: str, facts: Mapping[str, Any], known: Mapping[str, Any] | None) -> str:
    held = "\n".join(describe_file(facts))
    parts = [
        "---\nlibrary_name: l2o_eqx\ntags: [learned-optimizer, meta-learning, jax, equinox, optax]\n---",
        f"# {name}",
        *_usage(name, str(facts["class"]).rpartition(":")[2]),
        f"What the file says of itself (`l2o info {OPTIMIZER}`):",
        f"```text\n{held}\n```",
    ]
    if known and "good_for" in known:
        parts.append(as_markdown(dict(known)))
    elif known:
        parts += [
            "How it did beside tuned baselines, on objectives that none of them has seen:",
            *known["tables"],
        ]
    parts.append(
        "Where it was not trained it may be slow or diverge: `l2o evaluate` and `l2o compare` judge it on "
        "your objectives."
    )
    return "\n\n".join(parts) + "\n"


def _usage(name: str, kind: str) -> list[str]:
    if kind == l2o.optimizers.BlackBoxRNN.__name__:
        return [
            "It minimizes what can only be evaluated, one number per evaluation; made with l2o_eqx.",
            f"```sh\nl2o minimize my_module:f --space space.toml --optimizer {OPTIMIZER}\n```",
        ]
    begin = "params = tx.initial_params(params)  # where it has learned to begin\n"
    return [
        "A trained optimizer for [optax](https://optax.readthedocs.io) loops, made with l2o_eqx.",
        "```python\nimport l2o_eqx\n\n"
        f'tx = l2o_eqx.as_optax(l2o_eqx.load("hf://OWNER/{name}"))  # or the path of {OPTIMIZER}\n'
        f"{begin if kind == l2o.optimizers.LearnedStart.__name__ else ''}```",
        "`l2o_eqx.optimizers.Safeguarded` around it falls back on an optimizer that you name.",
    ]
