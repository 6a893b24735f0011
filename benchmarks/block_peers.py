"""A preset's blocks beside those of other programs: forward and backward of stacks of the same width, depth and tokens, one table.

Ours are dense, merged experts, and whole networks as experts, top-1. Others are torch's nn.TransformerEncoderLayer, open_clip's
Transformer, and our blocks with DeepSpeed's or Megatron-core's MoE layer in the place of the feed-forward branch. What cannot be made
here says why. FLOPs are the model's, by model/flops.py, the same for all that compute the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.moe_layer import DeepSpeedFeedForward, Size, make_layout
from model.config import ModelConfig
from model.encoder import Encoder
from model.flops import Work, forward_flops
from model.layout import PassLayout
from model.moe.config import ExpertConfig
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from parallel.precision import computing
from run.config import RunConfig
from run.metrics.memory import GIB
from run.metrics.peaks import TERA
from run.metrics.phases import Phases

WARM_UP = 3
DENSE = ExpertConfig(placement="none")
TOP_1 = {"placement": "all", "unit": "mlp", "router": "token", "top_k": 1, "noise": "none"}


@dataclasses.dataclass(frozen=True)
class Stack:
    """Of so many blocks, for rows x length tokens. compile: as the run's option, for ours."""

    size: Size
    depth: int
    rows: int
    experts: int
    compile: str
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        return self.rows * self.size.length

    def config(self, experts: ExpertConfig = DENSE) -> ModelConfig:
        size = self.size
        return ModelConfig(width=size.width, depth=self.depth, heads=size.heads, ffn=size.ffn, experts=experts)

    def flops(self, experts: ExpertConfig) -> float:
        """Forward and backward."""
        work = Work(tokens=self.tokens, pairs=self.tokens * self.size.length)
        return 3 * sum(forward_flops(self.config(experts), (work,)).values())


class Ours(nn.Module):
    """[B, L, D] -> the same, half of the places of a picture, half of a text."""

    def __init__(self, stack: Stack, experts: ExpertConfig, mesh: Mesh) -> None:
        super().__init__()
        self.encoder = Encoder(stack.config(experts), mesh, load_kernels("torch", stack.compile))  # type: ignore[arg-type]
        self.layout: PassLayout = make_layout(stack.rows, stack.size.length, mesh.device, self.encoder.merges)

    def forward(self, x_BLD: Tensor) -> Tensor:
        y_TD, _ = self.encoder(x_BLD.flatten(0, 1), self.layout)
        return y_TD.view_as(x_BLD)


