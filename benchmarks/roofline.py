"""What a training step of a preset should take on a GPU that is not here: a count of its operators, and assumptions.

    python -m benchmarks.roofline --presets uni_perceiver_moe_base limoe_b16

The real step (forward, backward, AdamW) runs at full size on fake tensors, which have shapes and dtypes and no values; every operator is
counted with its FLOPs and bytes, as the branches of a GPU have it. Time on the GPU is the sum over operators of the longer of products and
memory; the host's is a time for each launch; the longer of both counts. One rank that holds all experts. Assumptions are options, but for
the tiles of attention.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from benchmarks.batches import PRESETS, batch_of
from benchmarks.gpu_branches import branches_of_a_gpu
from data.batch import TaskBatch
from model.config import ModelConfig
from model.flops import forward_flops, passes_of, work_of
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from parallel.precision import computing
from plan.tasks import shares_of, task_loads, vocabulary_size_of, word_candidates_of
from run.command_line import Several
from run.config_file import load_config

VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unbind", "split", "split_with_sizes",
    "unsqueeze", "squeeze", "as_strided", "detach", "alias", "_reshape_alias", "unfold", "empty", "new_empty", "empty_like",
}  # fmt: skip
TILE = 64
"""Queries and keys that attention takes at once: an assumption, the least of today's kernels."""
ADAM_BYTES = 7 * 4
"""A parameter's: weight, gradient and two moments are read, three of them written."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates that are reached, in FLOP/s and bytes/s, and seconds of the host for a launch."""

    peak: float
    products: float
    fp32_products: float
    attention: float
    masked_attention: float
    memory: float
    forward_launch: float
    backward_launch: float


class Counter(TorchDispatchMode):
    """seconds: on the GPU; launches: kernels."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine, self.seconds, self.launches = machine, 0.0, 0
        self.by_kind = {"products": 0.0, "attention": 0.0, "memory": 0.0}
        self.is_joining = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if self.is_joining or name in VIEWS or func.namespace == "prim":
            return out
        self._add(name, [x for x in tree_leaves(args) if isinstance(x, Tensor)], (args, kwargs, out))
        return out

    def _add(self, name: str, given: list[Tensor], touched: Any) -> None:
        """A kernel. given: its operands. touched: what it reads and writes."""
        tensors = [x for x in tree_leaves(touched) if isinstance(x, Tensor)]
        memory = sum(x.numel() * x.element_size() for x in tensors) / self.machine.memory
        kind, computing_s = self._products(name, given)
        self.launches += 1
        seconds = max(memory, computing_s)
        self.seconds += seconds
        self.by_kind[kind if computing_s >= memory else "memory"] += seconds

    def joined(self, function: Callable[..., Any], *read: Any) -> Any:
        """The function's operators as one kernel that reads `read`, and writes what it returns."""
        self.is_joining = True
        try:
            out = function()
        finally:
            self.is_joining = False
        self._add("joined", [], (read, out))
        return out

    def _products(self, name: str, given: list[Tensor]) -> tuple[str, float]:
        machine = self.machine
        if "attention" in name:  # query, key, value, all [B, H, L, d]; backward has the gradient first
            backward = "backward" in name
            query, key = given[1:3] if backward else given[:2]
            batch, heads, length, width = query.shape
            places = _in_tiles(length) * _in_tiles(key.shape[2])
            flops = 4 * batch * heads * places * width * (2.5 if backward else 1)
            masked = any(x.dim() == 4 and x.shape[-1] == key.shape[2] and x.shape[-1] != width for x in given)
            return "attention", flops / (machine.masked_attention if masked else machine.attention)
        if name not in ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm"):
            return "memory", 0.0
        matrices = [x for x in given if x.dim() >= 2][-2:]
        rate = machine.products if matrices[0].dtype == torch.bfloat16 else machine.fp32_products
        if name == "_grouped_mm" and all(x.dim() == 2 for x in matrices):  # a gradient of weights: rows are shared out
            return "products", 2 * matrices[0].shape[0] * matrices[0].shape[1] * matrices[1].shape[1] / rate
        (rows, inner), columns = matrices[0].shape[-2:], matrices[1].shape[-1]
        batches = matrices[0].shape[0] if matrices[0].dim() == 3 else 1
        return "products", 2 * batches * rows * inner * columns / rate


def _in_tiles(length: int) -> int:
    """A kernel computes whole tiles, so a text of two words costs as one of 64."""
    return math.ceil(length / TILE) * TILE


