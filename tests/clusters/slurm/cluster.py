"""A real Slurm on this machine: one controller and three nodes, in a folder of its own, without munge and systemd.

Nodes are slurmd processes of this host under names of their own. Jobs run as the user who starts the tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

PROGRAMS = ("setpriv", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
NODES = ("node1", "node2", "node3")
CPUS = 4
"""Of each node, as Slurm counts them; this machine may have fewer."""
WAIT_S = 120.0
FAILED_AFTER_S = 10
"""Silence of a node after which its jobs are requeued; Slurm's default is 300."""
CRED_S = 5
"""A requeued job starts no earlier than so many seconds later, plus one; Slurm's default is 120."""
KILL_WAIT_S = 30
GRACE_S = 60
CONF = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire={cred}
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdTimeout={failed}
KillWait={kill_wait}
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime={grace}
PartitionName=bare Nodes=ALL MaxTime=60 State=UP PriorityTier=1 GraceTime=0
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing_programs() -> str:
    """ "" if a Slurm can be started here, else why not."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    return f"no {', '.join(missing)} here: bash scripts/slurm_here.sh (Debian, as root)" if missing else ""


@dataclasses.dataclass(frozen=True)
class Cluster:
    folder: Path
    environment: Mapping[str, str]

    def call(self, *words: str, check: bool = True) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            words, env=dict(self.environment), cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: Path, *options: str) -> str:
        """-> the job's number"""
        return self.call("sbatch", "--parsable", *options, str(script)).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, by its keys."""
        words = self.call("scontrol", "show", "job", "-o", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, number: str, reached: Callable[[dict[str, str]], bool], wait_s: float = WAIT_S) -> dict[str, str]:
        """Waits until the job is as `reached` says."""
        deadline = time.monotonic() + wait_s
        while not reached(job := self.job(number)):
            assert time.monotonic() < deadline, f"job {number}: {job}\n{self.logs()}"
            time.sleep(0.2)
        return job

    def logs(self) -> str:
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-3000:]}" for path in self.folder.glob("*.log"))

    def start_node(self, name: str) -> None:
        _start(["slurmd", "-D", "-N", name], self)
        _until(lambda: "idle" in self.call("sinfo", "-h", "-n", name, "-o", "%t"), f"{name} is idle", self)

    def end_node(self, name: str) -> None:
        """As when a machine loses its power: its slurmd and all processes below it end at once."""
        tasks = [p for p in self.processes() if _variable(p, "SLURMD_NODENAME") == name]
        above = [parent for task in tasks if (parent := task.parent()) and "slurmstepd" in " ".join(_words(parent))]
        daemon = [p for p in self.processes() if _words(p)[-2:] == ["-N", name]]
        _end([*daemon, *above, *tasks], signal.SIGKILL)

    def processes(self) -> list[psutil.Process]:
        """Daemons, and what they started: they were told of this configuration. A slurmstepd wipes its variables, but stays in
        the folder."""
        conf, mine = str(self.folder / "slurm.conf"), os.getpid()
        everyone = [p for p in psutil.process_iter() if p.pid != mine]
        return [p for p in everyone if _variable(p, "SLURM_CONF") == conf or _cwd(p) == self.folder]


def _variable(process: psutil.Process, name: str) -> str:
    try:
        return process.environ().get(name, "")
    except (psutil.Error, OSError):
        return ""


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _cwd(process: psutil.Process) -> Path | None:
    try:
        return Path(process.cwd())
    except (psutil.Error, OSError):
        return None


def _end(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    psutil.wait_procs(processes, timeout=10)


def _start(words: list[str], cluster: Cluster) -> subprocess.Popen[bytes]:
    with (cluster.folder / "daemons.log").open("ab") as log:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *words],  # also where the tests are killed themselves
            env=dict(cluster.environment), cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def _until(reached: Callable[[], bool], what: str, cluster: Cluster) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline, f"{what}: not reached\n{cluster.logs()}"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in opened]


def configuration(folder: Path) -> str:
    host = socket.gethostname().split(".")[0]
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=4000"
        for name, port in zip(NODES, ports, strict=True)
    )
    return CONF.format(
        host=host, controller=controller, user=getpass.getuser(), folder=folder, nodes=nodes, cred=CRED_S,
        failed=FAILED_AFTER_S, kill_wait=KILL_WAIT_S, grace=GRACE_S,
    )  # fmt: skip


@contextlib.contextmanager
def slurm_here(folder: Path) -> Iterator[Cluster]:
    """A cluster of idle nodes; at the end no process of it is left."""
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(configuration(folder))
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
    # Ranks meet at the first node's address; the names of these nodes are no machines.
    told = {"SLURM_CONF": str(conf), "MASTER_ADDR": "127.0.0.1", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"}
    cluster = Cluster(folder, clean | told)
    try:
        _start(["slurmctld", "-D"], cluster)
        _until(lambda: "UP" in cluster.call("scontrol", "ping", check=False), "the controller answers", cluster)
        for node in NODES:
            cluster.start_node(node)
        yield cluster
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            _end(cluster.processes(), number)