class MegatronFeedForward(nn.Module):
    """Megatron-core's MoE layer in the place of a block's feed-forward branch. Needs a GPU and Transformer Engine."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        import transformer_engine  # noqa: F401, without it the layer is made, and fails at its first use
        from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
        from megatron.core.transformer.spec_utils import build_module
        from megatron.core.transformer.transformer_config import TransformerConfig

        model_parallel_cuda_manual_seed(0)
        config = TransformerConfig(
            num_layers=stack.depth,
            hidden_size=stack.size.width,
            num_attention_heads=stack.size.heads,
            ffn_hidden_size=stack.size.ffn,
            num_moe_experts=stack.experts,
            moe_router_topk=1,
            moe_router_pre_softmax=True,
            moe_router_load_balancing_type="none",
            moe_token_dispatcher_type="alltoall",
            moe_grouped_gemm=True,
            activation_func=nn.functional.gelu,
            bf16=stack.dtype == torch.bfloat16,
            params_dtype=stack.dtype,
        )
        spec = get_moe_module_spec(use_te=True, num_experts=stack.experts, moe_grouped_gemm=True)
        self.dtype, self.moe = stack.dtype, build_module(spec, config=config, layer_number=1)

    def forward(self, x_TD: Tensor, decision: None) -> Tensor:
        y_T1D: Tensor = self.moe(x_TD[:, None].to(self.dtype))[0]
        return y_T1D[:, 0]


def with_feed_forward(stack: Stack, mesh: Mesh, make: Callable[[], nn.Module]) -> nn.Module:
    ours = Ours(stack, DENSE, mesh)
    for block in ours.encoder.blocks:
        block.ffn = make()
    return ours


def of_torch(stack: Stack, mesh: Mesh) -> nn.Module:
    size = stack.size
    return nn.Sequential(
        *(
            nn.TransformerEncoderLayer(
                size.width, size.heads, size.ffn, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(stack.depth)
        )
    )


def of_torch_compiled(stack: Stack, mesh: Mesh) -> nn.Module:
    if stack.compile == "none" or mesh.device == "cpu":
        raise RuntimeError("compile=none" if stack.compile == "none" else "on a GPU alone")
    made: nn.Module = torch.compile(of_torch(stack, mesh))
    return made


def of_open_clip(stack: Stack, mesh: Mesh) -> nn.Module:
    from open_clip.transformer import Transformer

    size = stack.size
    made: nn.Module = Transformer(size.width, stack.depth, size.heads, mlp_ratio=size.ffn / size.width)
    return made


def of_deepspeed(stack: Stack, mesh: Mesh) -> nn.Module:
    size = stack.size
    return with_feed_forward(stack, mesh, lambda: DeepSpeedFeedForward(size.width, size.ffn, stack.experts, 1))


def of_megatron(stack: Stack, mesh: Mesh) -> nn.Module:
    return with_feed_forward(stack, mesh, lambda: MegatronFeedForward(stack))


def blocks_of(stack: Stack) -> dict[str, tuple[ExpertConfig, Callable[[Stack, Mesh], nn.Module]]]:
    """By title: the experts whose FLOPs count, and what makes the stack."""
    merged = ExpertConfig(placement="all", num_experts=stack.experts, noise="none")
    slots, free = (ExpertConfig(**TOP_1, num_experts=stack.experts, capacity_factor=factor) for factor in (1.0, 0.0))
    ours = {
        "dense": DENSE,
        "merged experts": merged,
        "top-1 networks, capacity 1": slots,
        "top-1 networks, all kept": free,
    }
    return {
        **{f"ours, {title}": (experts, lambda stack, mesh, e=experts: Ours(stack, e, mesh)) for title, experts in ours.items()},
        "torch TransformerEncoderLayer": (DENSE, of_torch),
        "the same by torch.compile": (DENSE, of_torch_compiled),
        "open_clip Transformer": (DENSE, of_open_clip),
        "DeepSpeed MoE, top-1, capacity 1": (slots, of_deepspeed),
        "Megatron-core MoE, top-1, all kept": (free, of_megatron),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Passes:
    """Seconds of a forward and of a backward pass, and bytes held at most besides weights and input; 0 on a CPU."""

    forward: float
    backward: float
    peak_bytes: int


def measured(module: nn.Module, stack: Stack, device: str, steps: int) -> Passes:
    module = module.to(device)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):  # what is left are norms, which tokens need to spread over the experts
            nn.init.zeros_(parameter)
    x_BLD = torch.randn(stack.rows, stack.size.length, stack.size.width, device=device, requires_grad=True)
    gradient, phase, before = torch.ones_like(x_BLD), Phases(device), 0
    for number in range(WARM_UP + steps):
        module.zero_grad()
        if number == WARM_UP:
            phase.taken()
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
        phase("forward")
        with computing(device, stack.dtype):
            y_BLD = module(x_BLD)
        phase("backward")
        y_BLD.backward(gradient.to(y_BLD.dtype))
        phase("report")
    taken = phase.taken()
    held = 0 if device == "cpu" else torch.cuda.max_memory_allocated(device) - before
    return Passes(taken["forward"] / steps, taken["backward"] / steps, held)


def peers_table(
    preset: str, run: RunConfig, mesh: Mesh, dtype: torch.dtype, peak: float, tokens: int, steps: int
) -> str:
    """For about so many tokens, in rows of a picture's length and its <SPE>. peak: FLOP/s, 0 where it is not known."""
    model = run.model
    length = 1 + (model.image_size // model.patch) ** 2
    size = Size(model.width, model.heads, model.ffn, length)
    experts = max(2, model.experts.num_experts)
    stack = Stack(size, model.depth, max(1, tokens // length), experts, run.compile, dtype)
    lines = [
        f"{preset}: {stack.depth} blocks, width {size.width}, FFN {size.ffn}, {experts} experts in all that are sparse, "
        f"{stack.rows} x {length} tokens",
        f"  {'blocks':<36}{'forw. ms':>10}{'backw. ms':>11}{'tokens/s':>11}{'TFLOP/s':>9}{'MFU':>6}{'GiB':>7}",
    ]
    for title, (counted, make) in blocks_of(stack).items():
        try:
            found = measured(make(stack, mesh), stack, mesh.device, steps)
        except Exception as error:  # other programs may ask for what is not here
            if title.startswith("ours") and not isinstance(error, torch.OutOfMemoryError):
                raise
            first, _, _ = str(error).partition("\n")
            lines.append(f"  {title:<36}skipped: {type(error).__name__}: {first}")
            continue
        seconds = found.forward + found.backward
        rate, held = stack.flops(counted) / seconds, found.peak_bytes / GIB
        lines.append(
            f"  {title:<36}{1e3 * found.forward:>10.1f}{1e3 * found.backward:>11.1f}{stack.tokens / seconds:>11.0f}"
            f"{rate / TERA:>9.3g}{f'{rate / peak:.0%}' if peak else 'n/a':>6}{f'{held:.1f}' if held else '-':>7}"
        )
    return "\n".join(lines)
