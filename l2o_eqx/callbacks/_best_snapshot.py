"""The best optimizer of a training on the disk, as it goes on."""

from pathlib import Path
from typing import Any

import equinox as eqx

from .._errors import ArgumentError
from .._serialise import save
from ._base import AbstractCallback


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
