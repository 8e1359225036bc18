"""The programs of the documentation run, and its pages name what there is."""

import pathlib
import re

import pytest

import l2o_eqx

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["start.md", "watching.md", "understanding.md", "extending.md"])
def test_the_blocks_of_a_page_are_a_program(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks(page))
    exec(compile(program, page, "exec"), {"__name__": "my_module"})


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
