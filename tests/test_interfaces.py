"""Rules that hold for the whole package."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import l2o_eqx
from l2o_eqx.objectives import Quadratic


def package_classes():
    """Every `eqx.Module` subclass that the package defines."""
    for info in pkgutil.walk_packages(l2o_eqx.__path__, "l2o_eqx."):
        if info.name == "l2o_eqx.torch_runtime":
            continue  # it needs the extra `torch`, and has none
        module = importlib.import_module(info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, eqx.Module) and cls.__module__ == module.__name__:
                yield cls


CLASSES = sorted(set(package_classes()), key=lambda cls: cls.__qualname__)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_abstract_or_final(cls):
    ours = [sub for sub in cls.__subclasses__() if sub.__module__.startswith("l2o_eqx")]
    if cls.__name__.startswith("Abstract"):
        assert inspect.isabstract(cls) and ours
    else:
        assert not inspect.isabstract(cls) and not ours


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_public_classes_are_documented(cls):
    if not cls.__name__.startswith("_"):
        first_line = (cls.__doc__ or "").strip().splitlines()[0]
        assert first_line.endswith(".")


@pytest.mark.parametrize("name", [n for n in dir(l2o_eqx) if not n.startswith("_")])
def test_public_names_exist_and_are_documented(name):
    value = getattr(l2o_eqx, name)
    if callable(value) or inspect.ismodule(value):
        assert inspect.getdoc(value)


def test_lazy_names_match_the_typed_ones():
    """The names for type checkers and the lazy ones are the same list."""
    source = inspect.getsource(l2o_eqx)
    typed = {line.split(" as ")[1] for line in source.splitlines() if line.startswith("    from .")}
    assert typed == set(dir(l2o_eqx)) - {"__version__"}


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        l2o_eqx.nothing  # noqa: B018


def test_import_is_light():
    script = "import sys, l2o_eqx; sys.exit(any(m in sys.modules for m in ('jax', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


# What shares out a computation over a mesh. The engine's own files ask an axis for sums and rows.
MESH_WORDS = r"\b(Mesh|PartitionSpec|NamedSharding|shard_map|DEVICES|pmean|psum|all_gather)\b"


def test_only_one_room_knows_meshes():
    package = pathlib.Path(l2o_eqx.__path__[0])
    knowing = {path for path in package.rglob("*.py") if re.search(MESH_WORDS, path.read_text("utf-8"))}
    assert {path for path in knowing if path.parent.name != "_devices"} == set()


VERBS = {"evaluate", "compare", "meta_train", "meta_step", "init_meta_state", "train_curriculum", "imitate"}
VERBS |= {"policy_search", "pretrain", "pretraining_report", "generalization_card", "score"}


def test_only_verbs_are_told_how_many_restarts():
    """What they call is handed `Restarts`, or nothing at all."""
    found = set()
    for path in pathlib.Path(l2o_eqx.__path__[0]).rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for f in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            names = {a.arg for a in (*f.args.args, *f.args.kwonlyargs)}
            found |= {f.name} if "restarts" in names else set()
    assert found == VERBS


class _Own(l2o_eqx.optimizers.AbstractOptimizer):
    """What a user's own optimizer may get wrong: `returns` makes what `update` returns."""

    returns: Callable = eqx.field(static=True)
    rate: jax.Array = eqx.field(default_factory=lambda: jnp.float32(0.1))

    def init(self, params):
        return params

    def update(self, grads, state, params, *, value=None, key=None):
        return self.returns(grads, state)


@pytest.mark.parametrize(
    "returns, message",
    [
        (lambda grads, state: grads, "must return two things, the updates and the next state"),
        (lambda grads, state: (grads[0], state), "must return updates of the structure and shapes"),
        (lambda grads, state: (grads, (state, 0)), "must return the next state of the structure and shapes"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_update_that_is_none_is_named(returns, message, wrapped):
    own = _Own(returns)
    optimizer = l2o_eqx.optimizers.Clipped(own) if wrapped else own
    with pytest.raises(l2o_eqx.ArgumentError, match=f"`_Own.update` {message}"):
        l2o_eqx.meta_train(optimizer, Quadratic(2), num_steps=20, super_epochs=1, key=jr.key(0))


class _NoObjectives(l2o_eqx.objectives.AbstractObjectiveFamily):
    def sample(self, key) -> Any:
        return key


def test_a_family_that_is_none_is_named():
    optimizer = l2o_eqx.optimizers.LearnedMomentum(2, key=jr.key(0))
    message = "What `_NoObjectives.sample` returns must be an `AbstractObjective`. Got "
    with pytest.raises(l2o_eqx.ArgumentError, match=message):
        l2o_eqx.evaluate(optimizer, _NoObjectives(), num_steps=2, key=jr.key(0))
