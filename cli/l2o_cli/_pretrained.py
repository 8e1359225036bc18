"""Pretraining, alone or before a training: run it, keep it, show it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jaxtyping import PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx import plots
from l2o_eqx.files import replacing

from ._build import Parts
from ._output import Output
from ._pictures import draw

FILE = "pretraining.csv"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A solution, and the report on the optimizer before it."""

    solution: l2o.PretrainSolution
    before: l2o.PretrainReport

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` and `--json` have of it; with restarts, numbers are lists."""
        return {
            "num_updates": self.solution.state.losses.shape[-1],
            "before": _numbers(self.before),
            "after": _numbers(self.solution.report),
            "failed_restarts": list(self.solution.failed_restarts),
        }


def run_pretraining(
    optimizer: Any,
    parts: Parts,
    output: Output,
    *,
    restarts: int | None,
    key: PRNGKeyArray,
    state: l2o.PretrainState | None = None,
    callbacks: Sequence[Any] = (),
) -> Pretrained:
    """`l2o_eqx.pretrain`, and how far the optimizer was from its aim before.

    **Arguments:**

    - `optimizer`: the untrained one, or a batch of `restarts`.
    - `parts`: with the settings `pretraining`.
    - `output`: shows the progress.
    - `key`: draws the inputs.
    - `state`: to go on from.
    - `callbacks`: beside that which shows the progress.
    """
    settings = parts.config.pretraining
    input_std = settings.input_std
    before = l2o.pretraining_report(optimizer, input_std=input_std, restarts=restarts, key=key)
    num_updates = settings.num_samples // settings.batch_size
    with output.progress("pretraining", num_updates, "compiling") as update:

        def show(progress: l2o.PretrainProgress) -> None:
            loss = np.median(np.mean(progress.losses, axis=-1))
            update(progress.update, f"loss {loss:.4g}")

        solution = l2o.pretrain(
            optimizer,
            omega=settings.omega,
            loss=settings.loss,
            input_std=input_std,
            num_steps=settings.num_steps,
            batch_size=settings.batch_size,
            num_samples=settings.num_samples,
            carry_state=settings.carry_state,
            meta_optimizer=optax.adam(settings.meta_learning_rate, eps=settings.eps),
            restarts=restarts,
            key=key,
            callbacks=[*callbacks, show],
            state=state,
        )
    return Pretrained(solution, before)


def write_pretraining(folder: Path, pretrained: Pretrained, output: Output) -> None:
    """Writes `pretraining.csv` and `pretraining.png`."""
    with replacing(folder / FILE) as path:
        pretrained.solution.write_losses(path)
    losses = pretrained.solution.state.losses
    draw(folder / "pretraining.png", lambda path: plots.plot_pretraining(losses, path), output)


def show_pretraining(pretrained: Pretrained, output: Output) -> None:
    """One line on signs and errors before and after."""
    before, after = pretrained.before, pretrained.solution.report
    restarts = np.size(after.sign_agreement)
    note = f", medians of {restarts} restarts" if restarts > 1 else ""
    output.say(
        f"Pretrained (first 16 steps on new inputs{note}): "
        f"sign agreement {_median(before.sign_agreement):.1%} before, "
        f"{_median(after.sign_agreement):.1%} after; "
        f"relative error {_median(before.relative_error):.3g} before, "
        f"{_median(after.relative_error):.3g} after."
    )


def _numbers(report: l2o.PretrainReport) -> dict[str, Any]:
    return {
        "sign_agreement": np.asarray(report.sign_agreement),
        "relative_error": np.asarray(report.relative_error),
    }


def _median(values: Any) -> float:
    return float(np.median(np.asarray(values)))
