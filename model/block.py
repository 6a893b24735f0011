"""One pre-LN block: attention branch, feed-forward branch, one routing decision for each (papers.md 1.3, 2.4)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from model.attention import Attention, KeysValues
from model.config import ModelConfig
from model.feed_forward import feed_forward
from model.layout import in_storage_order
from model.moe.layer import Decision, DispatchPath, MergePath, RoutingReport, make_path
from model.moe.router import Layouts, Passed
from model.noise import Key, derive, uniform
from parallel.kernels import Kernels
from parallel.mesh import Mesh


class Block(nn.Module):
    """x + s1 * Attention(LN1 x), then x + s2 * FeedForward(LN2 x); s is LayerScale, where it is on."""

    def __init__(self, config: ModelConfig, layer: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        sparse = config.experts.is_sparse(layer, config.depth)
        sparse_attention = sparse and config.experts.unit == "linear"
        self.drop_path = config.drop_path
        self.attention_norm = kernels.layer_norm(config.width)
        self.attention = Attention(config, sparse_attention, mesh)
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

    def forward(
        self, xs: Passed, layouts: Layouts, noise: Key, past: KeysValues | None = None
    ) -> tuple[Passed, tuple[RoutingReport, ...], tuple[KeysValues, ...]]:
        """-> (xs, reports of the decisions; none in a dense block, keys and values of each sequence).

        past: keys and values that the tokens of a single sequence see besides their own, prompts among them.
        """
        first, second = self._decide_ahead(layouts, noise)
        normed = tuple(in_storage_order(self.attention_norm, x) for x in xs)
        if isinstance(self.attention_path, DispatchPath):
            first = self.attention_path(normed, layouts, derive(noise, "attention"))
        prompts = () if past else self._prompts(layouts)
        branches, keys_values = self.attention(normed, layouts, first, prompts, past)
        xs = self._added(xs, branches, self.attention_scale, derive(noise, "drop attention"))

        normed = tuple(in_storage_order(self.ffn_norm, x) for x in xs)
        if isinstance(self.ffn_path, DispatchPath):
            second = self.ffn_path(normed, layouts, derive(noise, "ffn"))
        xs = self._added(xs, self.ffn(normed, second), self.ffn_scale, derive(noise, "drop ffn"))
        return xs, tuple(decision.report for decision in (first, second) if decision is not None), keys_values

    def _decide_ahead(self, layouts: Layouts, noise: Key) -> tuple[Decision, Decision]:
        """Decisions that look at no data are made first: their weights travel while attention is computed."""
        first = second = None
        if isinstance(self.attention_path, MergePath):
            first = self.attention_path(self.attention.banks, layouts, derive(noise, "attention"))
        if isinstance(self.ffn_path, MergePath):
            second = self.ffn_path(self.ffn.banks, layouts, derive(noise, "ffn"))
        return first, second

    def _prompts(self, layouts: Layouts) -> Passed:
        """Normalised prompts for each sequence; none where the block has none."""
        if self.prompts is None:
            return ()
        target_prompts = self.prompts if self.target_prompts is None else self.target_prompts
        return tuple(self.attention_norm(target_prompts if lay.is_target else self.prompts) for lay in layouts)

    def _added(self, xs: Passed, branches: Passed, scale_D: Tensor | None, noise: Key) -> Passed:
        return tuple(
            x + self._scaled(branch, scale_D, derive(noise, index))
            for index, (x, branch) in enumerate(zip(xs, branches, strict=True))
        )

    def _scaled(self, branch_BLD: Tensor, scale_D: Tensor | None, noise: Key) -> Tensor:
        if scale_D is not None:
            branch_BLD = branch_BLD * scale_D
        if noise is None or not self.drop_path:
            return branch_BLD
        keep_B11 = uniform(noise, (branch_BLD.shape[0], 1, 1), branch_BLD) >= self.drop_path
        return branch_BLD * keep_B11 / (1 - self.drop_path)
