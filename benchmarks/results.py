"""Where the programs of this folder keep their numbers: whole files, in folders made before work begins."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from l2o_eqx.files import write_text


def make_folder(folder: Path) -> Path:
    """Also of what is to be in it; `OSError` where that cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make_parent(file: Path | None) -> Path | None:
    if file is not None:
        make_folder(file.parent)
    return file


Folder = Annotated[Path, typer.Option(help="Folder of the results.", callback=make_folder)]
File = Annotated[Path | None, typer.Option(help="JSON file of the numbers.", callback=_make_parent)]


def keep(path: Path | None, content: Any, indent: int | None = 1) -> None:
    """Writes a whole file or nothing, if the numbers are to be kept."""
    if path is not None:
        write_text(path, json.dumps(content, indent=indent) + "\n")


def known(path: Path, otherwise: Any) -> Any:
    """What an earlier call kept."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise
