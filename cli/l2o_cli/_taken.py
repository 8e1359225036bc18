"""Which optimizer a training is left with: the last one, or what `--validate-every` or `--average` keep."""

from typing import Any

import numpy as np

import l2o_eqx as l2o


def taken_from(state: l2o.MetaState) -> tuple[Any, dict[str, Any] | None]:
    """The optimizer to keep, and what to say of it; `None` where it is simply the last one.

    **Arguments:**

    - `state`: where the training stands.
    """
    if state.best is not None:
        return state.best.optimizer, {"by": "validation", **state.best.facts()}
    if state.average is not None:
        count = int(state.average.count)
        return state.average.optimizer, {"by": "average", "super_epochs_averaged": count}
    return state.optimizer, None


def describe_taken(taken: dict[str, Any], super_epochs: int) -> str:
    """One line for people.

    **Arguments:**

    - `taken`: of `taken_from`.
    - `super_epochs`: how many were done.
    """
    if taken["by"] == "average":
        return f"Taken: the mean of the optimizers of the last {taken['super_epochs_averaged']} super epochs."
    epochs, losses = (
        np.atleast_1d(taken["super_epoch"]),
        np.atleast_1d(taken["validation_loss"]).astype(float),
    )
    averaged = np.atleast_1d(taken["averaged"])
    if len(epochs) == 1:
        which = (
            "the mean of the last optimizers"
            if averaged[0]
            else f"the optimizer after {epochs[0]} of {super_epochs} super epochs"
        )
        return f"Taken: {which}, the best by validation (loss {losses[0]:.4g})."
    means = f"; {averaged.sum()} of them means of the last ones" if averaged.any() else ""
    return (
        f"Taken: of each restart the best by validation, after {epochs.min()} to {epochs.max()} of "
        f"{super_epochs} super epochs (median loss {np.median(losses):.4g}{means})."
    )
