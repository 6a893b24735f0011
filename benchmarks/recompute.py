"""What activation checkpointing keeps and costs: forward and backward of a stack of blocks under none, selective and block.

`python -m benchmarks.recompute` prints one table of one process. Ways take turns, so that noise hits all alike; times of different
runs do not compare, ratios do. Kept: alive between forward and backward pass; peak: the most at any time, gradients of weights
included; both besides weights and input.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from benchmarks.memory import BETWEEN, held
from benchmarks.moe_layer import DEEPSPEED, VARIANTS, Size, make_layout
from model.config import ModelConfig
from model.encoder import Encoder
from model.layout import PassLayout
from parallel.kernels import load_kernels
from parallel.mesh import Mesh

WAYS = ("none", "selective", "block")
BLOCKS = tuple(name for name in VARIANTS if name != DEEPSPEED)


def make_encoder(name: str, way: str, size: Size, depth: int) -> Encoder:
    """Every block is sparse, but for the dense variant's."""
    experts = VARIANTS[name]
    if experts.placement != "none":
        experts = type(experts)(**vars(experts) | {"placement": "all"})
    config = ModelConfig(
        width=size.width,
        heads=size.heads,
        ffn=size.ffn,
        depth=depth,
        experts=experts,
        activation_checkpointing=way,  # type: ignore[arg-type]
    )
    encoder = Encoder(config, Mesh(), load_kernels("torch"))
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:  # norms stay as they are: tokens then spread over the experts
            nn.init.normal_(parameter, std=0.02)
    return encoder


def one_pass(encoder: Encoder, x_TD: Tensor, layout: PassLayout) -> float:
    """-> seconds of forward and backward."""
    start = time.perf_counter()
    y_TD, _ = encoder(x_TD, layout)
    with record_function(BETWEEN):
        gradient = torch.ones_like(y_TD)
    y_TD.backward(gradient)
    return time.perf_counter() - start


def memory(encoder: Encoder, x_TD: Tensor, layout: PassLayout) -> tuple[float, float]:
    """-> (kept, peak) in MiB."""
    encoder.zero_grad()
    x_TD.grad = None
    kept, most = held(lambda: one_pass(encoder, x_TD, layout))
    return kept / 2**20, most / 2**20


def main() -> None:
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler speaks of its every start
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {
        "width": 384,
        "heads": 6,
        "ffn": 1536,
        "length": 197,
        "rows": 16,
        "depth": 4,
        "repeats": 5,
        "threads": 1,
    }
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = Size(options.width, options.heads, options.ffn, options.length)
    x_TD = torch.randn(options.rows * options.length, options.width, requires_grad=True)
    print(
        f"{options.depth} blocks, width {size.width}, FFN {size.ffn}, {options.rows} x {size.length} tokens, 8 experts"
    )
    print(
        f"{'blocks':<36}{'way':<11}{'kept MiB':>9}{'of none':>9}{'peak MiB':>10}{'of none':>9}{'x time':>8}{'from - to':>14}"
    )
    for name in BLOCKS:
        layout = make_layout(options.rows, options.length, "cpu", by_group=name.startswith("merge"))
        encoders = {way: make_encoder(name, way, size, options.depth) for way in WAYS}
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for repeat in range(options.repeats + 1):  # the first warms up
            for way, encoder in encoders.items():
                encoder.zero_grad()
                taken = one_pass(encoder, x_TD, layout)
                if repeat:
                    seconds[way].append(taken)
        found = {way: memory(encoder, x_TD, layout) for way, encoder in encoders.items()}
        for way, (kept, peak) in found.items():
            ratios = [mine / base for mine, base in zip(seconds[way], seconds["none"], strict=True)]
            of_none = (kept / found["none"][0], peak / found["none"][1])
            print(
                f"{name:<36}{way:<11}{kept:>9.0f}{of_none[0]:>9.2f}{peak:>10.0f}{of_none[1]:>9.2f}"
                f"{statistics.median(ratios):>8.2f}{min(ratios):>7.2f} -{max(ratios):>5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
