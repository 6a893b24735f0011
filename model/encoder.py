"""The shared encoder: a stack of blocks, without a final LayerNorm (papers.md 1.3)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.attention import KeysValues
from model.block import Block
from model.config import ModelConfig
from model.layout import PassLayout
from model.moe.layer import RoutingReport
from model.noise import Key, derive
from model.sequence_rows import WHOLE, CutRows, Rows, WholeRows
from parallel.kernels import Kernels
from parallel.mesh import Mesh

DECISIONS = (torch.ops.aten.sort.stable, torch.ops.aten.lt.Tensor)
"""What routing decides with: ranks of experts and of tokens, and who finds a slot. Kept under activation checkpointing, so
that recomputation sends every token where it went, also where a device does not repeat its sums to the last bit."""


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.merges = config.num_decisions > 0 and not config.experts.decides_per_token
        self.sequence = mesh.sequence
        self.recompute = config.activation_checkpointing == "block"
        self.blocks = nn.ModuleList(Block(config, layer, mesh, kernels) for layer in range(config.depth))

    def continue_from(
        self, x_TD: Tensor, layout: PassLayout, past: tuple[KeysValues, ...]
    ) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """More tokens of sequences whose keys and values are known by layer (none yet: an empty tuple), without noise and
        gradients -> (x_TD, keys and values of the new tokens by layer). Rows are never cut: there are few."""
        assert self.sequence.size == 1 or not torch.is_grad_enabled(), (
            "gradients of norms would count once a tensor rank"
        )
        rows = WholeRows(self.sequence)
        all_new = []
        for layer, block in enumerate(self.blocks):
            x_TD, _, (new,) = block(x_TD, layout, None, past[layer] if past else None, rows)
            all_new.append(new)
        return x_TD, tuple(all_new)

    def forward(self, x_TD: Tensor, layout: PassLayout) -> tuple[Tensor, tuple[RoutingReport, ...]]:
        """All tokens of a pass -> (x_TD, reports in the order of the decisions). The layout's counters know the pass, so that noise keys
        of layers are the same in all of them."""
        noise: Key = 0 if layout.draws else None
        rows: Rows = WHOLE
        if self.sequence.size > 1:
            rows = CutRows(self.sequence, layout.num_tokens)
            x_TD = rows.take(x_TD)
        reports: tuple[RoutingReport, ...] = ()
        for layer, block in enumerate(self.blocks):
            run = recomputed(block) if self.recompute and torch.is_grad_enabled() else block
            x_TD, more, _ = run(x_TD, layout, derive(noise, layer), None, rows)
            reports += more
        return rows.give(x_TD) if isinstance(rows, CutRows) else x_TD, reports


def recomputed(function):
    """The function, its activations computed again in the backward pass; routing decisions are kept."""
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    # All randomness comes from noise keys, so there is no generator state to restore.
    return functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _policy(context, operation, *args, **kwargs) -> CheckpointPolicy:
    kept = operation in DECISIONS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