class Joined(torch.autograd.Function):
    """A function as a compiler makes it: a kernel forward, and one backward that reads the arguments and the gradients."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        own = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in arguments]

        def run() -> Any:
            with torch.enable_grad():
                return function(*own)

        out = _counter().joined(run, own)
        ctx.own, ctx.out = own, out
        return tuple(x.detach() for x in out) if isinstance(out, tuple) else out.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        out = ctx.out if isinstance(ctx.out, tuple) else (ctx.out,)
        wanted = [x for x in ctx.own if isinstance(x, Tensor) and x.requires_grad]
        found = _counter().joined(lambda: torch.autograd.grad(out, wanted, gradients), ctx.own, gradients)
        left = iter(found)
        return None, *(next(left) if isinstance(x, Tensor) and x.requires_grad else None for x in ctx.own)


def _counter() -> Counter:
    return next(mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, Counter))


def step_of(
    model: ModelConfig, vocabulary_size: int, batch: TaskBatch, machine: Machine, compiles: bool = True
) -> dict[str, float]:
    """Seconds of one micro-batch and of an update, launches, and the model's FLOPs."""
    works = work_of(model, batch, batch.inputs.counts, batch.candidates.counts)
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        branches_of_a_gpu(),
        mock.patch("model.moe.grouped.has_grouped_products", lambda x: x.dtype == torch.bfloat16),
        mock.patch.object(TaskBatch, "__post_init__", lambda batch: None),  # it looks at values
    ):
        kernels = load_kernels("torch")
        if compiles:
            kernels = dataclasses.replace(kernels, fused=lambda function: functools.partial(Joined.apply, function))
        objective = Objective(model, vocabulary_size, Mesh(), kernels)
        moved = batch.map(fake.from_tensor)
        with Counter(machine) as forward, computing("cpu", torch.bfloat16):
            losses = objective(moved, 1)
        with Counter(machine) as backward:
            losses.total.backward()
        numbers = sum(parameter.numel() for parameter in objective.parameters())
        parts, passes = forward_flops(model, works), passes_of(objective)
    host = forward.launches * machine.forward_launch + backward.launches * machine.backward_launch
    return {
        "flops": sum(passes[part] * flops for part, flops in parts.items()),
        "gpu": forward.seconds + backward.seconds,
        "host": host,
        "update": numbers * ADAM_BYTES / machine.memory,
        "launches": forward.launches + backward.launches,
        **{kind: forward.by_kind[kind] + backward.by_kind[kind] for kind in forward.by_kind},
    }


def add_rates(parser: argparse.ArgumentParser) -> None:
    """Options for what a machine reaches."""
    for name, default, text in (
        ("peak", 989.4, "TFLOP/s of the data sheet, of which MFU is a share"),
        ("products", 650, "TFLOP/s that products in bf16 reach"),
        ("fp32-products", 250, "TFLOP/s of what is left in fp32, with TF32"),
        ("attention", 400, "TFLOP/s of attention without a mask"),
        ("masked-attention", 200, "TFLOP/s of attention with one"),
        ("memory", 2.8, "TB/s"),
        ("forward-launch", 6, "microseconds of the host for a launch"),
        ("backward-launch", 5, "the same in the backward pass"),
    ):
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{text} (%(default)s)")


def machine_of(options: argparse.Namespace) -> Machine:
    return Machine(
        *(
            1e12 * getattr(options, name)
            for name in ("peak", "products", "fp32_products", "attention", "masked_attention", "memory")
        ),
        1e-6 * options.forward_launch,
        1e-6 * options.backward_launch,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", action=Several, default=["uni_perceiver_moe_base"], metavar="NAME")
    parser.add_argument("--recompute", choices=["none", "selective", "block"], help="in place of the preset's own")
    parser.add_argument("--compile", choices=["passes", "none"], default="passes", help="as the run's option")
    add_rates(parser)
    options = parser.parse_args()
    machine = machine_of(options)
    print(
        f"{'preset':<26}{'task':<22}{'tokens':>8}{'TFLOP':>8}{'GPU ms':>8}{'prod.':>7}{'att.':>6}{'mem.':>6}"
        f"{'host ms':>9}{'launches':>9}{'MFU':>6}"
    )
    for preset in options.presets:
        overrides = ["parallel.expert=1"]
        if options.recompute:
            overrides.append(f"model.activation_checkpointing={options.recompute}")
        run = load_config(PRESETS / f"{preset}.yaml", overrides)
        vocabulary_size, _ = vocabulary_size_of(run)
        shares, _ = shares_of(run)
        seconds = flops = update = 0.0
        for load in task_loads(run, word_candidates_of(run), shares):
            batch = batch_of(run.model, load, vocabulary_size)
            found = step_of(run.model, vocabulary_size, batch, machine, options.compile == "passes")
            longest = max(found["gpu"], found["host"])
            seconds, flops, update = (
                seconds + load.share * longest,
                flops + load.share * found["flops"],
                found["update"],
            )
            tokens = batch.inputs.num_tokens + batch.candidates.num_tokens
            print(
                f"{preset:<26}{load.name:<22}{tokens:>8}{found['flops'] / 1e12:>8.1f}{found['gpu'] * 1e3:>8.1f}"
                f"{found['products'] / found['gpu']:>7.0%}{found['attention'] / found['gpu']:>6.0%}"
                f"{found['memory'] / found['gpu']:>6.0%}{found['host'] * 1e3:>9.1f}{found['launches']:>9.0f}"
                f"{found['flops'] / longest / machine.peak:>6.0%}",
                flush=True,
            )
        per_step = seconds + update / run.micro_batches
        print(
            f"{preset:<26}{'mean, with the update':<22}{'':>8}{flops / 1e12:>8.1f}{'':>51}{flops / per_step / machine.peak:>6.0%}"
        )


if __name__ == "__main__":
    main()
