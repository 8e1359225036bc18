"""What a comparison of learned starts has beside baselines: a start learned without inner steps, and fits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx import plots
from l2o_eqx._fit_plot import are_curves
from l2o_eqx.files import replacing
from l2o_eqx.objectives import FewShot
from l2o_eqx.optimizers import GradientDescent, LearnedStart

from ._build import Parts, build
from ._output import Output
from ._pictures import draw
from ._resolve import Table

JOINT = "joint"
# Points of a curve that is drawn.
_POINTS = 300
# Far from the small numbers that splitting a key amounts to.
_TRAINING, _TUNING, _FITS = 3001, 3002, 3003


def can_be_joint(parts: Parts, optimizer: Any) -> bool:
    """Whether a start trained on all tasks without inner steps belongs beside an optimizer."""
    learned = isinstance(optimizer, LearnedStart) and isinstance(parts.family, FewShot)
    return learned and parts.config.evaluation.joint


def train_jointly(
    optimizer: LearnedStart,
    parts: Parts,
    output: Output,
    *,
    restarts: int | None,
    key: PRNGKeyArray,
    state: l2o.MetaState | None = None,
    callbacks: Sequence[Any] = (),
) -> LearnedStart:
    """Gradient descent at a tuned rate from a start that was trained as long, but without inner steps.

    What minimizes the loss on the query sets of all tasks where no step is taken has not learned to learn.

    **Arguments:**

    - `optimizer`: the untrained learner, or a batch of `restarts`: where this training begins, too.
    - `parts`: the settings of the run.
    - `output`: shows the progress.
    - `key`: draws the tasks.
    - `state`, `callbacks`: as in `meta_train`.
    """
    meta = parts.config.meta
    # Steps of length zero, so that the loss after them is that of the start.
    still = LearnedStart(GradientDescent(None, 0.0, rates="fixed"), optimizer.start)
    strategy = l2o.strategies.OncePerSuperEpoch(l2o.estimators.Backprop(), include_final_loss=True)
    with output.progress("training jointly", meta.super_epochs, "compiling") as update:

        def show(progress: l2o.Progress) -> None:
            update(progress.super_epoch, f"meta-loss {np.median(progress.metrics['meta_loss']):.4g}")

        solution = l2o.meta_train(
            still,
            parts.family,
            strategy,
            weighting=l2o.weightings.FinalOnly(),
            meta_optimizer=parts.meta_optimizer,
            num_steps=1,
            super_epochs=meta.super_epochs,
            num_objectives=meta.num_objectives,
            restarts=restarts,
            per_call=meta.per_call,
            key=jr.fold_in(key, _TRAINING),
            callbacks=[show, *callbacks],
            state=state,
        )
    trained = solution.optimizer
    assert isinstance(trained, LearnedStart)
    rate = _best_rate(trained.start, parts, restarts, jr.fold_in(key, _TUNING))
    output.say(
        f"{JOINT}: gradient descent from a start trained on all tasks without inner steps; its rate, "
        f"{rate:.3g}, is tuned."
    )
    return LearnedStart(GradientDescent(None, rate, rates="fixed"), trained.start)


def _best_rate(start: Any, parts: Parts, restarts: int | None, key: PRNGKeyArray) -> float:
    """The rate whose median final loss is lowest, of restarts the median of theirs."""
    settings = parts.config.evaluation
    rates = np.asarray(settings.learning_rates)
    count = restarts or 1
    starts = start if restarts else jax.tree.map(lambda x: x[None], start)
    # Every restart with every rate, as one batch.
    batch = jax.tree.map(lambda x: jnp.repeat(x, len(rates), axis=0), starts)
    learned = jnp.tile(jnp.asarray(rates, jnp.result_type(float)), count)
    inner = eqx.tree_at(lambda o: o.learned, GradientDescent(None, 0.0), learned)
    found = l2o.evaluate(
        LearnedStart(inner, batch),
        parts.family,
        num_steps=parts.evaluation_steps,
        num_objectives=settings.num_tuning_objectives,
        restarts=count * len(rates),
        key=key,
    )
    final = np.asarray(found.final_losses, np.float64)
    medians = np.median(np.where(np.isfinite(final), final, np.inf), axis=1).reshape(count, -1)
    return float(rates[int(np.argmin(np.median(medians, axis=0)))])


def write_fits(
    folder: Path, learners: Mapping[str, Any], parts: Parts, output: Output, *, restarts: int | None
) -> None:
    """Writes `fits.csv` and `fits.png` of learners, with restarts of the first, if the tasks are curves.

    **Arguments:**

    - `folder`: where to.
    - `learners`: by name, each one or a batch of `restarts`.
    - `parts`: with the family.
    - `output`: is told if the picture cannot be drawn.
    """
    if not are_curves(parts.family):
        return
    config = parts.config
    last = parts.evaluation_steps - 1
    ones = {name: l2o.select_restart(one, 0) if restarts else one for name, one in learners.items()}
    fits = plots.fit_curves(
        ones,
        _with_many_points(config, parts.family),
        steps=sorted({0, min(1, last), last}),
        key=jr.fold_in(jr.key(config.seed), _FITS),
    )
    with replacing(folder / "fits.csv") as path:
        plots.write_fits(fits, path)
    title = f"{config.objective.kind}: unseen tasks"
    draw(folder / "fits.png", lambda path: plots.plot_fits(fits, path, title=title), output)


def _with_many_points(config: Table, family: Any) -> Any:
    # The same tasks, with as many points of the curve as make a line of it.
    if "num_query" not in config.objective:
        return family
    return build(config.but(objective=config.objective.but(num_query=_POINTS))).family
