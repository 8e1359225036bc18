"""All checks: plain `nox` runs them. `nox -l` lists them, `nox -s tests -- -k name` passes arguments on."""

import pathlib
import shutil

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "examples", "build"]

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
    session.run("pytest", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every example runs as a script."""
    install_project(session)
    for script in sorted(pathlib.Path("examples").glob("*.py")):
        session.run("python", str(script), *session.posargs, env={"MPLBACKEND": "agg"})


@nox.session(reuse_venv=False)
def build(session: nox.Session) -> None:
    """Wheel and sdist install into an empty environment and run there."""
    session.install("build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--installer", "uv" if shutil.which("uv") else "pip")
    for package in sorted(pathlib.Path("dist").iterdir()):
        session.run("python", "-m", "venv", "--clear", f"{session.create_tmp()}/empty")
        python = f"{session.create_tmp()}/empty/bin/python"
        session.run(python, "-m", "pip", "install", "-q", str(package.resolve()), external=True)
        with session.chdir(session.create_tmp()):
            session.run(python, "-c", CHECK_INSTALLATION, external=True)
            session.run(
                *(f"{session.create_tmp()}/empty/bin/l2o", "train", "--objective", "quadratic"),
                *("--dim", "2", "--num-steps", "6", "--window", "3", "--super-epochs", "2"),
                *("--eval-objectives", "4", "--out", f"run-{package.name}"),
                external=True,
            )


# What must hold wherever the package is installed: the digits travel along, no package named `cli`.
CHECK_INSTALLATION = """
import importlib.util, l2o_eqx
assert importlib.util.find_spec("cli") is None, "a package named cli was installed"
print(l2o_eqx.data.load_mnist("embedded").describe())
"""


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory of a meta-update next to plain automatic differentiation."""
    install_project(session)
    session.run("python", "benchmarks/meta_gradient.py", *session.posargs)
