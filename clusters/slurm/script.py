"""The text of a file for sbatch: options of Slurm, settings of the run, and the part that all files share (body.sh)."""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from clusters.slurm.job import Job

BODY = Path(__file__).with_name("body.sh")
LINES = "\n"
LAUNCH = 'exec env --ignore-signal=USR1 "$0" -m deepspeed.launcher.launch -q --node_rank="$SLURM_NODEID" "$@"'
"""In a task of its own for each node. The launcher knows nothing of SIGUSR1 and would end; the ranks take the signal again."""


def quoted(word: str) -> str:
    """A comma needs no quotes, but in a list it looks like a mistake."""
    safe = shlex.quote(word.replace(",", " "))
    return word if safe == word else "'" + word.replace("'", "'\"'\"'") + "'"


def joined(words: Iterable[str]) -> str:
    return " ".join(map(quoted, words))


def render(job: Job) -> str:
    parts = (_head(job), _environment(job), _settings(job), _launch(job))
    return "\n\n".join(LINES.join(part) for part in parts) + "\n\n" + BODY.read_text(encoding="utf-8")


def _head(job: Job) -> Iterator[str]:
    tasks, cores = _per_node(job)
    yield "#!/bin/bash"
    yield f"# {joined(job.command)}"
    yield f"# {job.ranks} ranks; {job.sizes.peak_gib:.1f} GiB each by the plan"
    options = [
        ("job-name", job.name),
        ("nodes", job.nodes),
        ("ntasks-per-node", tasks),
        ("cpus-per-task", cores),
        ("mem", f"{job.memory_per_node}G"),
        *([("gpus-per-node", job.gpus_per_node)] if job.gpus_per_node else []),
        ("time", job.limit),
        # Only the batch shell hears it: it knows when the ranks can take it, and decides what follows.
        ("signal", f"B:USR1@{job.warn}"),
        *job.flags,
        *([("array", f"0-{len(job.seeds) - 1}")] if job.seeds else []),
        ("output", "slurm-%x-%A_%a.out" if job.seeds else "slurm-%x-%j.out"),
    ]
    yield from (f"#SBATCH --{key}={value}" for key, value in options)
    yield "#SBATCH --open-mode=append"
    yield "#SBATCH --requeue"


def _environment(job: Job) -> Iterator[str]:
    yield f"cd -- {quoted(job.directory)} || exit 2"
    yield "export PYTHONUNBUFFERED=1"
    yield f"export OMP_NUM_THREADS={job.sizes.threads}"
    yield "# On the node itself, and short: sockets of data workers lie there."
    yield "export TMPDIR=/tmp"
    if job.kind != "bare":  # the program makes them, but only what is there can be mounted
        yield f"mkdir -p -- {quoted(os.path.dirname(job.run_folder))} || exit 2"
    if job.cache and job.kind != "bare":
        yield f"srun --ntasks-per-node=1 --cpu-bind=none mkdir -p -- {quoted(job.cache)} || exit 2"
    if job.interface:
        yield f"export NCCL_SOCKET_IFNAME={job.interface} GLOO_SOCKET_IFNAME={job.interface}"


def _settings(job: Job) -> Iterator[str]:
    yield f"train=({joined([job.program, *job.arguments])})"
    yield f"run_folder={quoted(job.run_folder)}"
    if job.seeds:
        yield f"seeds=({' '.join(map(str, job.seeds))})"
        yield "seed=${seeds[$SLURM_ARRAY_TASK_ID]}"
        yield f'train+=("seed=$seed" {quoted(f"name={job.name}_seed")}"$seed")'
        yield 'run_folder+="_seed$seed"'
    yield "# Jobs of a chain that are still to come, with this one; 0: no chain, the job is requeued."
    yield f"links_left=${{1:-{job.chain}}}"


def _launch(job: Job) -> Iterator[str]:
    python = quoted(job.python)
    if job.launcher == "deepspeed":
        yield 'address=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}'
        # Names of nodes stand for their numbers alone.
        nodes = {f"node{number}": list(range(job.ranks_per_node)) for number in range(job.nodes)}
        yield f"nodes={base64.urlsafe_b64encode(json.dumps(nodes).encode()).decode()}"
        yield "# shellcheck disable=SC2016 # each node knows its own number"
    yield "launch=("
    yield f"    {joined(_srun(job))}"
    if inside := _inside(job):
        yield f"    {joined(inside)}"
    if job.launcher == "srun":
        yield f'    {python} "${{train[@]}}"'
    else:
        yield f"    bash -c {quoted(LAUNCH)} {python}"
        yield '    --world_info="$nodes" --master_addr="$address" --master_port="$((15000 + SLURM_JOB_ID % 15000))"'
        yield f'    --no_python --no_local_rank env --default-signal=USR1 {python} "${{train[@]}}"'
    yield ")"


def _srun(job: Job) -> Iterator[str]:
    """The job's own sizes hold for the step, but for cores, which srun takes from nowhere since Slurm 22.05."""
    tasks, cores = _per_node(job)
    yield from ("srun", f"--ntasks-per-node={tasks}", f"--cpus-per-task={cores}")
    # A rank of its own is bound to its cores; a launcher's ranks share those of the node.
    yield f"--cpu-bind={'cores' if job.launcher == 'srun' else 'none'}"
    yield "--kill-on-bad-exit=1"


def _inside(job: Job) -> list[str]:
    """What brings a rank into its container, and shows it the folders of the run."""
    if job.kind == "pyxis":
        mounts = ",".join(f"{folder}:{folder}" for folder in job.folders)
        return [
            f"--container-image={job.image}",
            f"--container-mounts={mounts}",
            f"--container-workdir={job.directory}",
        ]
    if job.kind == "apptainer":
        gpus = ["--nv"] if job.gpus_per_node else []
        return [
            "apptainer",
            "exec",
            *gpus,
            "--bind",
            ",".join(("/dev/shm", *job.folders)),
            "--pwd",
            job.directory,
            job.image,
        ]
    return []


def _per_node(job: Job) -> tuple[int, int]:
    """Tasks of Slurm, and the cores of each."""
    if job.launcher == "srun":
        return job.ranks_per_node, job.sizes.cores
    return 1, job.sizes.cores * job.ranks_per_node
