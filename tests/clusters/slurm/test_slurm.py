"""Trainings under a real Slurm: what is sent to them, whether they save, and whether they go on as if nothing had been."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters.slurm.job import seconds_of
from tests.clusters.slurm.cluster import CPUS, NODES, Cluster, missing_programs, slurm_here
from tests.clusters.slurm.made import made
from tests.helpers.runs import losses, records, tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=missing_programs() or "Slurm is here"),
]
STEPS = 120
LONG = 600
"""Steps that take longer than the half minute between two looks of Slurm at the time limits."""
UNDER_WAY = 10
"""Steps after which something happens to a run."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with slurm_here(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="module")
def config(world, tmp_path_factory) -> Path:
    return tiny_config(world, tmp_path_factory.mktemp("runs"))


def script(config: Path, name: str, *overrides: str, flags: tuple[str, ...] = ()) -> Path:
    """What the command prints for two nodes with a rank each."""
    words = (
        "--nodes=2", "--gpus-per-node=0", "--memory-per-node=1", "--cores-per-rank=2", "--time=10", "--warn=60", "--interface=lo",
        *flags, "parallel.expert=2", "data.workers=1", f"steps={STEPS}", "save_every=1000", f"name={name}",
        *overrides,
    )  # fmt: skip
    path = config.with_name(f"{name}.sbatch")
    path.write_text(made([f"--config={config}", *words]))
    return path


def steps_of(config: Path, name: str) -> int:
    path = config.parent / "runs" / name / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def events(config: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (config.parent / "runs" / name / "events.jsonl").read_text().splitlines()]


def kinds(config: Path, name: str) -> list[str]:
    """Of its events, but for what it says on its way: a longer training of a tiny model rouses the alarm of its experts."""
    return [event["kind"] for event in events(config, name) if event["kind"] not in ("note", "alarm")]


def log_of(cluster: Cluster, name: str, number: str) -> str:
    return (cluster.folder / f"slurm-{name}-{number}.out").read_text()


def wait_for(reached: Callable[[], bool], wait_s: float = 240.0) -> None:
    deadline = time.monotonic() + wait_s
    while not reached():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def under_way(cluster: Cluster, config: Path, name: str, *overrides: str, flags: tuple[str, ...] = ()) -> str:
    """The number of a job that has trained some steps."""
    number = cluster.submit(script(config, name, *overrides, flags=flags))
    wait_for(lambda: steps_of(config, name) >= UNDER_WAY)
    return number


