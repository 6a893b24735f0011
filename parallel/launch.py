"""What the launcher says about this rank: the deepspeed launcher, torchrun, srun, or none."""

from __future__ import annotations

import codecs
import contextlib
import errno
import locale
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Iterator

import psutil

LEFT_OVER = (
    "left over from another start? unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT, or start the ranks with deepspeed, "
    "torchrun or srun"
)


class PreflightError(Exception):
    """This machine cannot start as it is; the message has the remedy."""


class MeetingError(PreflightError):
    """Ranks did not meet in time. One may be slow or gone, so the same command may do. Told by one rank of a machine."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.of_one_rank = tells_of_waiting()


LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
SOCKET_PATH, SOCKET_NAME = 107, len("/pymp-01234567/listener-01234567")
"""The most that the system takes, and what multiprocessing puts behind the folder of temporary files."""
INTERFACES = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}
TOLD_S = 30.0
"""Ranks of one start meet well within it; after it a rank that waits says why."""


def check_launch() -> None:
    """Read what the launcher says, whichever it is. Raises PreflightError for what cannot be a start of this program."""
    accept_slurm()
    for name in LAUNCH:
        if not re.fullmatch(r"\d*", os.environ.get(name, "")):
            raise PreflightError(f"{name}={os.environ[name]} is no number: {LEFT_OVER}")
        if not os.environ.get(name, "0"):
            del os.environ[name]
    rank, world = launched_rank(), launched_world_size()
    if rank >= world:
        raise PreflightError(f"RANK={rank} is not below WORLD_SIZE={world}: {LEFT_OVER}")
    if world > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise PreflightError(f"WORLD_SIZE={world}, but no MASTER_ADDR and MASTER_PORT to meet at: {LEFT_OVER}")
    check_locale()
    check_temporary()


def check_locale() -> None:
    """Raises PreflightError for an encoding in which torch cannot be loaded."""
    if codecs.lookup(locale.getpreferredencoding(False)).name == "ascii":
        raise PreflightError("the locale's encoding is ASCII, with which torch cannot be loaded: set PYTHONUTF8=1")


def check_temporary() -> None:
    """Raises PreflightError where the folder of temporary files has too long a name for sockets."""
    temporary = tempfile.gettempdir()
    if len(os.fsencode(temporary)) + SOCKET_NAME > SOCKET_PATH:
        raise PreflightError(
            f"TMPDIR={temporary} is too long for the sockets of worker processes: name a folder of at most "
            f"{SOCKET_PATH - SOCKET_NAME} characters, as TMPDIR=/tmp"
        )


def check_port() -> None:
    """Raises PreflightError on the first rank if another program listens where the ranks of this run are to meet."""
    # torchrun's agent listens there itself.
    if launched_rank() or launched_world_size() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    check_free(int(os.environ["MASTER_PORT"]))


def check_free(port: int) -> None:
    """Raises PreflightError if nobody may listen at the port, or another program does."""
    if not 0 < port < 1 << 16:
        raise PreflightError(f"MASTER_PORT={port} is no port: choose one from 1024 to 65535")
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise PreflightError(f"MASTER_PORT={port} cannot be used: {error.strerror}; choose another") from error
        raise PreflightError(
            f"port {port} is taken, perhaps by another run on this machine: choose another with deepspeed --master_port={port + 1}, "
            f"torchrun --master-port={port + 1} or MASTER_PORT={port + 1}"
        ) from error


def check_interfaces(backend: str) -> None:
    """Raises PreflightError where the variable that chooses network interfaces for gloo or nccl chooses none that is up: the libraries
    fail, or wait, in words that do not name the variable."""
    variable = INTERFACES[backend]
    value = os.environ.get(variable, "")
    up = sorted(name for name, state in psutil.net_if_stats().items() if state.isup)
    missing = missing_interfaces(backend, value, up)
    if missing:
        raise PreflightError(
            f"{variable}={value}: no network interface {missing[0]} is up on {socket.gethostname()}; there are {', '.join(up)}: "
            "name one of these that the other machines reach, or unset it"
        )


def missing_interfaces(backend: str, value: str, up: Collection[str]) -> list[str]:
    """Names in the variable's value that choose nothing, where that matters. gloo takes whole names and uses each; nccl takes beginnings
    of names, whole ones after `=`, all others after `^`, and needs one."""
    if backend == "nccl" and value.startswith("^"):
        return []
    is_whole = backend == "gloo" or value.startswith("=")
    wanted = [name for name in value.removeprefix("=").split(",") if name]
    missing = [w for w in wanted if not any(name == w or (not is_whole and name.startswith(w)) for name in up)]
    return missing if backend == "gloo" or len(missing) == len(wanted) else []


def await_first_rank(timeout_s: float, told_s: float = TOLD_S) -> None:
    """Return when the first rank can be reached. What is in the way is told once on each machine after `told_s` seconds.

    Raises MeetingError after `timeout_s` seconds. torch itself would wait without a word.
    """
    rank = launched_rank()
    if not rank or launched_world_size() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    begin, told = time.monotonic(), not tells_of_waiting()
    while True:
        reason = unreachable(address, port)
        if not reason:
            return
        waited = time.monotonic() - begin
        if waited > timeout_s:
            raise MeetingError(f"rank {rank} did not meet the first one in {timeout_s:.0f} s: {reason}")
        if waited > told_s and not told:
            told = True
            print(
                f"rank {rank} on {socket.gethostname()} waits for the first rank: {reason}", file=sys.stderr, flush=True
            )
        time.sleep(0.5)


def unreachable(address: str, port: int, timeout_s: float = 5.0) -> str:
    """Why nobody can be reached there; empty if somebody listens."""
    place = f"{address}:{port}"
    try:
        socket.create_connection((address, port), timeout_s).close()
    except socket.gaierror:
        return f"the name of {place} (MASTER_ADDR) is not known here: use an address, or mend DNS or /etc/hosts"
    except ConnectionRefusedError:
        return f"nobody listens at {place}: has the first machine been started, and is this its address?"
    except TimeoutError:
        return f"no answer from {place}: is the machine down, or a firewall between?"
    except OSError as error:
        return f"{place} cannot be reached: {error.strerror or error}"
    return ""


def launched_world_size() -> int:
    """How many ranks the launcher started (1 where there is no launcher); read before any group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def launched_ranks_here() -> int:
    """How many ranks the launcher started on this machine."""
    local = next((os.environ[name] for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if os.environ.get(name)), "1")
    return max(1, int(local))


