"""One meta-training and its test, repeated over restarts: what every figure is composed of."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx.data import Digits
from l2o_eqx.objectives import AbstractObjectiveFamily

from .build import NetworkProbe, make_family, make_optimizer, make_strategy, make_weighting
from .facts import CHANCE_LOSS
from .figures import Spec

# Coordinates of all restarts together that one job trains on a CPU: short enough jobs to report progress
# by, and to lose little when stopped.
_JOB_COORDINATES = 2**17

# Part of every digest: to be raised with any change after which equal settings give other results.
_VERSION = 2

# What is kept of a metric of the meta-training, which has a number per super epoch; of an optimizer per layer
# also for each layer.
_SUMMARIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grad_norm": lambda values: np.median(values, axis=1),
    # Whether all meta-gradients were exactly zero in some super epoch; a mean of ones need not be one to the
    # last digit.
    "zero_share": lambda values: np.any(values > 1 - 1e-6, axis=1).astype(np.float32),
    # In the first quarter.
    "final_loss": lambda values: values[:, : values.shape[1] // 4 + 1].mean(1),
}
# Between the steps whose losses are kept; the last ones are kept one by one.
_INTERVALS, _LAST = 40, 20


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained on what, and how it is tested: settings (`experiments.toml`), and digits."""

    spec: Spec
    digits: Digits

    @functools.cached_property
    def family(self) -> AbstractObjectiveFamily:
        """What is trained on."""
        return make_family(self.spec, self.digits)

    @functools.cached_property
    def test_family(self) -> AbstractObjectiveFamily:
        """What is tested on."""
        return make_family(self.spec, self.digits, of_test=True)

    @property
    def num_updates(self) -> int:
        """Meta-updates of one restart."""
        return self.spec["super_epochs"] * make_strategy(self.spec).num_updates(self.spec["num_steps"])

    @functools.cached_property
    def restarts_per_job(self) -> int:
        """How many restarts are trained as one program."""
        if jax.default_backend() != "cpu":
            return 100
        return max(1, _JOB_COORDINATES // l2o.count_coordinates(self.family))

    @functools.cached_property
    def digest(self) -> str:
        """Names the experiment: equal settings, digits and sizes of jobs, equal digest."""
        digits = {} if "dim" in self.spec else {"digits": self.digits.sha256}
        settings = {"version": _VERSION, "per_job": self.restarts_per_job, **digits, **self.spec}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @functools.cached_property
    def work(self) -> float:
        """Roughly how long one restart takes, in seconds of one core."""
        # Measured on the thesis's network: 26 ms per step of training, 7 ms per step of a test; and on
        # pretraining without an objective: 2.6 s for 200,000 samples of 16 steps.
        spec = self.spec
        steps = spec["super_epochs"] * spec["num_steps"] * (spec["window"] if "every_step" in spec else 1)
        tests = spec["test_steps"] * spec["num_test_objectives"]
        pretrain = 0.8e-6 * spec.get("pretraining_samples", 0) * spec.get("pretraining_steps", 16)
        train = 1.03e-6 * steps * l2o.count_coordinates(self.family)
        return pretrain + train + 0.28e-6 * tests * l2o.count_coordinates(self.test_family)

    @functools.cached_property
    def kept_steps(self) -> Int[np.ndarray, " kept"]:
        """The steps of a test whose losses are kept: some of them all along, and what means are taken of.

        These are the last 20, those around the end of the first quarter, and the same of the shorter test
        that some figures show of a long one.
        """
        kept: set[int] = set()
        for steps in {self.spec["test_steps"], self.spec.get("short_test", self.spec["test_steps"])}:
            kept |= set(np.linspace(0, steps - 1, _INTERVALS + 1).round().astype(int).tolist())
            for end in (steps, _early(steps)):
                kept |= set(range(max(end - _LAST, 0), min(end, steps)))
        return np.array(sorted(kept))


def _early(steps: int) -> int:
    # The end of those 20 steps that a quarter of the test lies in the middle of.
    return steps // 4 + _LAST // 2


@dataclasses.dataclass(frozen=True)
class Results:
    """What the restarts of an experiment gave.

    **Fields:**

    - `losses`: at some steps of the test, the median over the test's objectives.
    - `steps`, `length`: which steps, and how many the test has.
    - `measured`: by name, what was measured where the test ended; means over the objectives.
    - `training`: by name, a summary of a metric of the meta-training.
    - `seconds`: of computation.
    """

    losses: Float[np.ndarray, "restarts kept"]
    steps: Int[np.ndarray, " kept"]
    length: int
    measured: dict[str, Float[np.ndarray, " restarts"]]
    training: dict[str, Float[np.ndarray, " restarts"]]
    seconds: float

    def numbers(self, name: str) -> Float[np.ndarray, " restarts"]:
        """What was measured, or the summary of a metric, by its name."""
        if not len(self.losses):
            return np.zeros(0)
        return self.measured[name] if name in self.measured else self.training[name]

    def at(self, step: int) -> Float[np.ndarray, " restarts"]:
        """The loss at a step, infinite where it is not finite."""
        (column,) = np.flatnonzero(self.steps == step)
        return _finite(self.losses[:, column])

    def final(self) -> Float[np.ndarray, " restarts"]:
        """The loss at the last step: what the thesis plots."""
        return self.at(self.length - 1)

    def last(self, end: int | None = None) -> Float[np.ndarray, " restarts"]:
        """The mean of the 20 losses before `end`, which on minibatches is less noisy than a single one."""
        return _finite(np.asarray(np.mean(self._window(end), axis=1)))

    def early(self) -> Float[np.ndarray, " restarts"]:
        """The mean of 20 losses around a quarter of the test."""
        return self.last(_early(self.length))

    def _window(self, end: int | None = None) -> Float[np.ndarray, "restarts steps"]:
        end = self.length if end is None else end
        return self.losses[:, (self.steps >= end - _LAST) & (self.steps < end)].astype(np.float64)

    def fluctuation(self) -> Float[np.ndarray, " restarts"]:
        """Standard deviation of the last 20 losses around their linear trend; infinite if it diverged."""
        last = self._window()
        finite = np.all(np.isfinite(last), axis=1)
        time = np.arange(last.shape[1]) - (last.shape[1] - 1) / 2
        slopes = last[finite] @ time / (time @ time)
        result = np.full(len(last), np.inf)
        result[finite] = np.std(last[finite] - slopes[:, None] * time, axis=1)
        return result

    def near_chance(self, *, in_loss: bool = False) -> Bool[np.ndarray, " restarts"]:
        """Whether a restart guesses: its last 20 losses, and the entropy of its outputs, are near ln 10.

        Narrower than the thesis's bin from 2 to 2.5, which also has what is merely slow. With `in_loss` the
        losses alone decide: a loss of ln 10 with less entropy is that of outputs which are sure and wrong.
        """
        near = np.abs(self.last() - CHANCE_LOSS) < 0.02
        if "entropy" in self.measured and not in_loss:
            near &= np.abs(self.measured["entropy"] - CHANCE_LOSS) < 0.02
        return near

    def cut(self, *, restarts: int | None = None, steps: int | None = None) -> "Results":
        """The first restarts, and the first steps of the test."""
        length = self.length if steps is None else min(steps, self.length)
        shown = self.steps < length
        measured, training = (
            {name: values[:restarts] for name, values in group.items()}
            for group in (self.measured, self.training)
        )
        losses = self.losses[:restarts, shown]
        return Results(losses, self.steps[shown], length, measured, training, self.seconds)


def _finite(losses: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(losses), losses, np.inf).astype(np.float64)


def join(parts: Sequence[Results]) -> Results:
    """The results of several runs of one experiment as one."""
    measured, training = (
        {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
        for groups in ([p.measured for p in parts], [p.training for p in parts])
    )
    losses = np.concatenate([p.losses for p in parts])
    seconds = sum(p.seconds for p in parts)
    return Results(losses, parts[0].steps, parts[0].length, measured, training, seconds)


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

    - `experiment`, `restarts`: what to run, and how many.
    - `first`: number of the first one; each has initial weights and draws of its own.
    - `seed`: same seed, same numbers.
    - `callbacks`: as in `l2o_eqx.meta_train`.
    """
    begin, spec = time.perf_counter(), experiment.spec
    init_key, pretrain_key, train_key, test_key = jr.split(jr.key(seed), 4)
    numbers = first + jnp.arange(restarts)
    keys = jax.vmap(lambda i: jr.fold_in(init_key, i))(numbers)
    optimizer = eqx.filter_vmap(make_optimizer(spec, experiment.family))(keys)
    measured = {}
    if "pretraining_samples" in spec:
        pretrained = l2o.pretrain(
            optimizer,
            num_samples=spec["pretraining_samples"],
            num_steps=spec.get("pretraining_steps", 16),
            carry_state=spec.get("pretraining_carries_state", False),
            restarts=restarts,
            key=jr.fold_in(pretrain_key, first),
        )
        optimizer = pretrained.optimizer
        for name in ("sign_agreement", "relative_error"):
            measured[name] = np.asarray(getattr(pretrained.report, name))
    solution = _meta_train(experiment, optimizer, numbers, jr.fold_in(train_key, first), callbacks)
    test = l2o.evaluate(
        solution.optimizer,
        experiment.test_family,
        num_steps=spec["test_steps"],
        num_objectives=spec["num_test_objectives"],
        restarts=restarts,
        measure=None if "dim" in spec else NetworkProbe(experiment.digits),
        key=test_key,
    )
    losses = np.median(np.asarray(test.losses), axis=1)[:, experiment.kept_steps]
    for name, values in (test.measured or {}).items():
        measured[name] = np.mean(np.asarray(values), axis=1)
    if spec.get("travel"):
        measured["travel"] = _travel(solution.optimizer, experiment, test_key)
    training = summaries({name: values.T.astype(np.float32) for name, values in solution.metrics.items()})
    seconds = time.perf_counter() - begin
    return Results(losses, experiment.kept_steps, spec["test_steps"], measured, training, seconds)


def _meta_train(
    experiment: Experiment, optimizer: Any, numbers: Int[Array, " restarts"], key: Any, callbacks: Any
) -> l2o.MetaSolution:
    spec, restarts = experiment.spec, len(numbers)
    meta_optimizer = l2o.default_meta_optimizer(
        normalization=spec["normalization"], norm_floor=spec.get("norm_floor", 0.0)
    )
    state = l2o.init_meta_state(optimizer, meta_optimizer, restarts=restarts)
    if spec.get("shared_adam"):
        counts = (experiment.num_updates * numbers).astype(jnp.int32)
        counted = optax.tree.set(state.meta_optimizer_state, count=counts)
        state = dataclasses.replace(state, meta_optimizer_state=counted)
    return l2o.meta_train(
        optimizer,
        experiment.family,
        make_strategy(spec),
        weighting=make_weighting(spec),
        meta_optimizer=meta_optimizer,
        num_steps=spec["num_steps"],
        super_epochs=spec["super_epochs"],
        num_objectives=1,
        restarts=restarts,
        key=key,
        callbacks=callbacks,
        state=state,
    )


def summaries(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One number per restart of those metrics that claims are about."""
    kinds = {name: name.partition("/")[0] for name in metrics}
    return {name: _SUMMARIES[kind](metrics[name]) for name, kind in kinds.items() if kind in _SUMMARIES}


def _travel(optimizers: Any, experiment: Experiment, key: PRNGKeyArray) -> Float[np.ndarray, " restarts"]:
    # The mean way of a coordinate in the first 20 steps.
    objective = experiment.test_family.sample(key)
    params = objective.init(key)

    @eqx.filter_jit
    @eqx.filter_vmap
    def travel(optimizer):
        end = l2o.unroll(optimizer, objective, params, optimizer.init(params), 20, key=key).params
        way = jax.tree.map(lambda a, b: jnp.sum(jnp.abs(a - b)), params, end)
        return sum(jax.tree.leaves(way)) / l2o.count_coordinates(experiment.family)

    return np.asarray(travel(optimizers))
