"""Limits, memory, threads, devices and their links, encodings."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import psutil

from clusters.doctor.finding import Finding, failed, least, ok, warning
from parallel.launch import PreflightError, check_locale, check_temporary

GIB = 1 << 30
ROOT = Path("/")
MEMORY_GIB, SHM_GIB = 4.0, 1.0
"""Of one rank: libraries take 1.5 GiB before there is a model; what workers and NCCL share, by experience."""
OPEN_FILES, PROCESSES = 4096, 4096
NVIDIA_SMI_S = 15.0


def check_encoding() -> list[Finding]:
    try:
        check_locale()
    except PreflightError as error:
        return [failed("locale", _before(error), "UTF-8", _remedy(error))]
    return [ok("locale", "UTF-8")]


def check_tmpdir() -> list[Finding]:
    try:
        check_temporary()
    except PreflightError as error:
        return [failed("TMPDIR", _before(error), "", _remedy(error))]
    return [ok("TMPDIR", os.environ.get("TMPDIR") or "not set")]


def check_limits(root: Path = ROOT) -> list[Finding]:
    """Of this process; those that a batch system or container gives its tasks may be others: ask there."""
    files, processes = _soft(resource.RLIMIT_NOFILE), _soft(resource.RLIMIT_NPROC)
    found = [
        least(
            "open files", files, OPEN_FILES, 1024, "files",
            f"ulimit -n {OPEN_FILES}, or nofile in /etc/security/limits.conf; docker run --ulimit nofile=65536",
        ),
        least(
            "processes", processes, PROCESSES, 256, "processes and threads",
            f"ulimit -u {PROCESSES}, or nproc in /etc/security/limits.conf; docker run --pids-limit=-1",
        ),
    ]  # fmt: skip
    fabric = _names(root / "sys/class/infiniband")
    locked = _soft(resource.RLIMIT_MEMLOCK)
    if fabric and locked != float("inf"):
        remedy = (
            "memlock unlimited in /etc/security/limits.conf and for the batch system; docker run --ulimit memlock=-1"
        )
        found.append(failed("locked memory", f"{locked / GIB:.3g} GiB beside {', '.join(fabric)}", "unlimited", remedy))
    else:
        found.append(ok("locked memory", "enough" if fabric else "no InfiniBand that needs it"))
    if _soft(resource.RLIMIT_CORE):
        remedy = "ulimit -c 0: a rank that crashes writes all of its memory to the disk"
        found.append(warning("core files", "are written", "none", remedy))
    else:
        found.append(ok("core files", "none"))
    return found


def check_shared_memory(ranks: int, root: Path = ROOT) -> list[Finding]:
    """Workers hand samples over in it, and NCCL and gloo may exchange there."""
    place = root / "dev/shm"
    if not place.is_dir():
        return [failed("shared memory", f"there is no {place}", f"{ranks * SHM_GIB:g} GiB", "mount a tmpfs there")]
    free = shutil.disk_usage(place).free / GIB
    remedy = f"docker run --shm-size={ranks * 2:.0f}g, or a volume of medium: Memory in Kubernetes; remove what is left over in {place}"
    return [least("shared memory", free, ranks * SHM_GIB, ranks * SHM_GIB / 4, "GiB free", remedy)]


def check_memory(ranks: int, root: Path = ROOT) -> list[Finding]:
    memory = psutil.virtual_memory()
    limit, used = cgroup_memory(root)
    free = min(memory.available, limit - used) / GIB
    remedy = "end what takes it, start fewer ranks, or ask the batch system for more (--mem); resources.limits.memory in Kubernetes"
    if limit < memory.total:
        remedy += f"; the cgroup's limit is {limit / GIB:.3g} of the machine's {memory.total / GIB:.3g} GiB"
    return [least("memory", free, ranks * MEMORY_GIB, ranks * MEMORY_GIB / 2, "GiB free", remedy)]


def check_threads(ranks: int, threads: int = 0, root: Path = ROOT) -> list[Finding]:
    """threads: of a rank by the configuration; 0 leaves it to OMP_NUM_THREADS."""
    cores, quota = len(os.sched_getaffinity(0)), cgroup_cores(root)
    usable = min(cores, quota)
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        return [failed("threads", f"OMP_NUM_THREADS={text}", "a number", "export OMP_NUM_THREADS=1")]
    each = threads or (int(text.split(",")[0]) if text else cores)
    share = max(1, int(usable // ranks))
    found = f"{ranks} rank(s) of {each} on {usable:g} cores"
    if each * ranks <= max(usable, ranks):
        return [ok("threads", found)]
    remedy = f"export OMP_NUM_THREADS={share}, or threads={share}"
    if quota < cores:
        remedy += (
            f"; the cgroup's quota is {quota:g} of {cores} cores: ask for more (--cpus-per-task, resources.limits.cpu)"
        )
    return [warning("threads", found, f"{share} a rank", remedy)]


def check_devices(ranks: int) -> list[Finding]:
    import torch

    smi, count = shutil.which("nvidia-smi"), torch.cuda.device_count()
    if count == 0 and smi is None:
        return [ok("devices", "none: ranks compute on the CPU")]
    listed = _asked(smi, "-L") if smi else ""
    there = len(re.findall(r"^GPU \d", listed, re.MULTILINE))
    if count == 0:
        if torch.version.cuda is None:
            remedy = "install torch for CUDA (docs/start.md)"
        else:
            remedy = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; docker run --gpus all"
        return [failed("devices", f"torch {torch.__version__} sees none of {there} GPUs", "GPUs", remedy)]
    names = sorted({torch.cuda.get_device_name(number) for number in range(count)})
    found = f"{count} x {', '.join(names)}"
    if ranks > count:
        return [failed("devices", found, f"{ranks} for as many ranks", f"start {count} ranks, or show more of them")]
    if len(names) > 1:
        remedy = "choose equal ones by CUDA_VISIBLE_DEVICES: all wait for the slowest"
        return [warning("devices", found, "equal ones", remedy)]
    return [ok("devices", found), *([check_links(_asked(smi, "topo", "-m"))] if count > 1 and smi else [])]


def check_links(topology: str) -> Finding:
    """The worst way between two GPUs in what `nvidia-smi topo -m` prints."""
    rows = re.findall(r"^(?:\x1b\[\d*m)*GPU\d+\s+(.*)$", topology, re.MULTILINE)
    worst = ("SYS", "NODE", "PHB", "PXB", "PIX", "NV")
    ways = [way for row in rows for way in row.split()[: len(rows)] if way != "X"]
    if not ways:
        return warning("links", "nvidia-smi tells none", "", "look at `nvidia-smi topo -m`")
    kinds = {next((kind for kind in worst if way.startswith(kind)), way) for way in ways}
    slowest = next((kind for kind in worst if kind in kinds), ", ".join(sorted(kinds)))
    if slowest in ("SYS", "NODE"):
        remedy = "ranks exchange through the processors' link: keep expert and tensor ranks on GPUs that `nvidia-smi topo -m` shows as near"
        return warning("links", f"{slowest} between some GPUs", "NVLink or one PCIe switch", remedy)
    return ok("links", f"{slowest} at worst between GPUs")


def cgroup_cores(root: Path = ROOT) -> float:
    """Cores that the process' control group may use; infinity where there is no quota."""
    for folder in _cgroup(root, ""):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            return int(words[0]) / int(words[1])
    for folder in _cgroup(root, "cpu"):
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return float("inf")