def is_first_on_machine() -> bool:
    """Errors that may differ from machine to machine, such as missing data, are told once on each."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def tells_of_waiting() -> bool:
    """Of the ranks that wait for the first one, one on each machine; beside the first one itself, which may hang, it is the next."""
    local = os.environ.get("LOCAL_RANK", "0")
    return local == ("1" if local == str(launched_rank()) else "0")


def device_number(count: int) -> int:
    """This rank's GPU among the `count` that it sees. Where there is one, a launcher such as `srun --gpus-per-task=1` shows each
    rank its own alone, always under the number 0.

    Raises PreflightError on all ranks of a machine with fewer GPUs than ranks.
    """
    if count == 1:
        return 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = max(launched_ranks_here(), local + 1)
    if here > count:
        raise PreflightError(
            f"{here} ranks were started on a machine where each sees {count} GPUs: start {count} or fewer there, or show each "
            "its own alone (srun --gpus-per-task=1)"
        )
    return local


def tell_accelerator(cuda: bool) -> None:
    """Before DeepSpeed is imported: it would find that by itself, and warn where it finds no GPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")


@contextlib.contextmanager
def local_rank_of(device: str) -> Iterator[None]:
    """DeepSpeed takes LOCAL_RANK for the number of its GPU."""
    _, _, number = device.partition(":")
    with replaced_variable("LOCAL_RANK", number or os.environ.get("LOCAL_RANK")):
        yield


def accept_slurm() -> None:
    """Where srun itself started the ranks, give its variables the names that torch reads.

    A batch script has SLURM_PROCID too; the step's number tells a task of srun from it. The port follows from job and step, so
    that jobs which share a machine do not meet.
    """
    slurm = os.environ
    if "RANK" in slurm or not {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"} <= slurm.keys():
        return
    slurm["RANK"] = slurm["SLURM_PROCID"]
    slurm["WORLD_SIZE"] = slurm.get("SLURM_STEP_NUM_TASKS", slurm["SLURM_NTASKS"])
    slurm["LOCAL_RANK"] = slurm.get("SLURM_LOCALID", "0")
    tasks = slurm.get("SLURM_STEP_TASKS_PER_NODE", "1")  # "4(x2)", or "4,3" where they are uneven
    slurm["LOCAL_WORLD_SIZE"] = re.split(r"\D", tasks)[0] or "1"
    nodes = slurm.get("SLURM_STEP_NODELIST") or slurm.get("SLURM_NODELIST") or slurm.get("SLURM_JOB_NODELIST")
    # Rank 0 is on the first machine of the list. The one that srun was called on may be a login machine.
    address = first_node(nodes) if nodes else slurm.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    slurm.setdefault("MASTER_ADDR", address)
    key = 31 * int(slurm.get("SLURM_JOB_ID", "0")) + int(slurm["SLURM_STEP_ID"])
    slurm.setdefault("MASTER_PORT", str(15_000 + key % 15_000))


def first_node(nodes: str) -> str:
    """gpu[07-09,12],login1 -> gpu07."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", re.split(r",(?![^[]*\])", nodes)[0])


@contextlib.contextmanager
def replaced_variable(variable: str, value: str | None) -> Iterator[None]:
    """Another value in the environment for a while; None takes the variable out."""
    before = os.environ.pop(variable, None)
    if value is not None:
        os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
