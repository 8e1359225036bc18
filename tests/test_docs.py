"""The programs, notebooks and commands of the documentation run, and its pages name what there is."""

import contextlib
import functools
import json
import pathlib
import re
import shlex
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest
import typer
from l2o_cli._app import app

import l2o_eqx

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def run(program, name, sizes=(), **given):
    """Runs a program, with `sizes` in place of those that take longer."""
    for written, instead in sizes:
        assert written in program, f"{name} has no {written!r} any more"
        program = program.replace(written, instead)
    names = {"__name__": "my_module", **given}
    exec(compile(program, name, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


def notebook(name):
    """The code of a notebook without the lines that are IPython's."""
    cells = json.loads((DOCS / "notebooks" / name).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.sub(r"^%.*$", "", "\n".join(code), flags=re.MULTILINE)


# What takes long, and what stands in its place here.
SHORT_TRAINING = [('"super_epochs": 20', '"super_epochs": 2')]
PROGRAMS = {
    "../README.md": [
        *SHORT_TRAINING,
        ("super_epochs=50", "super_epochs=2"),
        ("num_steps=320", "num_steps=40, num_objectives=2, num_tuning_objectives=2"),
        ("**l2o_eqx.baselines_for(family)", '"Adam": l2o_eqx.baselines_for(family)["Adam"]'),
        ("pretrain(lstm,", "pretrain(lstm, num_samples=64, batch_size=32,"),
        # Needs a process of its own; tests/test_devices.py.
        ("l2o_eqx.use_cores()", ""),
    ],
    "extending.md": [],
    "few-shot.md": [("super_epochs=10_000", "super_epochs=2"), ("per_call=100", "per_call=1")],
    "index.md": [],
    "policies.md": [("num_steps=40", "num_steps=5, super_epochs=1, num_samples=2"), ("90", "2")],
    "runs.md": SHORT_TRAINING,
    "start.md": [],
    "understanding.md": [],
    "watching.md": [],
}
# Needs PyTorch, and a model; tests/test_torch_runtime.py. What takes a minute; tests/test_thesis_runs.py.
ELSEWHERE = ("torch_runtime", "l2o_thesis")
# What stands for a training of one's own.
GIVEN = {"params": {"weight": jnp.ones((3, 2))}, "grads": {"weight": jnp.ones((3, 2))}, "loss": jnp.ones(())}
NOTEBOOKS = {
    "in-your-loop.ipynb": [("400, seed", "20, seed"), ("arange(8)", "arange(2)"), ("[100, 400]", "[5, 20]")],
    "look-and-distrust.ipynb": [
        ("super_epochs=60", "super_epochs=2"),
        ("num_steps=40", "num_steps=10"),
        ("num_objectives=32", "num_objectives=4"),
        ("num_tuning_objectives=8", "num_tuning_objectives=2"),
    ],
}


def test_all_programs_are_here():
    with_blocks = {page.name for page in PAGES if blocks(page, "python")}
    assert with_blocks == {pathlib.Path(page).name for page in PROGRAMS}
    assert {page.name for page in (DOCS / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("page", PROGRAMS)
def test_the_blocks_of_a_page_are_a_program(page):
    program = [
        block for block in blocks(DOCS / page, "python") if not any(map(block.__contains__, ELSEWHERE))
    ]
    run("\n".join(program), page, PROGRAMS[page], **GIVEN)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name):
    run(notebook(name), name, NOTEBOOKS[name])


def commands_of(page):
    """The words of each command on a page: in blocks of the shell, indented ones, and within the text."""
    text = page.read_text()
    indented = re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    for line in "\n".join(blocks(page, "sh") + indented).replace("\\\n", " ").splitlines():
        found = re.search(r"(?:^\s*|\s)(l2o .*)", line.partition("#")[0])
        if found:
            yield shlex.split(found[1])
    for words in re.findall(r"(?<!`)`(l2o [^`…]+)`", text):
        yield shlex.split(words)


def test_every_command_is_read_by_the_command_line(tmp_path, monkeypatch, capsys):
    """Names, options and values, on all pages; files need not be there, and nothing is run."""
    own = [block for block in blocks(DOCS / "extending.md", "python") if "class " in block]
    names = "make_family, MyOptimizer = Valleys, TwoRates"
    (tmp_path / "my_module.py").write_text(
        "\n".join([blocks(DOCS / "extending.md", "python")[0], *own[:2], names])
    )
    (tmp_path / "config.toml").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    # That of the commands is made from the command line itself.
    pages = [page for page in PAGES if page.name != "commands.md"]
    commands = {tuple(words) for page in pages for words in commands_of(page)}
    assert len(commands) > 60
    top: Any = typer.main.get_command(app)
    context = top.make_context("l2o", [], resilient_parsing=True)
    for _, name, *arguments in sorted(commands):
        if name.startswith("-"):
            assert name in {option for parameter in top.get_params(context) for option in parameter.opts}
        elif not arguments:
            assert name in top.list_commands(context)
        else:
            name, command, rest = top.resolve_command(context, [name, *arguments])
            with contextlib.suppress(typer.Exit):
                command.make_context(name, list(rest))
    del sys.modules["my_module"]


def exists(name):
    room, _, rest = name.partition(".")
    owner = l2o_eqx
    if find_spec(f"l2o_eqx.{room}"):
        try:
            owner, name = import_module(f"l2o_eqx.{room}"), rest
        except ImportError:  # what it needs is in an extra
            return True
    with contextlib.suppress(AttributeError):
        functools.reduce(getattr, filter(None, name.split(".")), owner)
        return True
    return False


def test_names_of_the_library_are_there():
    pages = [*PAGES, *(DOCS / "api").glob("*.md")]
    pattern = r"(?<![\w/:-])l2o_eqx\.(\w+(?:\.\w+)*)"
    names = {name for page in pages for name in re.findall(pattern, page.read_text())}
    assert len(names) > 150 and {name for name in names if not exists(name)} == set()


def named_in_reference():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return set(re.findall(r"^::: l2o_eqx\.(\S+)", pages, re.MULTILINE))


def test_the_reference_has_all_architectures_strategies_estimators_and_families():
    bases = {
        "optimizers": l2o_eqx.optimizers.AbstractOptimizer,
        "estimators": l2o_eqx.estimators.AbstractEstimator,
        "strategies": l2o_eqx.strategies.AbstractUpdateStrategy,
        "weightings": l2o_eqx.weightings.AbstractWeighting,
        "preprocessors": l2o_eqx.preprocessors.AbstractPreprocessor,
        "outputs": l2o_eqx.outputs.AbstractOutput,
        "objectives": l2o_eqx.objectives.AbstractObjectiveFamily,
    }
    public = {
        f"{room}.{name}"
        for room, base in bases.items()
        for name, part in vars(getattr(l2o_eqx, room)).items()
        if not name.startswith("_") and isinstance(part, type) and issubclass(part, base)
    }
    assert public - named_in_reference() == set()


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text()
    pages = {
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.*") if page.suffix in (".md", ".ipynb")
    }
    assert {page for page in pages if page not in navigation} == set()