def assert_went_on(cluster: Cluster, config: Path, name: str, number: str, whole: list[dict[str, float]]) -> None:
    """To its end, with the losses of a run that nothing happened to."""
    job = cluster.until(number, lambda job: job["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 300)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), (job, log_of(cluster, name, number))
    assert [record["step"] for record in records(config, name)] == list(range(1, len(whole) + 1))
    assert losses(config, name) == whole


@pytest.fixture(scope="module")
def whole(cluster, config) -> list[dict[str, float]]:
    """Losses of the run that nothing happens to."""
    return undisturbed(cluster, config, "whole")


def undisturbed(cluster: Cluster, config: Path, name: str, *overrides: str) -> list[dict[str, float]]:
    number = cluster.submit(script(config, name, *overrides))
    job = cluster.until(number, lambda job: job["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 300)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), log_of(cluster, name, number)
    return losses(config, name)


@pytest.mark.parametrize("partition", ["low", "bare"])
def test_a_preempted_run_saves_and_goes_on(partition, cluster, config, whole):
    """low: Slurm gives a minute of grace, and the file requeues the job; bare: Slurm requeues it at once and waits for KillWait."""
    name = f"preempted-{partition}"
    number = under_way(cluster, config, name, flags=(f"--partition={partition}",))
    sent = time.monotonic()
    other = cluster.folder / "other.sbatch"
    other.write_text("#!/bin/bash\nsleep 2\n")
    cluster.submit(
        other,
        "--partition=high",
        f"--nodes={len(NODES)}",
        f"--ntasks-per-node={CPUS}",
        "--mem=10",
        "--output=/dev/null",
    )
    cluster.until(number, lambda job: job["Restarts"] == "1")
    wait_for(lambda: "stop" in kinds(config, name))
    print(f"{partition}: {time.monotonic() - sent:.1f} s from the submission of the other job to requeued")
    assert_went_on(cluster, config, name, number, whole)
    assert kinds(config, name) == ["start", "stop", "resume", "end"]
    said = "job was cancelled, or Slurm has requeued it itself" if partition == "bare" else "saved; requeued"
    assert said in log_of(cluster, name, number)


def test_a_time_limit_saves_and_goes_on(cluster, config):
    name, steps = "limit", f"steps={LONG}"
    whole = undisturbed(cluster, config, "long", steps)
    number = under_way(cluster, config, name, steps, flags=("--time=30", "--warn=120"))
    sent = time.monotonic()
    # Nearer than --warn, so that the signal comes now: nobody has to wait for a limit.
    minutes = seconds_of(cluster.job(number)["RunTime"]) // 60 + 2
    cluster.call("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}")
    cluster.until(number, lambda job: job["Restarts"] == "1")
    print(f"time limit: {time.monotonic() - sent:.1f} s from the limit's change to requeued")
    cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    assert_went_on(cluster, config, name, number, whole)
    assert kinds(config, name) == ["start", "stop", "resume", "end"]
    assert "asked to stop ahead of time" in log_of(cluster, name, number)


def test_a_lost_machine_requeues_the_run(cluster, config, whole):
    """Its slurmd and its rank end without a word; the run goes on elsewhere, from its newest checkpoint."""
    name = "lost"
    number = under_way(cluster, config, name, "save_every=5")
    sent = time.monotonic()
    cluster.end_node(NODES[1])
    try:
        cluster.until(number, lambda job: job["Restarts"] == "1")
        print(f"lost machine: {time.monotonic() - sent:.1f} s from its end to requeued")
        assert_went_on(cluster, config, name, number, whole)
        assert kinds(config, name) == ["start", "resume", "end"]
        assert cluster.job(number)["NodeList"] == "node[1,3]"
    finally:
        cluster.start_node(NODES[1])


def test_a_user_who_cancels_keeps_what_was_learned(cluster, config):
    name = "cancelled"
    number = under_way(cluster, config, name)
    cluster.call("scancel", number)
    job = cluster.until(number, lambda job: job["JobState"] not in ("RUNNING", "COMPLETING"))
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    last = events(config, name)[-1]
    assert last["kind"] == "stop"
    assert (config.parent / "runs" / name / "checkpoints" / f"step_{last['step']:08d}" / "manifest.json").is_file()
    assert "saved; the job was cancelled" in log_of(cluster, name, number)


def test_the_obvious_file_loses_the_run(cluster, config):
    """SIGTERM to srun: it kills the ranks at once, they save nothing."""
    name = "obvious"
    path = script(config, name)
    text, replaced = path.read_text(), 'kill -USR1 "$step"'
    assert text.count(replaced) == 1
    path.write_text(text.replace(replaced, 'kill -TERM "$step"'))
    number = cluster.submit(path)
    wait_for(lambda: steps_of(config, name) >= UNDER_WAY)
    cluster.call("scancel", "--signal=USR1", "--batch", number)
    job = cluster.until(number, lambda job: job["JobState"] not in ("RUNNING", "COMPLETING"))
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "137:0", "0")
    assert kinds(config, name) == ["start"] and not list((config.parent / "runs" / name).glob("checkpoints/step_*"))


def test_a_mistake_is_not_started_again(cluster, config):
    number = cluster.submit(script(config, "mistake", "data.tasks.shapes.path=/nowhere"))
    job = cluster.until(number, lambda job: job["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    # 143: of a rank that was slower to find the mistake, and was ended as the other had ended.
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0") and job["ExitCode"] in ("2:0", "143:0")
    assert "error: /nowhere/dataset.json" in log_of(cluster, "mistake", number)


def test_a_rank_that_is_killed_ends_the_job(cluster, config):
    """The machine answers, so it is no lost machine: somebody has to look."""
    name = "killed"
    number = under_way(cluster, config, name)
    ranks = [p for p in cluster.processes() if f"name={name}" in p.cmdline() and p.environ().get("SLURM_PROCID") == "1"]
    ranks[0].kill()
    job = cluster.until(number, lambda job: job["JobState"] not in ("RUNNING", "COMPLETING"))
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    wait_for(lambda: not [p for p in cluster.processes() if f"name={name}" in p.cmdline()])


def test_an_array_is_a_run_for_each_seed(cluster, config):
    number = cluster.submit(script(config, "array", "steps=2", flags=("--seeds", "3", "5")))
    first = [losses(config, f"array_seed{seed}") for seed in (3, 5) if array_has_ended(cluster, number)]
    assert [len(run) for run in first] == [2, 2] and first[0] != first[1]


def test_a_task_of_an_array_is_requeued_alone(cluster, config):
    """The one that has the number of the whole array."""
    steps = ("steps=60",)
    number = cluster.submit(script(config, "alone", *steps, flags=("--seeds", "3", "5")))
    wait_for(lambda: steps_of(config, "alone_seed5") >= UNDER_WAY)
    assert cluster.job(f"{number}_1")["JobId"] == number  # of two that wait their turn the last has it
    cluster.call("scancel", "--signal=USR1", "--batch", f"{number}_1")
    wait_for(lambda: "resume" in kinds(config, "alone_seed5"))
    assert array_has_ended(cluster, number)
    assert kinds(config, "alone_seed3") == ["start", "end"]
    assert kinds(config, "alone_seed5") == ["start", "stop", "resume", "end"]


def array_has_ended(cluster: Cluster, number: str) -> bool:
    wait_for(lambda: not cluster.call("squeue", "-h", "-j", number, check=False).strip())
    return True


def test_a_chain_goes_on_in_the_next_job(cluster, config, whole):
    name = "chain"
    number = under_way(cluster, config, name, flags=("--chain=3",))
    following = str(int(number) + 1)
    assert cluster.job(following)["JobState"] == "PENDING"
    cluster.call("scancel", "--signal=USR1", "--batch", number)
    assert (
        cluster.until(number, lambda job: job["JobState"] not in ("RUNNING", "COMPLETING"))["JobState"] == "COMPLETED"
    )
    assert (
        cluster.until(following, lambda job: job["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 300)[
            "JobState"
        ]
        == "COMPLETED"
    )
    assert losses(config, name) == whole
    # The third is not needed.
    assert cluster.until(str(int(number) + 2), lambda job: job["JobState"] == "CANCELLED")["Restarts"] == "0"


@pytest.mark.parametrize("how", ["signal", "preemption"])
def test_a_launcher_for_each_node_saves_and_goes_on(how, cluster, config, whole):
    """The launcher ends by SIGUSR1, and with 1 after SIGTERM, unless the file sees to it."""
    name = f"launcher-{how}"
    number = under_way(cluster, config, name, flags=("--launcher=deepspeed",))
    if how == "signal":
        cluster.call("scancel", "--signal=USR1", "--batch", number)
    else:
        cluster.call("scancel", "--signal=TERM", number)  # to the steps alone, as at the start of a grace time
    cluster.until(number, lambda job: job["Restarts"] == "1")
    assert_went_on(cluster, config, name, number, whole)
    assert kinds(config, name) == ["start", "stop", "resume", "end"]
