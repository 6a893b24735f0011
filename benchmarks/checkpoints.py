"""What a checkpoint costs: seconds that training waits, and host memory beside the state, of saving and restoring made parameters.

`python -m benchmarks.checkpoints` measures one rank and two (experts and ZeRO slices on both) on this machine's disk. Every case
has processes of its own, since the peak of a process never falls; it contains what the kernel maps of files that are read.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.moe_layer import free_port
from parallel.checkpoints import Fragment, Saver, newest, restore
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS, Cut, Placement
from run.command_line import Several

CASES = ("save", "save, asynchronous", "restore", "restore, cut by columns")
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def shapes(layers: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for layer in range(layers):
        yield f"{layer}.up", (8, width, 4 * width)
        yield f"{layer}.down", (8, 4 * width, width)
        yield f"{layer}.dense", (2 * width, 2 * width)


def fragments(rank: int, ranks: int, layers: int, width: int, columns: bool) -> list[Fragment]:
    """Experts are cut over ranks, dense tensors are slices as ZeRO makes them; with `columns` the last dimension of all is cut."""
    made = []
    for name, shape in shapes(layers, width):
        sliced = len(shape) == 2 and not columns
        cut = Cut(len(shape) - 1, TENSOR_AXIS, rank, ranks) if columns else Cut(0, EXPERT_AXIS, rank, ranks)
        placement = Placement(shape, () if sliced else (cut,))
        numel = math.prod(placement.local_shape) // (ranks if sliced else 1)
        tensors = {kind: torch.rand(numel) for kind in KINDS}
        made.append(Fragment(name, placement, rank * numel if sliced else 0, True, tensors))
    return made


def work(seconds: float) -> float:
    """Products per second, in place of training."""
    a, count, start = torch.rand(256, 256), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ a
        count += 1
    return count / seconds


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rank: int, ranks: int, case: str, layers: int, width: int, root: Path, port: int, queue: Any) -> None:
    """Reports (state MiB, seconds, MiB of peak beside the state, note)."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    state = fragments(rank, ranks, layers, width, case.endswith("columns"))
    alone = work(0.5)
    dist.barrier()
    before, start, note = peak_mib(), time.perf_counter(), ""
    if case.startswith("save"):
        saver = Saver(root, background=case.endswith("asynchronous"))
        saver.save(1, state, {})
        seconds = time.perf_counter() - start
        if saver.is_writing:
            rate = work(0.2)
            while saver.is_writing:
                time.sleep(0.01)
            written = time.perf_counter() - start
            start = time.perf_counter()
            saver.publish()
            seconds += time.perf_counter() - start
            note = f"written after {written:.2f} s; other work meanwhile at {rate / alone:.0%}"
    else:
        checkpoint, _ = newest(root)
        assert checkpoint is not None
        opened = time.perf_counter() - start
        restore(checkpoint, state)
        seconds = time.perf_counter() - start
        note = f"of it verifying {opened:.2f} s"
    size = sum(tensor.nbytes for fragment in state for tensor in fragment.tensors.values()) / 2**20
    queue.put((rank, size, seconds, peak_mib() - before, note))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=368)
    parser.add_argument("--ranks", type=int, nargs="+", action=Several, default=[1, 2])
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    context = mp.get_context("spawn")
    print(f"{'ranks':<7}{'rank':<6}{'case':<26}{'state MiB':>10}{'waits s':>9}{'peak +MiB':>11}")
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for case in CASES:
                queue = context.SimpleQueue()
                arguments = (ranks, case, options.layers, options.width, Path(folder), free_port(), queue)
                mp.start_processes(measure, arguments, nprocs=ranks, start_method="spawn")
                for rank, size, seconds, peak, note in sorted(queue.get() for _ in range(ranks)):
                    print(f"{ranks:<7}{rank:<6}{case:<26}{size:>10.0f}{seconds:>9.2f}{peak:>11.0f}  {note}", flush=True)


if __name__ == "__main__":
    main()
