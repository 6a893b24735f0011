"""What a sparse block costs against a dense one: forward and backward of one block, all variants in turn, one table.

`python -m benchmarks.moe_layer` measures one rank and two (EP = 2, gloo on the CPU, NCCL where there are as many GPUs).
Times of different runs do not compare, ratios do. Whole-network experts ("FFN") stand beside DeepSpeed's layer with the same
experts, tokens and capacity, and beside that layer with our decisions and banks (`model.experts.backend: deepspeed`); the
others are linear experts in attention and FFN (Uni-Perceiver-MoE).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import statistics
import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.memory import most_held
from data.attributes import CAPTION_TEXT, CAPTION_VISUAL
from data.batch import Modality, Visibility
from data.token_layout import Part, token_layout
from model.config import ModelConfig
from model.encoder import Encoder
from model.layout import PassLayout, SequenceLayout
from model.moe.config import ExpertConfig
from parallel.kernels import load_kernels
from parallel.mesh import Mesh, create_mesh, destroy_mesh
from run.command_line import Several

TOP_1 = {"router": "token", "top_k": 1, "capacity_factor": 1.0, "noise": "none"}
DENSE, DEEPSPEED = "dense", "DeepSpeed MoE, FFN, top-1, capacity 1"
VARIANTS = {
    DENSE: ExpertConfig(placement="none"),
    "merge, attribute router, k = 2": ExpertConfig(noise="none", max_groups=2),
    "dispatch, top-1, capacity 1": ExpertConfig(**TOP_1),
    "dispatch, top-1, nothing dropped": ExpertConfig(**TOP_1 | {"capacity_factor": 0.0}),
    "dispatch, top-2, capacity 1": ExpertConfig(**TOP_1 | {"top_k": 2}),
    "dispatch, FFN, top-1, capacity 1": ExpertConfig(**TOP_1, unit="mlp"),
    "dispatch by DeepSpeed, FFN, top-1": ExpertConfig(**TOP_1, unit="mlp", backend="deepspeed"),
    DEEPSPEED: ExpertConfig(placement="none"),
}


class DeepSpeedFeedForward(nn.Module):
    """DeepSpeed's MoE layer in the place of a block's feed-forward branch."""

    def __init__(self, width: int, ffn: int, num_experts: int, expert_ranks: int) -> None:
        from deepspeed.moe.layer import MoE

        super().__init__()
        expert = nn.Sequential(nn.Linear(width, ffn), nn.GELU(), nn.Linear(ffn, width))
        self.moe = MoE(width, expert, num_experts, expert_ranks, k=1, capacity_factor=1.0, min_capacity=1)
        self.moe.set_deepspeed_parallelism()

    def forward(self, x_TD: Tensor, decision: None) -> Tensor:
        y_TD: Tensor = self.moe(x_TD[None])[0][0]
        return y_TD


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    heads: int
    ffn: int
    length: int


def make_block(name: str, size: Size, mesh: Mesh) -> Encoder:
    """An encoder of one block: gates of merging decisions are made before it. Equal experts and routers get equal weights."""
    torch.manual_seed(mesh.data.rank)
    config = ModelConfig(width=size.width, depth=1, heads=size.heads, ffn=size.ffn, experts=VARIANTS[name])
    block = Encoder(config, Mesh(device=mesh.device) if name == DENSE else mesh, load_kernels("torch"))
    if name == DEEPSPEED:
        block.blocks[0].ffn = DeepSpeedFeedForward(size.width, size.ffn, config.experts.num_experts, mesh.expert.size)
    for parameter in block.parameters():
        if parameter.dim() > 1:  # norms stay as they are: tokens then spread over the experts
            nn.init.normal_(parameter, std=0.02)
    return block.to(mesh.device)


def make_layout(rows: int, length: int, device: str, by_group: bool) -> PassLayout:
    """Half of the places are of a picture, half of a text."""
    half, none = length // 2, np.zeros(rows, dtype=np.int64)
    parts = [
        Part(np.ones((rows, size), dtype=bool), attributes, int(modality), int(Visibility.PREFIX), none)
        for size, attributes, modality in (
            (half, CAPTION_VISUAL, Modality.IMAGE),
            (length - half, CAPTION_TEXT, Modality.TEXT),
        )
    ]
    tokens = token_layout(parts, with_spe=False).to(device)
    return PassLayout((SequenceLayout(tokens, 0, None, by_group, noise=1),))


class Pass(NamedTuple):
    """Forward and backward: seconds, CPU seconds of the process (waiting and other programs do not count), and the share of the asked
    places that tokens got."""

    seconds: float
    cpu: float
    kept: float


def one_pass(block: Encoder, x_TD: Tensor, layout: PassLayout) -> Pass:
    for parameter in block.parameters():
        parameter.grad = None
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
    start, cpu_start = time.perf_counter(), time.process_time()
    y_TD, reports = block(x_TD, layout)
    y_TD.backward(torch.ones_like(y_TD))
    if x_TD.is_cuda:
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    asked = sum(report.use.asked_M.sum().item() for report in reports)
    taken = sum(report.use.taken_ME.sum().item() for report in reports)
    return Pass(seconds, cpu, taken / asked if asked else 1.0)


def peak_bytes(block: Encoder, x_TD: Tensor, layout: PassLayout) -> int:
    """The most that one pass holds at a time besides weights and input: activations, gradients, work space."""
    for parameter in block.parameters():
        parameter.grad = None
    return most_held(x_TD.device.type, lambda: one_pass(block, x_TD, layout))


def measure(
    rank: int, ranks: int, size: Size, all_rows: list[int], repeats: int, threads: int, port: int, queue: Any
) -> None:
    """One rank: for every number of rows, seconds of each variant, its peak bytes and kept share; the first rank reports."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, (str(rank), str(rank), str(ranks), "127.0.0.1", str(port)), strict=True))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler speaks of its every start
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(rank)
    mesh = create_mesh(expert=ranks)
    blocks = {name: make_block(name, size, mesh) for name in VARIANTS}
    for rows in all_rows:
        # The encoder hands merging blocks their tokens group by group.
        layouts = {name: make_layout(rows, size.length, mesh.device, name.startswith("merge")) for name in blocks}
        x_TD = torch.randn(rows * size.length, size.width, device=mesh.device, requires_grad=True)
        results: dict[str, list[Pass]] = {name: [] for name in blocks}
        for repeat in range(repeats + 1):  # the first warms up; variants take turns, so that noise hits all alike
            for name, block in blocks.items():
                result = one_pass(block, x_TD, layouts[name])
                if repeat:
                    results[name].append(result)
        peaks = {name: peak_bytes(block, x_TD, layouts[name]) for name, block in blocks.items()}
        if rank == 0:
            queue.put((rows, results, peaks))
    destroy_mesh()


