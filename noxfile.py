"""All checks: plain `nox` runs them. `nox -l` lists them, `nox -s tests -- -k name` passes arguments on."""

import os
import pathlib
import shutil
from concurrent.futures import ThreadPoolExecutor

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "examples", "build"]

# uv leaves modules uncompiled otherwise, and importing JAX then takes three times as long.
os.environ.setdefault("UV_COMPILE_BYTECODE", "1")

PROJECT = nox.project.load_toml("pyproject.toml")
DEV = PROJECT["project"]["optional-dependencies"]["dev"]


def requirement(name: str) -> str:
    """The development dependency `name` as pyproject.toml states it."""
    return next(r for r in DEV if r.startswith(name))


def install_project(session: nox.Session) -> None:
    session.install("-e", ".[dev]")


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes, with ruff."""
    session.install(requirement("ruff"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Static types, with pyright."""
    install_project(session)
    session.run("pyright", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, with shapes checked by jaxtyping and beartype and warnings as errors."""
    install_project(session)
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session
def thorough(session: nox.Session) -> None:
    """The tests with every further case: all optimizers, families and strategies in every product."""
    install_project(session)
    session.run("pytest", "--thorough", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session
def torch(session: nox.Session) -> None:
    """The optimizers in PyTorch, which the tests leave out where it is not installed."""
    session.install("-e", ".[dev,torch]")
    session.run("pytest", "tests/test_torch_runtime.py", *session.posargs)


QUICK = (
    *("callbacks", "cli_options", "data", "files", "interfaces", "meta_optimizers", "outputs", "plots"),
    *("preprocessors", "serialise", "variations", "weightings", "zoo"),
)


@nox.session
def quick(session: nox.Session) -> None:
    """Those of the tests that take least, in two or three minutes."""
    install_project(session)
    files = [f"tests/test_{name}.py" for name in QUICK]
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *files, *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every example runs as a script, as many at a time as there are cores."""
    install_project(session)

    def run(script: pathlib.Path) -> str:
        return str(
            session.run("python", str(script), *session.posargs, env={"MPLBACKEND": "agg"}, silent=True)
        )

    scripts = sorted(pathlib.Path("examples").glob("*.py"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for script, printed in zip(scripts, pool.map(run, scripts), strict=True):
            print(f"{script}\n{printed}")


@nox.session(reuse_venv=False)
@nox.parametrize("package", ["wheel", "sdist"])
def build(session: nox.Session, package: str) -> None:
    """Wheel and sdist install into an empty environment and run there."""
    dist = pathlib.Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("uv", "build", "-q", f"--{package}", "--out-dir", str(dist), external=True)
    (file,) = (path for path in dist.iterdir() if path.suffix in (".whl", ".gz"))
    session.install(str(file.resolve()))
    with session.chdir(session.create_tmp()):
        session.run("python", "-c", CHECK_INSTALLATION)
        session.run("l2o", "gallery")
        shutil.rmtree("run", ignore_errors=True)
        session.run("l2o", "train", *TINY_RUN, "--out", "run")


# What must hold wherever the package is installed: digits and gallery travel along, no package named `cli`.
CHECK_INSTALLATION = """
import importlib.util, l2o_eqx
assert importlib.util.find_spec("cli") is None, "a package named cli was installed"
print(l2o_eqx.data.load_mnist("embedded").describe())
print(*(type(l2o_eqx.pretrained(name)).__name__ for name in l2o_eqx.pretrained()))
"""
TINY_RUN = (
    *("--objective", "quadratic", "--dim", "2", "--num-steps", "6", "--window", "3"),
    *("--super-epochs", "2", "--eval-objectives", "4", "--learning-rates", "0.1"),
)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, into `site/`, notebooks executed; `nox -s docs -- serve` shows it while you write."""
    session.install("-e", ".[docs]")
    mkdocs(session, *session.posargs)


@nox.session
def site(session: nox.Session) -> None:
    """The site, every page opened in a Chromium that is on the machine: pictures, links, scripts."""
    session.install("-e", ".[docs-check]")
    mkdocs(session)
    session.run("python", "docs/check_site.py")


def mkdocs(session: nox.Session, *arguments: str) -> None:
    """Runs mkdocs, `build` if there are no arguments, with the page of the commands up to date."""
    session.run("python", "docs/commands.py")
    session.run("mkdocs", *(arguments or ["build"]), env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory of meta-training next to what one would write otherwise; takes half an hour."""
    install_project(session)
    session.run("l2o", "bench", *(session.posargs or ["all"]))


@nox.session
def torture(session: nox.Session) -> None:
    """Runs that are killed 200 times at any instant and taken up again, compared bit by bit; takes hours."""
    install_project(session)
    session.run("python", "tests/torture.py", *session.posargs)
