"""What a sparse block costs against a dense one: forward and backward of one block, all paths in one run.

`python -m benchmarks.moe_layer` prints a table of ratios to the dense block; times of different runs do not compare.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL
from data.batch import Modality
from model.block import Block
from model.config import ExpertConfig, ModelConfig
from model.layout import SequenceLayout, Span
from parallel.kernels import load_kernels
from parallel.mesh import Mesh

VARIANTS = {
    "dense": ExpertConfig(placement="none"),
    "merge (attribute router, k=2)": ExpertConfig(),
    "dispatch (token router, k=1)": ExpertConfig(router="token", top_k=1),
    "dispatch (token router, k=2)": ExpertConfig(router="token", top_k=2),
}


def make_block(experts: ExpertConfig, width: int, heads: int, ffn: int) -> Block:
    block = Block(ModelConfig(width=width, heads=heads, ffn=ffn, experts=experts), 0, Mesh(), load_kernels("torch"))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return block


def seconds_of(block: Block, x_BLD: torch.Tensor, layout: SequenceLayout) -> float:
    start = time.perf_counter()
    (y_BLD,), _, _ = block((x_BLD,), (layout,), None)
    y_BLD.sum().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {
        "width": 384,
        "heads": 6,
        "ffn": 1536,
        "rows": 16,
        "length": 197,
        "repeats": 7,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x_BLD = torch.randn(options.rows, options.length, options.width, requires_grad=True)
    half = options.length // 2
    layout = SequenceLayout(
        valid_BL=torch.ones(options.rows, options.length, dtype=torch.bool),
        mask_BLL=None,
        spans=(Span(0, half, 0), Span(half, options.length, 1)),
        attributes_GA=torch.tensor([CAPTION_VISUAL, CAPTION_TEXT], dtype=torch.float32),
        modality_G=torch.tensor([Modality.IMAGE, Modality.TEXT]),
        prefix_L=torch.ones(options.length, dtype=torch.bool),
    )
    blocks = {
        name: make_block(experts, options.width, options.heads, options.ffn) for name, experts in VARIANTS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for repeat in range(
        options.repeats + 1
    ):  # the first round warms up; variants take turns so that noise hits all alike
        for name, block in blocks.items():
            elapsed = seconds_of(block, x_BLD, layout)
            if repeat:
                times[name].append(elapsed)
    print(
        f"one block, forward + backward, {options.rows} x {options.length} tokens, width {options.width}, ffn {options.ffn}, "
        f"8 experts, {options.threads} thread(s), median of {options.repeats}"
    )
    dense = statistics.median(times["dense"])
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"  {name:<32} {median * 1000:8.1f} ms   {median / dense:5.2f} x dense   ({min(values) * 1000:.1f} - {max(values) * 1000:.1f})"
        )


if __name__ == "__main__":
    main()