def table(ranks: int, rows: int, size: Size, results: dict[str, list[Pass]], peaks: dict[str, int]) -> str:
    """Ratios are medians of the ratios to the dense pass of the same round; CPU x is that of CPU time."""
    lines = [
        f"{ranks} rank(s), {rows} x {size.length} = {rows * size.length} tokens per rank",
        f"  {'block':<40}{'ms':>8}{'x dense':>9}{'from - to':>14}{'CPU x':>7}{'kept':>7}{'peak MiB':>10}",
    ]
    for name, passes in results.items():
        pairs = list(zip(passes, results[DENSE], strict=True))
        ratios = [one.seconds / dense.seconds for one, dense in pairs]
        cpu = statistics.median(one.cpu / dense.cpu for one, dense in pairs)
        milliseconds = 1000 * statistics.median(one.seconds for one in passes)
        kept = "" if name in (DENSE, DEEPSPEED) else f"{statistics.mean(one.kept for one in passes):.0%}"
        lines.append(
            f"  {name:<40}{milliseconds:>8.1f}{statistics.median(ratios):>9.2f}{min(ratios):>7.2f} -{max(ratios):>5.2f}"
            f"{cpu:>7.2f}{kept:>7}{peaks[name] / 2**20:>10.0f}"
        )
    return "\n".join(lines)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"width": 384, "heads": 6, "ffn": 1536, "length": 197, "repeats": 9, "threads": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        action=Several,
        default=[16],
        help="rows per rank; several for a sweep over tokens",
    )
    parser.add_argument("--ranks", type=int, nargs="+", action=Several, default=[1, 2])
    options = parser.parse_args()
    size = Size(options.width, options.heads, options.ffn, options.length)
    print(
        f"one block, forward + backward: width {size.width}, FFN {size.ffn}, {size.heads} heads, 8 experts, "
        f"{options.threads} thread(s) a rank, median of {options.repeats}"
    )
    context = mp.get_context("spawn")
    for ranks in options.ranks:
        queue = context.SimpleQueue()
        arguments = (ranks, size, options.rows, options.repeats, options.threads, free_port(), queue)
        started = mp.start_processes(measure, arguments, nprocs=ranks, join=False, start_method="spawn")
        for _ in options.rows:
            while queue.empty() and not started.join(timeout=0.2):  # join raises what a rank raised
                pass
            rows, results, peaks = queue.get()
            print(table(ranks, rows, size, results, peaks), flush=True)
        while not started.join():
            pass


if __name__ == "__main__":
    main()
