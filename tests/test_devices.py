"""Work spread over the devices of one host: the same numbers, and no deadlock of their thread pool."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import sparing

import l2o_eqx
from l2o_eqx._devices._mesh import side_by_side

# One line of numbers for every way in which work is shared out.
SPREAD = """
import sys
import l2o_eqx
count = int(sys.argv[1])
if count > 1:
    assert l2o_eqx.use_cores(count) == count
import equinox as eqx, jax, jax.numpy as jnp, jax.random as jr, numpy as np
from l2o_eqx._devices import Restarts
from l2o_eqx._meta_step import placed
from l2o_eqx.estimators import PES, RTRL, Auto, Backprop, Recorded, Replay
from l2o_eqx.objectives import AbstractObjective, AbstractObjectiveFamily, Quadratic
from l2o_eqx.optimizers import CoordinatewiseLSTM, HierarchicalRNN, PerLayer
from l2o_eqx.strategies import EveryStep, EveryWindow
assert jax.device_count() == count

class Bowl(AbstractObjective):
    a: jax.Array
    def init(self, key):
        return {"w": jr.normal(key, (601,)), "b": jr.normal(key, (3, 5))}
    def loss(self, params, step, key):
        return jnp.mean(self.a * params["w"] ** 2) + jnp.sum(jnp.cos(params["b"]))

class Bowls(AbstractObjectiveFamily):
    def sample(self, key):
        return Bowl(jr.uniform(key, (601,)))

def make(key):
    return CoordinatewiseLSTM((3,), learning_rate=0.1, key=key)

def by_name(path, leaf):
    return path[0].key

keys, first = jr.split(jr.key(0), 4), int(sys.argv[2])
batch = eqx.filter_vmap(make)(keys)
mixed = PerLayer({"w": make(keys[0]), "b": HierarchicalRNN(2, 2, 2, key=keys[1])}, by_name)
per_layer = PerLayer({"w": make(keys[0]), "b": make(keys[1])}, by_name)
for optimizer, family, strategy, settings, spread in [
    (batch, Quadratic(3), EveryWindow(3), {"restarts": 4, "num_objectives": 2}, "restarts"),
    (make(keys[0]), Quadratic(3), EveryWindow(3), {"num_objectives": 4}, "objectives"),
    (make(keys[0]), Quadratic(3), EveryWindow(3, PES(0.1, 2)), {"num_objectives": 4}, "objectives"),
    (make(keys[0]), Bowls(), EveryWindow(3, Replay()), {}, "coordinates"),
    (mixed, Bowls(), EveryWindow(3, Backprop()), {}, "coordinates"),
    (make(keys[0]), Quadratic(3), EveryStep(3, Recorded()), {"num_objectives": 4}, "objectives"),
    (make(keys[0]), Quadratic(3), EveryWindow(3, Auto(())), {"num_objectives": 4}, "objectives"),
    (make(keys[0]), Quadratic(3), EveryWindow(3, RTRL()), {"num_objectives": 4}, "objectives"),
    (make(keys[0]), Bowls(), EveryWindow(3, Backprop()), {}, "coordinates"),
    (make(keys[0]), Bowls(), EveryWindow(3, include_final_loss=True), {"num_objectives": 3}, "coordinates"),
    (make(keys[0]), Bowls(), EveryStep(3), {}, "coordinates"),
    (per_layer, Bowls(), EveryWindow(3, Backprop()), {}, "coordinates"),
    (per_layer, Bowls(), EveryWindow(3, Replay()), {}, "coordinates"),
    (mixed, Bowls(), EveryWindow(3, Replay()), {}, "coordinates"),
][first : first + 4]:
    solution = l2o_eqx.meta_train(
        optimizer, family, strategy, num_steps=9, super_epochs=2, key=jr.key(1), **settings
    )
    restarts = settings.get("restarts")
    runs, num_objectives = Restarts(restarts), settings.get("num_objectives", 1)
    placement = placed(solution.state, family, strategy, num_objectives, runs)[2]
    assert (placement.mesh is None) == (count == 1), placement
    assert placement.shared == (spread if count > 1 else None), placement
    run = l2o_eqx.evaluate(
        solution.optimizer, family, num_steps=5, num_objectives=6, restarts=restarts, key=jr.key(2)
    )
    metrics = [solution.metrics[name] for name in ("meta_loss", "final_loss", "grad_norm")]
    print(*np.concatenate([np.ravel(x) for x in [run.losses, *metrics]]))
"""


@pytest.mark.parametrize("first", sparing([0, 4, 8, 12], but=[4, 8, 12]))
def test_two_devices_give_what_one_gives(first):
    """A deadlock would hit the time limit."""

    def run(count):
        env = {k: v for k, v in os.environ.items() if k not in ("NPROC", "JAX_NUM_CPU_DEVICES")}
        done = subprocess.run(
            [sys.executable, "-c", SPREAD, str(count), str(first)],
            env=env,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        return [np.array(line.split(), np.float64) for line in done.stdout.splitlines()]

    found, expected = run(2), run(1)
    assert len(found) > 0
    for one, two in zip(expected, found, strict=True):
        np.testing.assert_allclose(two, one, rtol=2e-3)


OTHER_DEVICES = """
import l2o_eqx
l2o_eqx.use_cores(4)
import jax, jax.random as jr, optax
from l2o_eqx.objectives import Quadratic
from l2o_eqx.optimizers import CoordinatewiseLSTM
runs = []
def judge(progress):
    optimizer = progress.state.optimizer
    for n in (4, 3):
        runs.append(l2o_eqx.evaluate(optimizer, Quadratic(3), num_steps=4, num_objectives=n, key=jr.key(2)))
noisy = optax.chain(optax.add_noise(0.1, 0.5, jr.key(5)), optax.adam(1e-3))
solution = l2o_eqx.meta_train(
    CoordinatewiseLSTM((2,), key=jr.key(0)), Quadratic(3), meta_optimizer=noisy, num_steps=16,
    super_epochs=1, num_objectives=2, key=jr.key(1), callbacks=[judge],
)
assert all(run.losses.shape == (n, 4) for run, n in zip(runs, (4, 3)))
assert jax.tree.leaves(solution.optimizer)[0].devices() == {jax.devices()[0]}
"""


def test_an_optimizer_trained_on_two_devices_runs_on_four():
    """In a callback, with a key in the meta-optimizer's state, and back on one device at the end."""
    env = {k: v for k, v in os.environ.items() if k not in ("NPROC", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", OTHER_DEVICES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_cores_are_chosen_before_jax_starts():
    jax.devices()
    with pytest.raises(RuntimeError, match="before JAX computes"):
        l2o_eqx.use_cores(3)
    with pytest.raises(ValueError, match="count=0"):
        l2o_eqx.use_cores(0)


@pytest.mark.parametrize(
    "restarts, num_coordinates, expected", [(50, 16, 25), (100, 16, 25), (7, 16, 7), (10, 25_450, 1)]
)
def test_restarts_are_batched_evenly(restarts, num_coordinates, expected):
    if jax.default_backend() == "cpu":
        assert side_by_side(restarts, num_coordinates) == expected
