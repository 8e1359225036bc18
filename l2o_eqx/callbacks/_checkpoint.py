"""What a training keeps on the disk as it goes on."""

from pathlib import Path
from typing import Any

import equinox as eqx

from .._checks import check_sizes
from .._errors import ArgumentError
from .._serialise import save
from ._base import AbstractCallback


class Checkpoint(AbstractCallback):
    """Keeps the state of a `meta_train` or `pretrain` in a file, to go on from there.

    `meta_train(..., state=l2o_eqx.load(path))` goes on. A reader sees the state before or the one after,
    never half of one. It is written at the end, too, unless an error ends the training.

    **Arguments:**

    - `path`: the file; its folder must exist.
    - `every`: steps from one to the next: super epochs, or hundreds of updates.

    **Raises:** `ArgumentError` for an `every` below 1.
    """

    path: Path = eqx.field(converter=Path)
    every: int = 1
    _steps: list[int] = eqx.field(init=False, default_factory=lambda: [0])

    def __check_init__(self):
        check_sizes("Checkpoint", every=self.every)

    def on_step(self, progress: Any) -> None:
        self._steps[0] += 1
        if self._steps[0] % self.every == 0:
            self._save(progress.state)

    def on_end(self, solution: Any) -> None:
        if solution is not None:
            self._save(solution.state)

    def _save(self, state: Any) -> None:
        save(self.path, state)


class BestSnapshot(AbstractCallback):
    """Keeps the best optimizer of a `meta_train` with a validation in a file.

    It is there from the start, when the untrained one is the best so far, and is replaced by each that is
    better; `load_metadata` says after how many super epochs it was found (`super_epoch`), its score
    (`validation_loss`, null if not finite), and whether it is a mean of several (`averaged`). With restarts,
    it is a batch of them, and so are these numbers.

    **Arguments:**

    - `path`: the file; its folder must exist.

    **Raises:** `ArgumentError` in a training without a validation.
    """

    path: Path = eqx.field(converter=Path)
    _written: list[dict[str, Any]] = eqx.field(init=False, default_factory=list)

    def on_start(self, progress: Any) -> None:
        self._written.clear()
        if progress.state.best is not None:
            self._save(progress.state.best)

    def on_step(self, progress: Any) -> None:
        if progress.state.best is None:
            raise ArgumentError(
                "`BestSnapshot` keeps what a validation finds best: give `meta_train(validation=...)`.",
                argument="validation",
            )
        self._save(progress.state.best)

    def on_end(self, solution: Any) -> None:
        if solution is not None:
            self._save(solution.best)

    def _save(self, best: Any) -> None:
        facts = best.facts()
        if self._written != [facts]:
            save(self.path, best.optimizer, metadata=facts)
            self._written[:] = [facts]
