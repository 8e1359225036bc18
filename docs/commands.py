"""Writes commands.md beside this file: what every command says of itself."""

import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PAGE = pathlib.Path(__file__).with_suffix(".md")


def said(*arguments: str) -> str:
    """What `l2o` prints."""
    command = [sys.executable, "-m", "l2o_cli", *arguments]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.rstrip()


def section(name: str) -> str:
    """What a command says of itself."""
    short = said(name, "--help")
    pages = [short, said(name, "--help-all")] if "--help-all" in short else [short]
    return "\n\n".join([f"## l2o {name}", *(f"```text\n{page}\n```" for page in pages)])


def main() -> None:
    overview = said("--help")
    names = re.findall(r"^  ([a-z]+) ", overview.partition("Commands:")[2], re.MULTILINE)
    sections = [f"# Commands\n\n```text\n{overview}\n```"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sections += pool.map(section, names)
    PAGE.write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
