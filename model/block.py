"""One pre-LN block: attention branch, feed-forward branch, one routing decision for each (papers.md 1.3, 2.4)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.attention import Attention, KeysValues
from model.config import ModelConfig
from model.feed_forward import feed_forward
from model.layout import PassLayout
from model.moe.gates import Gates
from model.moe.layer import Decision, DispatchPath, MergeDecision, MergePath, for_blocks, make_path
from model.moe.report import Report
from model.moe.router import GroupRouter
from model.noise import Key, derive
from model.reading import ReadTokens
from model.recompute import computed
from model.residual import Residual, Stream
from model.sequence_rows import WHOLE, Rows
from parallel.kernels import Kernels
from parallel.mesh import Mesh
from parallel.placement import mark_partial
from parallel.precision import product_dtype

Merged = tuple[MergeDecision | None, MergeDecision | None]
"""Decisions for attention and feed-forward branch that are there before the block."""
NOT_MERGED: Merged = (None, None)
Drawn = tuple[Tensor | None, Tensor | None]
"""Numbers [T, E] for the noise of both branches' gates."""
NOT_DRAWN: Drawn = (None, None)


class Block(nn.Module):
    """x + s1 * Attention(LN1 x), then x + s2 * FeedForward(LN2 x); s is LayerScale, where it is on."""

    def __init__(self, config: ModelConfig, layer: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        sparse = config.experts.is_sparse(layer, config.depth)
        sparse_attention = sparse and config.experts.unit == "linear"
        self.computed = computed(config.activation_checkpointing)
        self.residual = Residual.of(kernels)
        self.attention_norm = kernels.layer_norm(config.width)
        self.attention = Attention(config, sparse_attention, mesh, kernels)
        self.ffn_norm = kernels.layer_norm(config.width)
        self.ffn = feed_forward(config, sparse, mesh)
        self.attention_scale = nn.Parameter(torch.empty(config.width)) if config.layer_scale else None
        self.ffn_scale = nn.Parameter(torch.empty(config.width)) if config.layer_scale else None
        new_path = functools.partial(make_path, config.width, config.experts, len(config.tasks), mesh, kernels)
        self.attention_path = new_path() if sparse_attention else None
        self.ffn_path = new_path() if sparse else None

        prompts = config.prompts
        self.prompts = nn.Parameter(torch.empty(prompts.length, config.width)) if prompts else None
        own_target = prompts and prompts.target_length
        self.target_prompts = nn.Parameter(torch.empty(own_target, config.width)) if own_target else None
        if mesh.sequence.size > 1:
            # What acts between `leave` and `enter` sees a part of the rows, prompts join keys of a part of the heads.
            own = (self.attention_scale, self.ffn_scale, self.prompts, self.target_prompts)
            norms = (*self.attention_norm.parameters(), *self.ffn_norm.parameters())
            for parameter in (*norms, *(p for p in own if p is not None)):
                mark_partial(parameter)

    def forward(
        self,
        stream: Stream,
        layout: PassLayout,
        noise: Key,
        merged: Merged = NOT_MERGED,
        keep_T2: Tensor | None = None,
        drawn: Drawn = NOT_DRAWN,
        past: KeysValues | None = None,
        rows: Rows = WHOLE,
        reads: ReadTokens | None = None,
    ) -> tuple[Stream, tuple[Report, ...], tuple[KeysValues | None, ...]]:
        """-> (stream, reports of the decisions; none in a dense block, keys and values of each sequence that is not packed).

        merged: decisions for both branches that merge experts. keep_T2: what dropped paths leave of either branch, 0 or 1 / share kept.
        drawn: numbers for gates that look at tokens. past: keys and values that the tokens of a single sequence see besides their own,
        prompts among them. rows: which tokens of the stream this rank has. reads: the tokens that are wanted behind the block, all
        others end in its attention.
        """
        first: Decision
        second: Decision
        first, second = merged
        if reads is not None and keep_T2 is not None:
            keep_T2 = keep_T2.index_select(0, reads.token_R)
        keep_T1, ffn_keep_T1 = (None, None) if keep_T2 is None else keep_T2.split(1, dim=1)

        stream, entering = self._entering(stream, rows, self.attention_norm, self.attention_path)
        with entering as normed_TD:
            if isinstance(self.attention_path, DispatchPath):
                first = self.attention_path(rows.deciding(normed_TD), layout, derive(noise, "attention"), drawn[0])
            prompts = () if past else self._prompts(layout)
            branch_TD, keys_values = self.attention(normed_TD, layout, first, prompts, past, reads)
        if reads is not None:
            stream, second = stream.at(reads.token_R), for_blocks(second, reads.blocks)
        stream = stream.plus(rows.leave(branch_TD), self.attention_scale, keep_T1)

        stream, entering = self._entering(stream, rows, self.ffn_norm, self.ffn_path)
        with entering as normed_TD:
            if isinstance(self.ffn_path, DispatchPath):
                second = self.ffn_path(rows.deciding(normed_TD), layout, derive(noise, "ffn"), drawn[1])
            branch_TD = self.ffn(normed_TD, second)
        stream = stream.plus(rows.leave(branch_TD), self.ffn_scale, ffn_keep_T1)
        return stream, tuple(decision.report for decision in (first, second) if decision is not None), keys_values

    def _entering(
        self, stream: Stream, rows: Rows, norm: nn.Module, path: nn.Module | None
    ) -> tuple[Stream, contextlib.AbstractContextManager[Tensor]]:
        """What a branch begins with. Routers that see tokens see them in fp32."""
        dtype = stream.x_TD.dtype if isinstance(path, DispatchPath) else product_dtype(stream.x_TD)
        stream, normed_TD = self.residual.normed(stream, norm, dtype)

        def again(x_TD: Tensor) -> Tensor:
            return rows.enter(self.residual.again(x_TD, norm, dtype))

        return stream, self.computed(again, stream.x_TD, result=rows.enter(normed_TD))

    @property
    def paths(self) -> tuple[MergePath | DispatchPath | None, MergePath | DispatchPath | None]:
        """Of both branches."""
        return self.attention_path, self.ffn_path

    @property
    def group_routers(self) -> list[GroupRouter]:
        """Those whose decisions come with a pass, in the order of their gates."""
        return [path.router for path in self.paths if isinstance(path, MergePath)]

    def start_merges(self, layout: PassLayout, gates: Sequence[Gates]) -> Callable[[], Merged]:
        """Merged weights begin to travel -> what waits for the decisions, to be called once."""
        left, waiting = list(gates), list[Callable[[], MergeDecision] | None]()
        for path, branch in ((self.attention_path, self.attention), (self.ffn_path, self.ffn)):
            waiting.append(path(branch.banks, layout, left.pop(0)) if isinstance(path, MergePath) else None)
        first, second = waiting
        return lambda: (first and first(), second and second())

    def _prompts(self, layout: PassLayout) -> tuple[Tensor, ...]:
        """Normalised prompts for each sequence; none where the block has none."""
        if self.prompts is None:
            return ()
        target_prompts = self.prompts if self.target_prompts is None else self.target_prompts
        return tuple(self.attention_norm(target_prompts if s.is_target else self.prompts) for s in layout.sequences)
