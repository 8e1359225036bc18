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


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs_of_a_module():
    """What another module computes has other shapes."""
    yield
    jax.clear_caches()
