import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from ._baselines import LEARNING_RATES, Baseline, LineSearch, MakeOptimizer
from ._checks import check_sizes
from ._comparison import Comparison
from ._devices import Restarts
from ._draws import Draws, draw
from ._errors import ArgumentError
from ._evaluate import Trajectories, evaluate
from ._loop import attended
from ._meta_train import count_meta_parameters
from ._tune import Tuning, TuningMode, lowest_so_far, run_ready, run_tuned, tune
from .callbacks._base import Callback
from .objectives import AbstractObjectiveFamily
from .optimizers import AbstractOptimizer, FromOptax


class ComparisonProgress(eqx.Module):
    """What a callback of `compare` sees as the work goes on.

    **Fields:**

    - `name`: of the optimizer at work.
    - `done`: how many optimizers are done, in fractions; `total`: of how many.
    - `comparison`: of those that are done, to go on from; `None` in a card of generalization.
    """

    name: str
    done: float
    total: int
    comparison: Comparison | None = None


def compare(
    optimizers: Mapping[
        str, AbstractOptimizer | optax.GradientTransformation | Baseline | LineSearch | MakeOptimizer
    ],
    family: AbstractObjectiveFamily,
    *,
    num_steps: int,
    num_objectives: int = 64,
    num_tuning_objectives: int = 16,
    learning_rates: Sequence[float] = LEARNING_RATES,
    tuning: TuningMode = "auto",
    last: int = 1,
    best_so_far: bool = False,
    restarts: int | None = None,
    key: PRNGKeyArray,
    callbacks: Sequence[Callback] = (),
    known: Comparison | None = None,
) -> Comparison:
    """Runs optimizers on the same draws from a family, after tuning those that can be tuned.

    All tuning has the same budget: the same draws, steps and learning rates.

    **Arguments:**

    - `optimizers`: by name. A `Baseline` is tuned. So is a function from a learning rate to an optax
        transformation, such as `optax.adam`, by its rate alone; if it cannot do with a traced rate, it is
        compiled once for each. Learned optimizers and ready transformations run as they are. optax's `value`,
        `grad` and `value_fn`, on data those of the step's minibatch, are handed to all that take them, and
        evaluations of f by line searches are counted. `{"learned": trained, "untrained": optimizer,
        **baselines_for(family)}` is the usual choice.
    - `family`: what to run them on.
    - `num_steps`: inner steps on each objective.
    - `num_objectives`: draws for the comparison.
    - `num_tuning_objectives`: other draws, for the tuning; the settings with the lowest median final loss on
        them are taken, the first of equals.
    - `learning_rates`: those to try, in ascending order.
    - `tuning`: `"full"` tries all settings of a baseline. `"staged"` tries all momenta or betas with every
        fourth learning rate, the first schedule and half of the draws; then, on all of them, the neighbors of
        the best so far until none is better. What it finds is the best on these draws of all that differ from
        it by up to two rates, by schedule, or by momentum or betas alone; several may have to change at once
        to find better. `"auto"` takes `"staged"` for more than 64 settings that together would cost more
        than 4e8 steps times coordinates times draws.
    - `last`: a final loss is the mean of so many losses at the end of a run; more than one where the loss is
        that of a minibatch.
    - `best_so_far`: whether the lowest loss so far stands in the place of every loss, for optimizers that
        search, such as `BlackBoxRNN`: their last point need not be good. One that is not a number is passed
        over.
    - `restarts`: if given, every learned optimizer is a batch of that many.
    - `key`: picks all draws.
    - `callbacks`: called with a `ComparisonProgress` before each optimizer, as its tuning goes on, and at the
        end. One that returns `StopTraining` ends the comparison with the optimizers that are done.
    - `known`: of an earlier call with all the same arguments, which was stopped, or `ComparisonProgress` had:
        what is in it is not done again.

    **Returns:** a `Comparison`.

    **Raises:** `ValueError` for sizes below 1, more `last` losses than steps, no learning rates, or something
    `known` that has other names, learning rates, sizes or restarts; it does not tell its `key` and family.
    """
    _check(num_steps, num_objectives, num_tuning_objectives, last)
    tried = tuple(map(float, learning_rates))
    if not tried:
        raise ArgumentError(
            "`compare(learning_rates=...)` needs at least one learning rate to try.",
            argument="learning_rates",
        )
    tkey, ekey = jr.split(key)
    runner = _Runner(
        family,
        num_steps,
        (tkey, num_tuning_objectives),
        (ekey, num_objectives),
        Restarts(restarts),
        {"rates": tried, "num_steps": num_steps, "last": last, "best_so_far": best_so_far, "mode": tuning},
    )
    if known is not None:
        runner.take_up(known, set(optimizers))
    total = len(optimizers)
    first = ComparisonProgress(next(iter(optimizers), ""), 0.0, total, runner.comparison("stopped"))
    with attended(callbacks, first) as attendance:

        def report(name: str, done: float | int) -> None:
            so_far = runner.comparison("stopped")
            if attendance.stop(ComparisonProgress(name, float(done), total, so_far)) is not None:
                raise _Stopped

        result = "completed"
        try:
            for index, (name, optimizer) in enumerate(optimizers.items()):
                if name not in runner.found:
                    report(name, index)
                    runner.run(name, optimizer, functools.partial(_report_tuning, report, name, index))
            if optimizers:
                report(list(optimizers)[-1], total)
        except _Stopped:
            result = "stopped" if len(runner.found) < total else "completed"
        attendance.solution = runner.comparison(result, tuple(optimizers))
        return attendance.solution


class _Stopped(Exception):
    """A callback ended the comparison."""


