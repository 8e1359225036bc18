"""Several processes that work on one run, on one machine or many; the first of them writes and speaks."""

import contextlib
import dataclasses
import io
import os
import re
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._errors import Failure, UsageError
from ._folder import CONFIG, RECORD
from ._interrupt import leave_at_once
from ._options import MACHINE

if TYPE_CHECKING:
    from ._output import Output

Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Work with the other processes of the job.",
        rich_help_panel=MACHINE,
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        help="Of process 0, without SLURM or Open MPI.",
        metavar="HOST:PORT",
        rich_help_panel=MACHINE,
    ),
]
Process = Annotated[
    str | None,
    typer.Option(help="Which of them this is, from 0/N on.", metavar="I/N", rich_help_panel=MACHINE),
]

# After so long without a sign of life a process counts as gone.
_SECONDS = 30
_PATIENCE_SECONDS = 300
# How JAX, its coordination service, and what moves arrays between processes say that one is gone.
_PEER_IS_GONE = re.compile(
    r"gloo|nccl|coordination|heartbeat|connection (closed|reset|refused)|peer|UNAVAILABLE|ABORTED", re.I
)
# What a run is taken up from.
_STATE = ("checkpoints", "metrics.jsonl", CONFIG, RECORD)


@dataclasses.dataclass(frozen=True)
class Crew:
    """The processes of a command, by what its options say.

    **Fields:**

    - `wanted`: whether there are several.
    - `coordinator`, `index`, `count`: where the first one is, which one this is, and of how many; `None` if
        the job's environment says so.
    """

    wanted: bool = False
    coordinator: str | None = None
    index: int | None = None
    count: int | None = None

    @classmethod
    def of(cls, distributed: bool, coordinator: str | None, process: str | None) -> "Crew":
        """The one that the options of a command describe.

        **Raises:** `UsageError` for options that contradict one another or cannot be read.
        """
        if coordinator is None and process is None:
            return cls(distributed)
        if coordinator is None or process is None:
            given, missing = ("process", "coordinator") if coordinator is None else ("coordinator", "process")
            raise UsageError(f"option '--{given}' needs '--{missing}'")
        port = coordinator.rpartition(":")[2]
        if not re.fullmatch(r"[^\s/]+:\d{1,5}", coordinator) or not 0 < int(port) < 2**16:
            raise UsageError(f"option '--coordinator': {coordinator!r} is not HOST:PORT, such as node1:9000")
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", process)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not index < count:
            raise UsageError(f"option '--process': {process!r} is not I/N; 0/2 and 1/2 are two processes")
        return cls(True, coordinator, index, count)

    @contextlib.contextmanager
    def joined(self) -> Iterator["Member"]:
        """This process as one of them, once all are there.

        **Raises:** `UsageError` where nothing tells who they are; `Failure` if one cannot be reached, or has
        ended on the way.
        """
        if not self.wanted:
            yield Member()
            return
        self._join()
        from l2o_eqx._devices import is_first_process

        with tempfile.TemporaryDirectory(prefix="l2o-", ignore_cleanup_errors=True) as scratch:
            member = Member(is_first_process(), Path(scratch))
            try:
                yield member
            except typer.Exit:
                raise
            except Exception as error:
                if member.agreed:
                    raise
                # The others are not waited for, who may wait for this one.
                leave_at_once()
                if isinstance(error, typer.TyperException) or not _PEER_IS_GONE.search(str(error)):
                    raise
                raise Failure(
                    f"another process of this work has ended, or cannot be reached: {_first_line(error)}. "
                    "`l2o resume` goes on from the last checkpoint, with as many processes as there are"
                ) from None
            except BaseException:
                leave_at_once()
                raise

    def _join(self) -> None:
        import jax

        try:
            with _patience(), _stdout_on_stderr():
                jax.distributed.initialize(
                    self.coordinator,
                    self.count,
                    self.index,
                    initialization_timeout=2 * _PATIENCE_SECONDS,
                    heartbeat_timeout_seconds=_SECONDS,
                )
                from l2o_eqx._devices import any_process

                # What moves arrays between processes tells on stdout that it begins to.
                any_process(False)
        except ValueError:
            raise UsageError(
                "option '--distributed': neither SLURM nor Open MPI says which processes there are; name "
                "them: --coordinator HOST:PORT --process I/N"
            ) from None
        except RuntimeError as error:
            leave_at_once()
            raise Failure(f"not all processes have come: {_first_line(error)}") from None


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    # In the end JAX would abort the process with a stack trace.
    def give_up() -> None:
        print(
            f"l2o: not all processes have come within {_PATIENCE_SECONDS} seconds; is each started, with its "
            "own --process, and is --coordinator reached from all machines?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(Failure.exit_code)

    timer = threading.Timer(_PATIENCE_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@dataclasses.dataclass
class Member:
    """One process at work.

    **Fields:**

    - `is_first`: whether it is the one that writes and speaks. The others do the same work, in a folder that
        goes with them.
    - `scratch`: for that folder; `None` for a process alone.
    - `agreed`: whether all end for the same reason.
    """

    is_first: bool = True
    scratch: Path | None = None
    agreed: bool = False

    def folder(self, out: Path | None) -> Path | None:
        """Where this one writes what the first one writes in `out`."""
        return out if self.is_first or self.scratch is None else self.scratch / "run"

    def output(self, quiet: bool, as_json: bool) -> "Output":
        """What the user sees of it."""
        from ._output import Output

        return Output(quiet, as_json) if self.is_first else Output(quiet=True, as_json=False)

    def check(self, check: Callable[[], object]) -> None:
        """A check that is the first one's to make; all end if it says no.

        **Raises:** `UsageError` as `check` does, and `typer.Exit` in the others.
        """
        if self.scratch is None:
            check()
            return
        from l2o_eqx._devices import any_process

        mistake = None
        if self.is_first:
            try:
                check()
            except UsageError as error:
                mistake = error
        if any_process(mistake is not None):
            self.agreed = True
            raise mistake or typer.Exit(UsageError.exit_code)

    def copy_of(self, folder: Path) -> Path:
        """A run's folder to take it up from: itself, or for the others what they need of it."""
        if self.scratch is None:
            return folder
        from l2o_eqx._devices import from_first_process

        content = from_first_process(_packed(folder) if self.is_first else b"")
        if self.is_first:
            return folder
        own = self.scratch / "run"
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(own, filter="data")
        return own


def _packed(folder: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in _STATE:
            if (folder / name).exists():
                archive.add(folder / name, name)
    return content.getvalue()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