def cgroup_memory(root: Path = ROOT) -> tuple[float, float]:
    """-> (limit, used without what the system can drop) of the control group, in bytes; infinity and 0 where there is no limit."""
    names = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
    for controller, limit_name, used_name in names:
        for folder in _cgroup(root, controller):
            limit, used = _text(folder / limit_name), _text(folder / used_name)
            if limit.isdigit() and int(limit) < 1 << 60:
                cached = re.search(r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                return float(limit), max(0.0, int(used or 0) - int(cached[1] if cached else 0))
    return float("inf"), 0.0


def _cgroup(root: Path, controller: str) -> list[Path]:
    """Folders of the process' group and those above it, of version 2 (no controller) or 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and (controller or not controllers):
            base = root / "sys/fs/cgroup" / controller
            own = base / path.lstrip("/")
            return [place for place in (own, *own.parents) if place.is_relative_to(base)]
    return []


def _soft(limit: int) -> float:
    value = resource.getrlimit(limit)[0]
    return float("inf") if value == resource.RLIM_INFINITY else float(value)


def _asked(program: str | None, *words: str) -> str:
    assert program is not None
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _before(error: Exception) -> str:
    return str(error).partition(": ")[0]


def _remedy(error: Exception) -> str:
    return str(error).partition(": ")[2]
