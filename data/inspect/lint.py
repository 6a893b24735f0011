"""Is every sample usable, and does the folder say what is in it? Shards are read in processes of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tqdm import tqdm

from data.inspect.folder_check import check_folder
from data.inspect.problems import Problem, Totals
from data.inspect.samples import FRAMES
from data.inspect.shard_check import CheckJob, ShardReport, check_shard
from data.inspect.targets import ShardFile, Target
from data.workers.pool import Died, each


def lint(target: Target, totals: Totals, workers: int, whole: bool, frames: int = FRAMES) -> Iterator[Problem]:
    """Problems of the target that are to be shown, as they are found; counts go to `totals`. whole: all splits are there."""
    jobs = [CheckJob(shard, frames, totals.max_problems) for shard in target.shards]
    reports: dict[ShardFile, ShardReport] = {}
    for job, result in tqdm(each(check_shard, jobs, workers), target.name, len(jobs), unit=" shards", disable=None):
        if isinstance(result, Died):
            reason = "the process that read this shard died: a codec crashed on it, or memory ran out"
            result = ShardReport((Problem("error", str(job.shard.path), reason),), 1)
        reports[job.shard] = dataclasses.replace(result, problems=())
        totals.shards += 1
        totals.samples += len(result.keys_N)
        yield from (problem for problem in result.problems if totals.add(problem))
        totals.errors += result.num_errors - sum(problem.severity == "error" for problem in result.problems)
    across = check_folder(target, reports, whole, totals.max_problems)
    yield from (problem for problem in across if totals.add(problem))
