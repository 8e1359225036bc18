import gc
import itertools
import os
import pathlib

import jax
import jax.random as jr
import pytest

# Tests compile much and compute little; what LLVM would still improve is not worth its time here, and without
# the emitters of fusions a program compiles in a third of the time. JAX reads the variable when it starts its
# first computation, and ends the process at a flag that it does not know: the last two are of this version.
_FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version__.startswith("0.10."):
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects that live on in caches; looking through all of them again and again takes a fifth
# of its time.
gc.set_threshold(100_000, 50, 100)


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="also tests marked so, twice the time")


def pytest_collection_modifyitems(config, items):
    """Leaves out what is marked thorough, and says how much that is."""
    if not config.getoption("--thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


@pytest.fixture
def getkey():
    """A function that returns a new key at each call; the same ones in every run of a test."""
    counter = itertools.count()
    return lambda: jr.key(next(counter))


# Half of what Linux lets a process have (vm.max_map_count).
_MANY_MAPPINGS = 32_000


@pytest.fixture(autouse=True)
def forget_compiled_programs():
    """Hundreds of programs in one process would run out of memory mappings."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()