class _Runner:
    """Runs one optimizer after the other, and keeps what they did."""

    def __init__(
        self,
        family: AbstractObjectiveFamily,
        num_steps: int,
        tuning_draws: tuple[PRNGKeyArray, int],
        final_draws: tuple[PRNGKeyArray, int],
        runs: Restarts,
        tuning: dict[str, Any],
    ):
        self.family, self.num_steps, self.runs, self.tuning = family, num_steps, runs, tuning
        self.tuning_draws, self.final_draws = tuning_draws, final_draws
        self.found: dict[str, Trajectories] = {}
        self.rates: dict[str, float] = {}
        self.losses_by_rate: dict[str, Float[np.ndarray, " rates"]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.learned: set[str] = set()

    def take_up(self, known: Comparison, names: set[str]) -> None:
        """Takes what an earlier comparison found, if it is of the same settings."""
        shown = {"rates": known.tried, "last": known.last, "best_so_far": known.best_so_far}
        own = {name: self.tuning[name] for name in shown}
        shape = (self.final_draws[1], self.num_steps)
        found = {one.losses.shape[-2:] for one in known.trajectories.values()}
        batches = {known.trajectories[name].losses.shape[:-2] for name in known.learned}
        fits = found <= {shape} and batches <= {self.runs.shape}
        if shown != own or not fits or not set(known.trajectories) <= names:
            raise ArgumentError(
                "`compare(known=...)` is of a comparison with other arguments: of "
                f"{', '.join(known.trajectories) or 'nothing'}, with {shown} and losses of shapes {found}; "
                f"these are of {', '.join(sorted(names))}, with {own} and losses of the shape {shape}.",
                argument="known",
                given=known,
            )
        self.found |= known.trajectories
        self.rates |= known.learning_rates
        self.losses_by_rate |= known.tuning_losses
        self.settings |= known.settings
        self.learned |= set(known.learned)

    def run(
        self,
        name: str,
        optimizer: AbstractOptimizer | optax.GradientTransformation | Baseline | LineSearch | MakeOptimizer,
        progress: Callable[[float], None],
    ) -> None:
        """Tunes it, if it can be, and runs it; with `progress` of the tuning."""
        if isinstance(optimizer, AbstractOptimizer | optax.GradientTransformation):
            key, num_objectives = self.final_draws
            found = evaluate(
                optimizer,
                self.family,
                num_steps=self.num_steps,
                num_objectives=num_objectives,
                restarts=self.runs.count if _is_learned(optimizer) else None,
                key=key,
            )
        elif isinstance(optimizer, LineSearch):
            found = run_ready(FromOptax(optimizer.transformation), self.draws[1], self.num_steps)
        else:
            tuned = tune(_as_baseline(optimizer), self.draws[0], progress=progress, **self.tuning)
            found = run_tuned(tuned, self.draws[1], self.num_steps)
            self._keep(name, tuned)
        if self.tuning["best_so_far"]:
            found = dataclasses.replace(found, losses=lowest_so_far(found.losses))
        # Waits for the numbers, so that the name reported is that of the optimizer at work.
        jax.block_until_ready(found.losses)
        self.found[name] = found
        if _is_learned(optimizer):
            self.learned.add(name)

    def _keep(self, name: str, tuned: Tuning) -> None:
        self.losses_by_rate[name] = tuned.losses_by_rate
        # Where all that was tried diverges, nothing is the best of it.
        if np.isfinite(tuned.losses_by_rate).any():
            self.rates[name], self.settings[name] = tuned.learning_rate, tuned.settings

    @functools.cached_property
    def draws(self) -> tuple[Draws, Draws]:
        """Those of the tuning and those of the comparison, if anything needs them."""
        return _draw(self.family, *self.tuning_draws, *self.final_draws)

    def comparison(
        self, result: Literal["completed", "stopped"], order: Sequence[str] | None = None
    ) -> Comparison:
        """What there is, by the names in `order`."""
        names = [name for name in order or self.found if name in self.found]

        def of(found: dict[str, Any]) -> dict[str, Any]:
            return {name: found[name] for name in names if name in found}

        return Comparison(
            of(self.found),
            of(self.rates),
            of(self.losses_by_rate),
            self.tuning["rates"],
            of(self.settings),
            tuple(name for name in names if name in self.learned),
            self.tuning["last"],
            result,
            self.tuning["best_so_far"],
        )


def _is_learned(optimizer: object) -> bool:
    return isinstance(optimizer, AbstractOptimizer) and count_meta_parameters(optimizer) > 0


def _draw(
    family: AbstractObjectiveFamily, tkey: PRNGKeyArray, num_tuning: int, ekey: PRNGKeyArray, num: int
) -> tuple[Draws, Draws]:
    # Together, since the program that draws takes long to compile.
    keys = jnp.concatenate([jr.split(tkey, num_tuning), jr.split(ekey, num)])
    draws = draw(family, keys)
    return draws.take(jnp.arange(num_tuning)), draws.take(num_tuning + jnp.arange(num))


def _report_tuning(report: Callable[[str, float | int], None], name: str, index: int, share: float) -> None:
    # What is left of one optimizer after its tuning is to run it on the draws of the comparison.
    report(name, index + 0.9 * share)


def _as_baseline(optimizer: Baseline | MakeOptimizer) -> Baseline:
    return optimizer if isinstance(optimizer, Baseline) else Baseline(optimizer, schedules=("constant",))


def _check(num_steps: int, num_objectives: int, num_tuning_objectives: int, last: int) -> None:
    check_sizes(
        "compare",
        num_steps=num_steps,
        num_objectives=num_objectives,
        num_tuning_objectives=num_tuning_objectives,
        last=last,
    )
    if last > num_steps:
        raise ArgumentError(
            f"`compare(last={last})`: there are only num_steps={num_steps} losses in a run.",
            argument="last",
            given=last,
        )
