"""What earlier calls of `run_all` left on disk, and what is left to do."""

import collections
import dataclasses
import os
from collections.abc import Collection, Mapping

from ._experiment import Experiment, Results, join
from ._runner import Job, Plan, distinct_jobs, experiments_to_run, load, missing_jobs

# Measured on the experiments of all figures at the quick scale.
_COMPILE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What there is to do.

    **Fields:**

    - `restarts`: of all experiments together, those that figures share counted once.
    - `kept`: how many of them earlier calls left on disk.
    - `seconds`: roughly what all of them take, in seconds of one core, with compiling.
    - `seconds_left`: the same of those that are not kept.
    """

    restarts: int
    kept: int
    seconds: float
    seconds_left: float


def outlook(plan: Plan, experiments: Mapping[str, Experiment], restarts: Mapping[str, int]) -> Outlook:
    """What `run_all` has to do for some of the plan's experiments.

    **Arguments:**

    - `plan`: says where results are kept.
    - `experiments`, `restarts`: which ones and how many of each, by name.
    """
    found = distinct_jobs(plan, experiments, restarts)
    missing = missing_jobs(found)

    work = {name: experiments[name].work() for name in {job.name for job in found.values()}}

    def seconds(jobs: Collection[Job]) -> float:
        # Every process compiles every experiment it has a job of.
        num_jobs = collections.Counter(experiments[job.name].digest for job in jobs)
        compiling = _COMPILE_SECONDS * sum(min(n, os.cpu_count() or 1) for n in num_jobs.values())
        return compiling + sum(work[job.name] * job.restarts for job in jobs)

    total = sum(job.restarts for job in found.values())
    kept = total - sum(job.restarts for job in missing)
    return Outlook(total, kept, seconds(found.values()), seconds(missing))


def load_kept(plan: Plan, restarts: Mapping[str, int]) -> dict[str, Results]:
    """What earlier calls left on disk, however many restarts they were asked for.

    **Arguments:**

    - `plan`: which experiments.
    - `restarts`: at most so many of each, by name.

    **Returns:** the results of the restarts 0, 1, … up to the first that is missing; experiments of which
        there are none are left out.
    """
    kept = {}
    for name, experiment in experiments_to_run(plan, restarts).items():
        folder = plan.path(experiment, 0, 0).parent
        there = [tuple(map(int, path.stem.split("-")[1:])) for path in folder.glob("restarts-*.npz")]
        parts = []
        end = 0
        while fitting := [n for first, n in there if first == end and end + n <= restarts[name]]:
            parts.append(load(plan.path(experiment, end, max(fitting))))
            end += max(fitting)
        if parts:
            kept[name] = join(parts)
    return kept
