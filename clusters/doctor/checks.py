"""Which checks are made of this machine, each within its time."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from clusters.doctor import data, disks, exchanges, launcher, machine, network, packages
from clusters.doctor.finding import Finding, failed
from run.config import RunConfig

GIB = 1 << 30
LIMIT_S, IMPORT_S, EXCHANGE_S, MARGIN_S = 30.0, 60.0, 140.0, 10.0
"""torch is imported by some checks, from a file server perhaps; ranks of an exchange end before the check is left behind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """ranks: of this machine; world: of all machines, 0 if that is not known; marker: the file to look for in the folder of runs."""

    config: str = ""
    overrides: tuple[str, ...] = ()
    ranks: int = 1
    world: int = 0
    port: int = 29500
    quick: bool = False
    is_one_of_many: bool = False
    marker: Path | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    name: str
    ask: Callable[[], list[Finding]]
    limit_s: float = LIMIT_S


def answered(check: Check) -> list[Finding]:
    """What the check finds. A check that takes longer than its limit, such as at a file server that is gone, is left behind."""
    found: list[Finding] = []

    def ask() -> None:
        try:
            found.extend(check.ask())
        except Exception as error:  # the other checks are still worth making
            said = f"{type(error).__name__}: {error}"
            found.append(
                failed(check.name, said, "", "a fault of this program or an unusual machine: please report it")
            )

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(check.limit_s)
    if thread.is_alive():
        remedy = "look for a file server, disk or device that does not answer"
        return [failed(check.name, f"no answer in {check.limit_s:g} s", "", remedy)]
    return found


def checks_of_machine(options: Options) -> Iterator[Check]:
    ranks = options.ranks
    yield Check("python", packages.check_python)
    yield Check("packages", packages.check_packages)
    yield Check("ops", packages.check_ops, IMPORT_S)
    yield Check("devices", partial(machine.check_devices, ranks), IMPORT_S)
    yield Check("memory", partial(machine.check_memory, ranks))
    yield Check("shared memory", partial(machine.check_shared_memory, ranks))
    yield Check("limits", machine.check_limits)
    yield Check("TMPDIR", machine.check_tmpdir)
    yield Check("locale", machine.check_encoding)
    yield Check("interfaces", network.check_sockets)
    yield Check("hostname", partial(network.check_hostname, options.is_one_of_many))
    yield Check("port", partial(network.check_port, options.port))
    yield Check(launcher.ENV_FILE, launcher.check_environment_files)
    if not options.quick:
        yield Check("exchange", partial(exchanges.exchanges_here, max(2, ranks), EXCHANGE_S - MARGIN_S), EXCHANGE_S)


def checks_of_run(run: RunConfig | None, options: Options) -> Iterator[Check]:
    """run: None where no configuration was named; then the working directory stands for the folder of runs."""
    ranks, threads = options.ranks, run.threads if run else 0
    yield Check("threads", partial(machine.check_threads, ranks, threads))
    folders = {"runs": Path(run.runs if run else ".")}
    if run and data.needs_cache(run):
        folders["cache"] = Path(os.path.expanduser(run.data.cache_dir))
    for name, folder in folders.items():
        yield Check(f"{name} room", partial(_room, name, folder, run, options.quick))
        yield Check(f"{name} clock", partial(disks.check_file_clock, name, folder))
        if not options.quick:
            yield Check(f"{name} speed", partial(disks.check_speed, name, folder))
    if options.marker:
        yield Check("runs shared", partial(disks.check_marker, options.marker))
    if run:
        for number, task in enumerate(run.data.tasks):
            yield Check(f"data {task.name}", partial(data.check_task, run, number))


def _room(name: str, folder: Path, run: RunConfig | None, quick: bool) -> list[Finding]:
    if run is None or (quick and name == "runs"):
        return disks.check_room(name, folder, 1.0, "checkpoints take 12 bytes for each parameter")
    if name == "cache":
        held = sum(path.stat().st_size for path in folder.glob("objects/*.tar"))
        needed = max(0.0, run.data.cache_gib - held / GIB)
        return disks.check_room(name, folder, needed, "or lower data.cache_gib, or set data.cache_dir")
    needed, what = checkpoint_room(run)
    return disks.check_room(name, folder, needed, what)


def checkpoint_room(run: RunConfig) -> tuple[float, str]:
    """-> (GiB that a run's checkpoints take at most, words about it). A new one is written before an old one goes."""
    from plan.sizes import count_parameters

    size = count_parameters(run.model).held * (16 if run.optimizer.ema else 12)
    number = run.keep_checkpoints + 1 + bool(run.evaluate.keep_best)  # the best one stays, too
    return number * size / GIB, f"{number} checkpoints of {size / GIB:.3g} GiB; or lower keep_checkpoints"
