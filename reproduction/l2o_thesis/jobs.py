"""Many experiments: cut into jobs, kept on disk as they end, spread over processes."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from l2o_eqx.data import load_mnist

from .experiment import Experiment, run
from .figures import Spec
from .kept import path_of, save

# (work done, work in all, what to say), both in seconds of a core of the machine it was calibrated on.
Progress = Callable[[float, float, str], None]


@dataclasses.dataclass(frozen=True)
class Job:
    """Some restarts of the experiment with settings `spec`, in a form that another process can read.

    `data` and `data_dir` are of `load_mnist`, `seed`, `first` and `restarts` of `run`; results belong to
    `path`; `work` is roughly how long it takes, in seconds of one core.
    """

    name: str
    spec: Spec
    seed: int
    first: int
    restarts: int
    path: Path
    work: float
    data: Any = "auto"
    data_dir: str | None = None

    def do(self, tell: Callable[[float], None]) -> None:
        """Runs it, keeps the results, and tells the share that is done."""
        experiment = Experiment(self.spec, load_mnist(self.data, self.data_dir))
        callbacks = [lambda p: tell(p.super_epoch / (p.super_epochs + 1))]
        numbers = {"restarts": self.restarts, "first": self.first, "seed": self.seed}
        save(self.path, experiment, run(experiment, **numbers, callbacks=callbacks))
        tell(1.0)


def make_jobs(
    experiments: Mapping[str, tuple[Experiment, int]], folder: Path, *, seed: int, **source: Any
) -> list[Job]:
    """What experiments, each with its number of restarts, are cut into; what they share is there once."""
    found: dict[Path, Job] = {}
    for name, (experiment, restarts) in experiments.items():
        for first in range(0, restarts, experiment.restarts_per_job):
            number = min(experiment.restarts_per_job, restarts - first)
            path = path_of(folder, experiment, seed, first, number)
            work = number * experiment.work
            found.setdefault(path, Job(name, experiment.spec, seed, first, number, path, work, **source))
    # All experiments advance together, so that an interrupted call leaves as many restarts of each.
    return sorted(found.values(), key=lambda job: job.first)


def num_processes(asked: int | None) -> int:
    """How many processes to work in: as asked, or one per core, but one on an accelerator.

    **Raises:** `ValueError` for several on an accelerator: each would want all of its memory.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return (os.cpu_count() or 1) if asked is None else asked
    if asked not in (None, 1):
        raise ValueError(
            f"`reproduce(processes={asked})`: on an accelerator ({backend}) all restarts of an experiment "
            "are one program of one process; leave it out, or set JAX_PLATFORMS=cpu."
        )
    return 1


def do_all(jobs: Sequence[Job], processes: int, progress: Progress) -> None:
    """Does jobs, several processes at a time.

    On CPUs a process of its own for every core does about twice the work of one process on two cores
    (docs/performance.md).
    """
    shares = [0.0] * len(jobs)
    total = sum(job.work for job in jobs)

    def tell(index: int, share: float) -> None:
        # Reports of other processes may be late.
        shares[index] = max(share, shares[index])
        done = sum(share * job.work for share, job in zip(shares, jobs, strict=True))
        progress(done, total, jobs[index].name)

    if processes > 1 and len(jobs) > 1:
        _do_in_processes(jobs, min(processes, len(jobs)), tell)
        return
    for i, job in enumerate(jobs):
        job.do(lambda share, i=i: tell(i, share))


# Where the processes of `_do_in_processes` report: pairs of a job's number and the share that is done.
_REPORTS: list[Any] = []


def _start_worker(reports: Any) -> None:
    # One thread per process: XLA's would only get into each other's way. XLA reads this when it starts.
    os.environ["NPROC"] = "1"
    # The parent decides what an interrupt means, and when it is killed there is nobody left to work for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _REPORTS.append(reports)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(index: int, job: Job) -> None:
    job.do(lambda share: _REPORTS[0].put((index, share)))


def _do_in_processes(jobs: Sequence[Job], processes: int, tell: Callable[[int, float], None]) -> None:
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    with concurrent.futures.ProcessPoolExecutor(
        processes, context, initializer=_start_worker, initargs=(reports,)
    ) as pool:
        with _no_interrupts():
            waiting = {pool.submit(_work, i, job): i for i, job in enumerate(jobs)}
        try:
            while waiting:
                done = concurrent.futures.wait(
                    waiting, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                ).done
                for future in done:
                    future.result()
                    tell(waiting.pop(future), 1.0)
                with contextlib.suppress(queue.Empty):
                    while True:
                        tell(*reports.get_nowait())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    # Processes begin with the signals that are blocked where they are started. Until `_start_worker` is
    # called they would answer an interrupt with a traceback.
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
