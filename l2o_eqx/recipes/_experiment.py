"""One meta-training and its test, repeated over restarts: what every figure is composed of."""

import collections
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

import l2o_eqx as l2o

from .._pretraining_report import NUM_STEPS
from ..objectives import AbstractObjectiveFamily
from ..optimizers import AbstractOptimizer
from ..strategies import AbstractUpdateStrategy, EveryStep, EveryWindow
from ..weightings import AbstractWeighting, Constant
from ._statistics import ChanceSplit, near_chance

# Coordinates of all restarts together that one job trains on a CPU: short enough jobs to report progress
# by, and to lose little when stopped.
_JOB_COORDINATES = 2**17


# Part of every digest: to be raised with any change after which equal settings give other results.
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Arguments of `l2o_eqx.pretrain`."""

    num_samples: int = 200_000
    num_steps: int = NUM_STEPS
    carry_state: bool = False


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained on what, and how it is tested.

    **Fields:**

    - `family`, `make_optimizer`, `strategy`, `weighting`, `num_steps`, `super_epochs`, `num_objectives`: as
        in `l2o_eqx.meta_train`; `make_optimizer` takes a key.
    - `normalization`, `norm_floor`: of `l2o_eqx.default_meta_optimizer`.
    - `shared_adam`: the thesis's released code has one Adam for all restarts, so that restart i begins
        where the step counts of i earlier ones ended; otherwise each has its own.
    - `pretraining`: if given, comes first.
    - `test_family`: what to test on; by default `family`.
    - `test_steps`, `num_test_objectives`: of the test; all restarts see the same objectives, starting
        points and minibatches.
    - `measure`: as in `l2o_eqx.evaluate`; a dict of numbers.
    - `measure_travel`: whether to measure `travel`, the mean way of a coordinate in the first 20 steps.
    """

    family: AbstractObjectiveFamily
    make_optimizer: Callable[[PRNGKeyArray], AbstractOptimizer]
    num_steps: int
    super_epochs: int
    test_steps: int
    num_test_objectives: int = 1
    num_objectives: int = 1
    strategy: AbstractUpdateStrategy = EveryWindow()  # noqa: RUF009 (immutable)
    weighting: AbstractWeighting = Constant()  # noqa: RUF009
    normalization: Any = "tensor"
    norm_floor: float = 0.0
    shared_adam: bool = False
    pretraining: Pretraining | None = None
    test_family: AbstractObjectiveFamily | None = None
    measure: Callable[..., Mapping[str, Any]] | None = None
    measure_travel: bool = False

    @property
    def num_updates(self) -> int:
        """Meta-updates of one restart."""
        return self.super_epochs * self.strategy.num_updates(self.num_steps)

    @functools.cached_property
    def restarts_per_job(self) -> int:
        """How many restarts are trained as one program."""
        if jax.default_backend() != "cpu":
            return 100
        return max(1, _JOB_COORDINATES // self._coordinates)

    @functools.cached_property
    def _coordinates(self) -> int:
        return self.num_objectives * l2o.count_coordinates(self.family)

    @functools.cached_property
    def digest(self) -> str:
        """Names the experiment: equal settings, equal digest."""
        optimizer = eqx.filter_eval_shape(self.make_optimizer, jr.key(0))
        settings = {"version": _VERSION, "make_optimizer": optimizer, "per_job": self.restarts_per_job}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # What is left at its default is left out, so that a new field leaves old digests alone.
            if field.name not in settings and not (value is field.default or value == field.default):
                settings[field.name] = value
        text = eqx.tree_pformat(settings)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def work(self) -> float:
        """Roughly how long one restart takes, in seconds of one core."""
        # Measured on the thesis's network: 26 ms per step of training, 7 ms per step of a test; and on
        # pretraining without an objective: 2.6 s for 200,000 samples of 16 steps.
        steps_per_step = self.strategy.window if isinstance(self.strategy, EveryStep) else 1
        train = 1.03e-6 * steps_per_step * self.super_epochs * self.num_steps * self._coordinates
        test_family = self.test_family or self.family
        test = 0.28e-6 * self.test_steps * self.num_test_objectives * l2o.count_coordinates(test_family)
        return self._pretraining_work() + train + test

    def _pretraining_work(self) -> float:
        if self.pretraining is None:
            return 0.0
        return 0.8e-6 * self.pretraining.num_samples * self.pretraining.num_steps


@dataclasses.dataclass(frozen=True)
class Results:
    """What the restarts of an experiment gave.

    **Fields:**

    - `losses`: at every step of the test, the median over the test's objectives.
    - `measured`: by name, what was measured where the test ended; means over the objectives.
    - `metrics`: those of the meta-training, by name.
    - `seconds`: of computation.
    """

    losses: Float[np.ndarray, "restarts steps"]
    measured: dict[str, Float[np.ndarray, " restarts"]]
    metrics: dict[str, Float[np.ndarray, "restarts super_epochs"]]
    seconds: float

    @property
    def final(self) -> Float[np.ndarray, " restarts"]:
        """The loss at the last step, infinite where it is not finite: what the thesis plots."""
        return _finite(self.losses[:, -1])

    def last(self, steps: int = 20, end: int | None = None) -> Float[np.ndarray, " restarts"]:
        """The mean over the last steps (before `end`), which on minibatches is less noisy."""
        losses = self.losses[:, :end]
        return _finite(np.mean(losses[:, -steps:], axis=1))

    def chance(self) -> ChanceSplit:
        """Which restarts end near the loss of guessing, by their last 20 losses and, if measured, entropy."""
        return near_chance(self.last(), entropy=self.measured.get("entropy"))

    def at(self, step: int) -> Float[np.ndarray, " restarts"]:
        """The loss at a step."""
        return _finite(self.losses[:, step])


def _finite(losses):
    return np.where(np.isfinite(losses), losses, np.inf).astype(np.float64)


def key_of_tests(seed: int) -> PRNGKeyArray:
    """The key of the objectives, starting points and minibatches that all experiments are tested on."""
    return jr.split(jr.key(seed), 4)[3]


def run(
    experiment: Experiment,
    *,
    restarts: int,
    first: int = 0,
    seed: int = 0,
    callbacks: Sequence[Callable[[l2o.Progress], Any]] = (),
) -> Results:
    """Trains and tests the restarts `first`, `first + 1`, … of an experiment.

    **Arguments:**

    - `experiment`: what to run.
    - `restarts`: how many.
    - `first`: number of the first one; each has initial weights and draws of its own.
    - `seed`: same seed, same numbers.
    - `callbacks`: as in `l2o_eqx.meta_train`.

    **Returns:** the `Results`.
    """
    begin = time.perf_counter()
    init_key, pretrain_key, train_key, _ = jr.split(jr.key(seed), 4)
    test_key = key_of_tests(seed)
    numbers = first + jnp.arange(restarts)
    keys = jax.vmap(lambda i: jr.fold_in(init_key, i))(numbers)
    optimizer = eqx.filter_vmap(experiment.make_optimizer)(keys)
    measured = {}
    if experiment.pretraining is not None:
        pretrained = l2o.pretrain(
            optimizer,
            **dataclasses.asdict(experiment.pretraining),
            restarts=restarts,
            key=jr.fold_in(pretrain_key, first),
        )
        optimizer = pretrained.optimizer
        measured["sign_agreement"] = np.asarray(pretrained.report.sign_agreement)
        measured["relative_error"] = np.asarray(pretrained.report.relative_error)

    meta_optimizer = l2o.default_meta_optimizer(
        normalization=experiment.normalization, norm_floor=experiment.norm_floor
    )
    state = l2o.init_meta_state(optimizer, meta_optimizer, restarts=restarts)
    if experiment.shared_adam:
        counts = (experiment.num_updates * numbers).astype(jnp.int32)
        state = dataclasses.replace(
            state, meta_optimizer_state=optax.tree.set(state.meta_optimizer_state, count=counts)
        )
    solution = l2o.meta_train(
        optimizer,
        experiment.family,
        experiment.strategy,
        weighting=experiment.weighting,
        meta_optimizer=meta_optimizer,
        num_steps=experiment.num_steps,
        super_epochs=experiment.super_epochs,
        num_objectives=experiment.num_objectives,
        restarts=restarts,
        key=jr.fold_in(train_key, first),
        callbacks=callbacks,
        state=state,
    )
    test = l2o.evaluate(
        solution.optimizer,
        experiment.test_family or experiment.family,
        num_steps=experiment.test_steps,
        num_objectives=experiment.num_test_objectives,
        restarts=restarts,
        measure=experiment.measure,
        key=test_key,
    )
    losses = np.median(np.asarray(test.losses), axis=1)
    for name, values in (test.measured or {}).items():
        measured[name] = np.mean(np.asarray(values), axis=1)
    if experiment.measure_travel:
        measured["travel"] = _travel(solution.optimizer, experiment, test_key)
    metrics = {name: values.T.astype(np.float32) for name, values in solution.metrics.items()}
    return Results(losses, measured, metrics, time.perf_counter() - begin)


def _travel(optimizers, experiment, key):
    objective = (experiment.test_family or experiment.family).sample(key)
    params = objective.init(key)

    @eqx.filter_jit
    @eqx.filter_vmap
    def travel(optimizer):
        end = l2o.unroll(optimizer, objective, params, optimizer.init(params), 20, key=key).params
        way = jax.tree.map(lambda a, b: jnp.sum(jnp.abs(a - b)), params, end)
        return sum(jax.tree.leaves(way)) / l2o.count_coordinates(experiment.family)

    return np.asarray(travel(optimizers))


def no_results(experiment: Experiment) -> Results:
    """The results of no restarts, in which everything that may be asked for is empty."""
    measured = collections.defaultdict(lambda: np.zeros(0))
    metrics = collections.defaultdict(lambda: np.zeros((0, experiment.super_epochs)))
    return Results(np.zeros((0, experiment.test_steps)), measured, metrics, 0.0)


def join(parts: Sequence[Results]) -> Results:
    """The results of several runs of one experiment as one."""
    return Results(
        np.concatenate([p.losses for p in parts]),
        {name: np.concatenate([p.measured[name] for p in parts]) for name in parts[0].measured},
        {name: np.concatenate([p.metrics[name] for p in parts]) for name in parts[0].metrics},
        sum(p.seconds for p in parts),
    )
