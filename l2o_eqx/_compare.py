from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import PRNGKeyArray

from ._baselines import LEARNING_RATES, Baseline, LineSearch, MakeOptimizer
from ._checks import check_sizes
from ._comparison import Comparison
from ._draws import Draws, draw
from ._errors import ArgumentError
from ._evaluate import Trajectories, evaluate
from ._line_search import run_line_search
from ._meta_train import count_meta_parameters
from ._tune import Tuning, TuningMode, run_tuned, tune
from .objectives import AbstractObjectiveFamily
from .optimizers import AbstractOptimizer

# (name of the optimizer at work, how many are done, how many there are) -> nothing.
ComparisonCallback = Callable[[str, float, int], None]


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
    restarts: int | None = None,
    callback: ComparisonCallback = lambda name, index, total: None,
    key: PRNGKeyArray,
) -> Comparison:
    """Runs optimizers on the same draws from a family, after tuning those that can be tuned.

    All tuning has the same budget: the same draws, steps and learning rates.

    **Arguments:**

    - `optimizers`: by name. A `Baseline` is tuned. So is a function from a learning rate to an optax
        transformation, such as `optax.adam`, by its rate alone; if it cannot do with a traced rate, it is
        compiled once for each. Learned optimizers, ready transformations and those of a `LineSearch` run as
        they are. `{"learned": trained, "untrained": optimizer, **baselines_for(family)}` is the usual choice.
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
    - `restarts`: if given, every learned optimizer is a batch of that many.
    - `callback`: `(name, index, total)`, called as the work goes on with the optimizer's name and how many
        of the `total` are done, in fractions; at the end with `index == total`.
    - `key`: picks all draws.

    **Returns:** a `Comparison`.

    **Raises:** `ValueError` for sizes below 1, more `last` losses than steps, or no learning rates.
    """
    _check(num_steps, num_objectives, num_tuning_objectives, last)
    tried = tuple(map(float, learning_rates))
    if not tried:
        raise ArgumentError(
            "`compare(learning_rates=...)` needs at least one learning rate to try.",
            argument="learning_rates",
        )
    tkey, ekey = jr.split(key)
    known: dict[str, Trajectories] = {}
    tunings: dict[str, Tuning] = {}
    draws: tuple[Draws, Draws] | None = None
    for index, (name, optimizer) in enumerate(optimizers.items()):
        callback(name, index, len(optimizers))
        if isinstance(optimizer, AbstractOptimizer | optax.GradientTransformation):
            known[name] = evaluate(
                optimizer,
                family,
                num_steps=num_steps,
                num_objectives=num_objectives,
                restarts=restarts if _is_learned(optimizer) else None,
                key=ekey,
            )
        else:
            draws = draws or _draw(family, tkey, num_tuning_objectives, ekey, num_objectives)
            if isinstance(optimizer, LineSearch):
                known[name] = run_line_search(optimizer, draws[1], num_steps)
            else:
                tunings[name] = tune(
                    _as_baseline(optimizer),
                    draws[0],
                    rates=tried,
                    num_steps=num_steps,
                    last=last,
                    mode=tuning,
                    progress=_progress(callback, name, index, len(optimizers)),
                )
                known[name] = Trajectories(run_tuned(tunings[name], draws[1], num_steps))
        # Waits for the numbers, so that the name reported is that of the optimizer at work.
        jax.block_until_ready(known[name].losses)
    if optimizers:
        callback(list(optimizers)[-1], len(optimizers), len(optimizers))
    return Comparison(
        known,
        {name: one.learning_rate for name, one in tunings.items()},
        {name: one.losses_by_rate for name, one in tunings.items()},
        tried,
        {name: one.settings for name, one in tunings.items()},
        tuple(name for name, optimizer in optimizers.items() if _is_learned(optimizer)),
        last,
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


def _progress(callback: ComparisonCallback, name: str, index: int, total: int) -> Callable[[float], None]:
    # What is left of one optimizer after its tuning is to run it on the draws of the comparison.
    return lambda share: callback(name, index + 0.9 * share, total)


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
