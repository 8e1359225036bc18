"""The state of a training on the disk, to go on from there whatever happens."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx

from .._checks import check_sizes
from .._errors import ArgumentError, check
from .._serialise import FileFormatError, load, load_metadata, save
from ..files import dumps, remove_debris
from ._base import AbstractCallback

_NAME = "checkpoint-{:09}.safetensors"
_PATTERN = "checkpoint-*.safetensors"


class Checkpoint(AbstractCallback):
    """Keeps the last states of a `meta_train` or `pretrain` in a folder, to go on from there.

    `meta_train(..., state=load_checkpoint(folder))` goes on, bit for bit as if nothing had happened: a state
    has the optimizer, those of meta-optimizer and strategy, the best snapshot and the average. Each is a file
    of its own, there whole or not at all, also after `kill -9`. One is written before the first step, which
    finds what cannot be stored, and one at the end, also after an error. Those between are written by a
    thread, while the training goes on.

    **Arguments:**

    - `folder`: is made if it does not exist. What is left in it of a killed process is removed; a folder with
        later states than the first one is refused.
    - `every`: steps from one to the next: super epochs, or updates. If neither this nor `minutes` is given,
        every call of callbacks.
    - `minutes`: the time from one to the next; whatever is due first.
    - `keep`: how many are kept, the last ones; at least two are of use where disks may fail.
    - `settings`: what JSON can hold, for `load_checkpoint` to compare.

    **Raises:** `ArgumentError` for sizes below 1, or `minutes` that are not positive; at a step `OSError` if
    the one before could not be written, and `TypeError` before the first step for what cannot be stored.
    """

    folder: Path = eqx.field(converter=Path)
    every: int | None = None
    minutes: float | None = None
    keep: int = 2
    settings: Mapping[str, Any] = eqx.field(default_factory=dict)
    _writer: "_Writer" = eqx.field(init=False, default_factory=lambda: _Writer())

    def __check_init__(self):
        check_sizes("Checkpoint", every=1 if self.every is None else self.every, keep=self.keep)
        check(
            f"`Checkpoint(minutes={self.minutes})` must be positive.",
            minutes=(self.minutes, self.minutes is None or self.minutes > 0),
        )

    def on_start(self, progress: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_debris(self.folder)
        self._refuse_later(progress.done)
        self._writer.begin(progress, lambda: self.save(progress))

    def on_step(self, progress: Any) -> None:
        if self._writer.is_due(progress, self.every, self.minutes):
            self._writer.write(progress, lambda: self.save(progress))
        else:
            self._writer.latest = progress

    def on_end(self, solution: Any) -> None:
        # Not that of the solution, which may have candidates for the best that a longer training has not.
        del solution
        self._writer.end(self.save)

    def save(self, progress: Any) -> None:
        """Writes a checkpoint at once, whether it is due or not.

        **Arguments:**

        - `progress`: what callbacks see.
        """
        facts = {"done": progress.done, "settings": json.loads(dumps(self.settings))}
        save(self.folder / _NAME.format(progress.done), progress.state, metadata=facts)
        for _, path in _found(self.folder)[: -self.keep]:
            path.unlink(missing_ok=True)

    def _refuse_later(self, done: int) -> None:
        # They would be taken for the newest, and are perhaps all that is left of another training.
        for later, path in _found(self.folder):
            if later > done and _is_whole(path):
                raise ArgumentError(
                    f"`Checkpoint({self.folder})`: {path.name} is later than the state that the training "
                    "begins with. Go on with `state=load_checkpoint(...)`, or name another folder.",
                    argument="folder",
                    given=self.folder,
                )
            if later > done:
                path.unlink()


class _Writer:
    # What changes as a training goes on, and the thread that writes.
    def __init__(self):
        self.latest: Any = None
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.written, self.since = -1, 0.0

    def begin(self, progress: Any, work: Callable[[], None]) -> None:
        self.latest, self.error = progress, None
        work()
        self.written, self.since = progress.done, time.monotonic()

    def is_due(self, progress: Any, every: int | None, minutes: float | None) -> bool:
        if every is None and minutes is None:
            every = 1
        # Several steps may be done at once.
        by_steps = every is not None and progress.done // every > self.latest.done // every
        return by_steps or (minutes is not None and time.monotonic() - self.since >= 60 * minutes)

    def write(self, progress: Any, work: Callable[[], None]) -> None:
        self.join()
        self.latest, self.since = progress, time.monotonic()

        def run():
            try:
                work()
                self.written = progress.done
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, name="checkpoint")
        self.thread.start()

    def end(self, save_now: Callable[[Any], None]) -> None:
        self.join()
        if self.written != self.latest.done:
            save_now(self.latest)

    def join(self) -> None:
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def load_checkpoint(
    path: str | Path, *, settings: Mapping[str, Any] | None = None, classes: Sequence[type] = ()
) -> Any:
    """The state that `Checkpoint` wrote last, for `meta_train(state=...)` or `pretrain(state=...)`.

    A file that is damaged is passed over for the one before.

    **Arguments:**

    - `path`: the folder of checkpoints, or one of its files.
    - `settings`: those of the training that is to go on; by default they are not compared.
    - `classes`: as of `load`.

    **Returns:** the state.

    **Raises:** `FileNotFoundError` if there is none; `FileFormatError` if all are damaged; `ArgumentError` if
    one of the settings is another one, which it names.
    """
    path = Path(path)
    files = [path] if path.is_file() else [file for _, file in reversed(_found(path))]
    if not files:
        raise FileNotFoundError(f"{path}: there is no checkpoint")
    facts, state = _first_whole(files, classes)
    if settings is not None:
        _compare(path, facts.get("settings", {}), json.loads(dumps(settings)))
    return state


def _first_whole(files: Sequence[Path], classes: Sequence[type]) -> tuple[dict[str, Any], Any]:
    first, *rest = files
    try:
        return load_metadata(first), load(first, classes=classes)
    except FileFormatError:
        if not rest:
            raise
        return _first_whole(rest, classes)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The file that `load_checkpoint` takes, the last one that is not damaged; `None` if there is none.

    **Arguments:**

    - `folder`: of checkpoints.
    """
    return next((path for _, path in reversed(_found(Path(folder))) if _is_whole(path)), None)


def _compare(path: Path, kept: Any, given: Any) -> None:
    kept, given = dict(_flat(kept)), dict(_flat(given))
    for name in [*given, *(name for name in kept if name not in given)]:
        # What was not a setting yet is off.
        is_new = name not in kept and given.get(name) is False
        if kept.get(name) != given.get(name) and not is_new:
            raise ArgumentError(
                f"{path} is of another training: `{name}` was {kept.get(name)!r} then, and is "
                f"{given.get(name)!r} now.",
                argument="settings",
                given=given,
            )


def _flat(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [pair for k, v in tree.items() for pair in _flat(v, f"{path}.{k}" if path else k)]


def _is_whole(path: Path) -> bool:
    try:
        load_metadata(path)
    except FileFormatError:
        return False
    return True


def _found(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder with their steps, the last one last."""
    numbers = [(path.stem.partition("-")[2], path) for path in folder.glob(_PATTERN)]
    return sorted((int(number), path) for number, path in numbers if number.isdecimal())
