"""Params that are spread over a mesh stay where they are; after optax's own tests of its `contrib`."""

import os
import subprocess
import sys

import pytest
from helpers import sparing

# On four devices; its arguments are the kind of the mesh's axis and the names of optimizers.
SPREAD = """
import re, sys
sys.path.insert(0, "tests")
import equinox as eqx, jax, jax.numpy as jnp, jax.random as jr, numpy as np
from helpers import OPTIMIZERS, assert_trees_close
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import l2o_eqx

kind, *names = sys.argv[1:]
mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType[kind],))
w, v = jr.normal(jr.key(1), (2, 16, 12))
whole = {"layers": ({"w": w, "v": v, "b": jnp.ones(8)},)}
specs = {"layers": ({"w": P(None, "x"), "v": P("x"), "b": P()},)}
params = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), whole, specs)

def types(tree):
    return jax.tree.map(jax.typeof, tree)

def check_updates(updates, expected):
    for u, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert u.sharding.is_equivalent_to(p.sharding, u.ndim), (u.sharding, p.sharding)
    assert_trees_close(jax.device_get(updates), jax.device_get(expected), rtol=1e-4, atol=1e-5)

def check_state(state, like):
    assert types(state) == types(like)
    # Nothing of the size of one of the matrices is on every device.
    assert not [x.shape for x in jax.tree.leaves(state) if x.size >= 192 and x.sharding.is_fully_replicated]

for name in names:
    transformation = l2o_eqx.as_optax(OPTIMIZERS[name](jr.key(0)))

    @jax.jit
    def two_steps(params):
        first, state = transformation.update(params, transformation.init(params), params)
        return first, transformation.update(params, state, params)[0]

    first, second = two_steps(whole)
    start = transformation.init(params)
    check_state(start, start)
    updates, state = transformation.update(params, start, params)
    check_state(state, start)
    check_updates(updates, first)
    update = jax.jit(transformation.update).lower(params, start, params).compile()
    updates, state = update(params, state, params)
    check_state(state, start)
    check_updates(updates, second)
    gathered = re.findall(r"= \\(?\\w+\\[([\\d,]*)\\]\\S* all-gather", update.as_text())
    sizes = [np.prod([int(n) for n in shape.split(",") if n], initial=1) for shape in gathered]
    assert max(sizes, default=0) < 192 // 4, gathered
    with jax.set_mesh(mesh):
        inside = jax.jit(transformation.init)(params)
    assert types(inside) == types(start)
    if name.startswith("lstm"):
        # The params left out; and on the mesh, but the same on all of its devices.
        check_updates(transformation.update(params, start)[0], first)
        replicated = jax.device_put(whole, NamedSharding(mesh, P()))
        updates, _ = transformation.update(replicated, transformation.init(replicated), replicated)
        assert_trees_close(jax.device_get(updates), jax.device_get(first), rtol=1e-4, atol=1e-5)
print("done", *names)
"""


# One optimizer of each way to be spread; all of the list take these.
USUAL = ("lstm_adam_like", "adam_mlp")
FURTHER = ("per_layer", "hierarchical_rnn", "celo2", "learned_momentum", "user_looking_lstm")


@pytest.mark.parametrize("names", sparing([USUAL, FURTHER], but=[FURTHER]), ids="-".join)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_params_stay_spread(kind, names):
    env = {k: v for k, v in os.environ.items() if k != "NPROC"} | {"JAX_NUM_CPU_DEVICES": "4"}
    command = [sys.executable, "-c", SPREAD, kind, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert tuple(done.stdout.split()) == ("done", *names)
