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
import numpy as np

from ..data import load_mnist
from ._experiment import Experiment, Results, join, run
from ._files import replacing
from ._setup import Scale, Setup, Source

# (work done, work in all, what to say), both in seconds of a core of the machine it was calibrated on.
Progress = Callable[[float, float, str], None]
# From a setup to experiments by name: what a process can make again for itself.
MakeExperiments = Callable[[Setup], Mapping[str, Experiment]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run, in a form that another process can read.

    **Fields:**

    - `make_experiments`: a function at the top of a module.
    - `folder`: keeps the results of every job.
    - `data`, `data_dir`: of `l2o_eqx.data.load_mnist`.
    - `scale`, `source`: of `Setup`.
    - `seed`: same seed, same numbers.
    """

    make_experiments: MakeExperiments
    folder: Path
    data: Any = "auto"
    data_dir: str | None = None
    scale: Scale = "full"
    source: Source = "figures"
    seed: int = 0

    def setup(self) -> Setup:
        """Loads the digits."""
        return Setup(load_mnist(self.data, self.data_dir), self.scale, self.source)

    def path(self, experiment: Experiment, first: int, restarts: int) -> Path:
        """Where the results of some restarts are kept."""
        return self.folder / f"{experiment.digest}-seed{self.seed}" / f"restarts-{first:04}-{restarts:03}.npz"


@dataclasses.dataclass(frozen=True)
class Job:
    """Some restarts of the experiment `name`, from number `first` on."""

    name: str
    first: int
    restarts: int


def run_all(
    plan: Plan,
    restarts: Mapping[str, int],
    *,
    processes: int | None = None,
    progress: Progress = lambda done, total, text: None,
) -> dict[str, Results]:
    """Runs experiments, or what is missing of them: results of earlier, interrupted calls are taken up.

    **Arguments:**

    - `plan`: which experiments.
    - `restarts`: how many of each, by name.
    - `processes`: how many to work in; by default one per core. On CPUs a process of its own for every
        core does about twice the work of one process on two cores (docs/performance.md); an accelerator is
        used from this process.
    - `progress`: is told how far the work is.

    **Returns:** the results by name.

    **Raises:** `ValueError` for several processes on an accelerator.
    """
    processes = num_processes(processes)
    experiments = experiments_to_run(plan, restarts)
    missing = missing_jobs(distinct_jobs(plan, experiments, restarts))
    work = {name: experiments[name].work() for name in {job.name for job in missing}}
    costs = [work[job.name] * job.restarts for job in missing]
    total = sum(costs)

    if processes == 1 or len(missing) < 2:
        done = 0.0
        for job, cost in zip(missing, costs, strict=True):
            experiment = experiments[job.name]

            def tell(share: float, done: float = done, cost: float = cost, name: str = job.name) -> None:
                progress(done + share * cost, total, name)

            _run_job(plan, experiment, job, tell)
            done += cost
    else:
        _run_in_processes(plan, missing, costs, min(processes, len(missing)), progress)
    return {
        name: join([load(plan.path(e, job.first, job.restarts)) for job in _jobs(name, e, restarts[name])])
        for name, e in experiments.items()
    }


def num_processes(asked: int | None) -> int:
    """How many processes `run_all` works in.

    **Arguments:**

    - `asked`: how many; `None` for one per core, and on an accelerator for one.

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


def experiments_to_run(plan: Plan, restarts: Mapping[str, int]) -> dict[str, Experiment]:
    """The plan's experiments that `restarts` names."""
    return {name: e for name, e in plan.make_experiments(plan.setup()).items() if name in restarts}


def distinct_jobs(
    plan: Plan, experiments: Mapping[str, Experiment], restarts: Mapping[str, int]
) -> dict[Path, Job]:
    """What experiments are cut into, by where its results belong: what figures share is there once."""
    found: dict[Path, Job] = {}
    for name, experiment in experiments.items():
        for job in _jobs(name, experiment, restarts[name]):
            found.setdefault(plan.path(experiment, job.first, job.restarts), job)
    return found


def missing_jobs(found: Mapping[Path, Job]) -> list[Job]:
    """The jobs without results, in the order to run them."""
    # All experiments advance side by side, so that an interrupted call leaves as many restarts of each.
    missing = [job for path, job in found.items() if not path.exists()]
    return sorted(missing, key=lambda job: job.first)


def _jobs(name: str, experiment: Experiment, restarts: int) -> list[Job]:
    size = experiment.restarts_per_job
    return [Job(name, i, min(size, restarts - i)) for i in range(0, restarts, size)]


def _run_job(
    plan: Plan, experiment: Experiment, job: Job, tell: Callable[[float], None] = lambda share: None
) -> None:
    results = run(
        experiment,
        restarts=job.restarts,
        first=job.first,
        seed=plan.seed,
        callbacks=[lambda p: tell(p.super_epoch / (p.super_epochs + 1))],
    )
    save(plan.path(experiment, job.first, job.restarts), results)
    tell(1.0)


# What the processes of `_run_in_processes` hold: the plan's experiments, and where to report.
_WORKER: dict[str, Any] = {}


def _start_worker(plan: Plan, reports: Any) -> None:
    # One thread per process: XLA's would only get into each other's way. XLA reads this when it starts.
    os.environ["NPROC"] = "1"
    # The parent decides what an interrupt means, and when it is killed there is nobody left to work for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _WORKER.update(plan=plan, reports=reports, experiments=plan.make_experiments(plan.setup()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(index: int, job: Job) -> None:
    def tell(share: float) -> None:
        _WORKER["reports"].put((index, share))

    _run_job(_WORKER["plan"], _WORKER["experiments"][job.name], job, tell)


def _run_in_processes(
    plan: Plan, jobs: Sequence[Job], costs: Sequence[float], processes: int, progress: Progress
) -> None:
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    shares = dict.fromkeys(range(len(jobs)), 0.0)
    total = sum(costs)
    with concurrent.futures.ProcessPoolExecutor(
        processes, context, initializer=_start_worker, initargs=(plan, reports)
    ) as pool:
        with _no_interrupts():
            futures = [pool.submit(_work, i, job) for i, job in enumerate(jobs)]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = concurrent.futures.wait(
                    waiting, timeout=0.5, return_when=concurrent.futures.FIRST_EXCEPTION
                )
                for future in done:
                    future.result()
                latest = None
                with contextlib.suppress(queue.Empty):
                    while True:
                        latest, share = reports.get_nowait()
                        shares[latest] = share
                if latest is not None:
                    work = sum(shares[i] * cost for i, cost in enumerate(costs))
                    progress(work, total, jobs[latest].name)
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


def save(path: Path, results: Results) -> None:
    """Writes the results of a job, whole or not at all."""
    arrays = {"losses": results.losses.astype(np.float32), "seconds": np.asarray(results.seconds)}
    arrays |= {f"measured:{name}": x for name, x in results.measured.items()}
    arrays |= {f"metrics:{name}": x for name, x in results.metrics.items()}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def load(path: Path) -> Results:
    """Reads what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        groups: dict[str, dict[str, np.ndarray]] = {"measured": {}, "metrics": {}}
        for key in file.files:
            group, _, name = key.partition(":")
            if name:
                groups[group][name] = file[key]
        return Results(file["losses"], groups["measured"], groups["metrics"], float(file["seconds"]))
