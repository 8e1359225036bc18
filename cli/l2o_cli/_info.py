"""`l2o info`: what a file says of itself. Its classes are not needed: it reads those of plug-ins, too."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import l2o_eqx as l2o

from ._errors import UsageError
from ._options import AsJson
from ._start import start

_SOURCE = "FILE"


def info(
    source: Annotated[
        Path,
        typer.Argument(
            help="File of `l2o_eqx.save`, run folder (its first file), or name in the gallery.",
            metavar=_SOURCE,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Tell what a file of a trained optimizer holds, and how it came about."""
    start()
    from l2o_eqx.files import dumps

    from ._evaluate import files_of

    file = files_of(source, _SOURCE)[0]
    try:
        facts = facts_of_file(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{_SOURCE}: {error}") from None
    if str(source) in l2o.gallery.names() and not source.exists():
        facts["summary"] = l2o.gallery.card(str(source))["summary"]
    typer.echo(dumps(facts, indent=2) if as_json else "\n".join(describe_file(facts)))


def facts_of_file(file: Path) -> dict[str, Any]:
    """What `--json` prints.

    **Raises:** `FileFormatError` for what is no such file; `OSError` if it cannot be read.
    """
    header = l2o.load_header(file)
    arrays, metadata = header["arrays"], header["metadata"]
    learned = {
        name: array
        for name, array in arrays.items()
        if "float" in array["dtype"] and not name.startswith("~static.")
    }
    config = metadata.get("config")
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "format": header["format"],
        "class": _class(header["structure"]),
        "settings": dict(_settings(header["structure"], "")),
        "num_meta_parameters": sum(math.prod(array["shape"]) for array in learned.values()),
        "arrays": arrays,
        "config": config if isinstance(config, dict) else None,
        "metadata": {name: value for name, value in metadata.items() if name != "config"},
        "versions": header["versions"],
    }


def _class(node: Any) -> str | None:
    return node["class"][0] if isinstance(node, dict) and "class" in node else None


def _settings(node: Any, above: str) -> Iterator[tuple[str, Any]]:
    # Plain values by dotted name, with the class of every part; Equinox's own modules are left out.
    if not isinstance(node, dict):
        yield above, node
        return
    ((tag, value),) = node.items()
    if tag in ("function", "dtype"):
        yield above, value
    elif tag in ("list", "tuple"):
        if value and all(not isinstance(x, dict) for x in value):
            yield above, value
            return
        for i, inner in enumerate(value):
            yield from _settings(inner, f"{above}.{i}")
    elif tag == "dict" or (tag == "class" and not value[0].startswith("equinox")):
        if tag == "class" and above:
            yield above, value[0]
        fields = value if tag == "dict" else value[1]
        for name, inner in fields.items():
            yield from _settings(inner, f"{above}.{name}" if above else name)


def describe_file(facts: Mapping[str, Any]) -> Iterator[str]:
    """Lines for people of what `facts_of_file` returns."""
    yield f"{facts['file']}: {facts['bytes']:,} bytes, format {facts['format']}, checksum right"
    if "summary" in facts:
        yield facts["summary"]
    held = facts["class"] or "arrays alone, or a tree without a class"
    count = len(facts["arrays"])
    yield f"holds: {held}; {facts['num_meta_parameters']:,} meta-parameters, {count} arrays"
    for name, value in facts["settings"].items():
        yield f"  {name} = {_shown(value)}"
    yield from _training(facts["config"], facts["metadata"])
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield f"written by: {versions}"


def _training(config: Mapping[str, Any] | None, metadata: Mapping[str, Any]) -> Iterator[str]:
    if config is None:
        yield "trained on: the file does not say; it was not written by `l2o train`"
    else:
        objective, meta = dict(config.get("objective", {})), config.get("meta", {})
        kind = objective.pop("kind", "?")
        settings = ", ".join(f"{name} {_shown(value)}" for name, value in objective.items())
        of = "distilled" if "distilled_from" in metadata else "trained"
        yield f"{of} on: {kind}" + (f" ({settings})" if settings else "")
        sizes = " x ".join(
            f"{_shown(meta[name])} {text}"
            for name, text in (("num_steps", "steps"), ("num_objectives", "objectives"))
            if name in meta
        )
        done = metadata.get("super_epochs_done", meta.get("super_epochs"))
        if of == "trained":
            yield f"  {done} super epochs x {sizes}, seed {config.get('seed')}, preset {config.get('preset')}"
    for name, value in metadata.items():
        if value is not None and name != "super_epochs_done":
            yield f"{name}: {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(x)}" for name, x in value.items() if x is not None)
    if isinstance(value, list):
        return " ".join(map(_shown, value)) if value else "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
