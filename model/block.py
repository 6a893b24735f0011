"""One pre-LN block: attention branch, feed-forward branch, one routing decision for each (papers.md 1.3, 2.4)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from model.attention import Attention, KeysValues
from model.config import ModelConfig
from model.feed_forward import feed_forward
from model.moe.layer import Decision, DispatchPath, MergePath, RoutingReport, make_path
from model.moe.router import Layouts, States
from model.noise import Key, derive, uniform
from model.recompute import computed
from model.sequence_rows import WHOLE, Rows
from parallel.kernels import Kernels
from parallel.mesh import Mesh
from parallel.placement import mark_partial


class Block(nn.Module):
    """x + s1 * Attention(LN1 x), then x + s2 * FeedForward(LN2 x); s is LayerScale, where it is on."""

    def __init__(self, config: ModelConfig, layer: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        sparse = config.experts.is_sparse(layer, config.depth)
        sparse_attention = sparse and config.experts.unit == "linear"
        self.drop_path = config.drop_path
        self.computed = computed(config.activation_checkpointing)
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
        if mesh.sequence.size > 1:
            # What acts between `leave` and `enter` sees a part of the rows, prompts join keys of a part of the heads.
            own = (self.attention_scale, self.ffn_scale, self.prompts, self.target_prompts)
            norms = (*self.attention_norm.parameters(), *self.ffn_norm.parameters())
            for parameter in (*norms, *(p for p in own if p is not None)):
                mark_partial(parameter)

    def forward(
        self, xs: States, layouts: Layouts, noise: Key, past: KeysValues | None = None, rows: Rows = WHOLE
    ) -> tuple[States, tuple[RoutingReport, ...], tuple[KeysValues, ...]]:
        """-> (xs, reports of the decisions; none in a dense block, keys and values of each sequence).

        past: keys and values that the tokens of a single sequence see besides their own, prompts among them. rows: which tokens
        of xs this rank has.
        """
        first, second = self._decide_ahead(layouts, noise)
        with self.computed(functools.partial(rows.enter, self.attention_norm), xs, range(len(xs))) as normed:
            if isinstance(self.attention_path, DispatchPath):
                first = self.attention_path(_deciding(normed, rows), layouts, derive(noise, "attention"))
            prompts = () if past else self._prompts(layouts)
            branches, keys_values = self.attention(normed, layouts, first, prompts, past)
        xs = self._added(xs, branches, layouts, self.attention_scale, derive(noise, "drop attention"), rows)

        with self.computed(functools.partial(rows.enter, self.ffn_norm), xs, range(len(xs))) as normed:
            if isinstance(self.ffn_path, DispatchPath):
                second = self.ffn_path(_deciding(normed, rows), layouts, derive(noise, "ffn"))
            branches = self.ffn(normed, second)
        xs = self._added(xs, branches, layouts, self.ffn_scale, derive(noise, "drop ffn"), rows)
        return xs, tuple(decision.report for decision in (first, second) if decision is not None), keys_values

    def _decide_ahead(self, layouts: Layouts, noise: Key) -> tuple[Decision, Decision]:
        """Decisions that look at no data are made first: their weights travel while attention is computed."""
        first = second = None
        if isinstance(self.attention_path, MergePath):
            first = self.attention_path(self.attention.banks, layouts, derive(noise, "attention"))
        if isinstance(self.ffn_path, MergePath):
            second = self.ffn_path(self.ffn.banks, layouts, derive(noise, "ffn"))
        return first, second

    def _prompts(self, layouts: Layouts) -> States:
        """Normalised prompts for each sequence; none where the block has none."""
        if self.prompts is None:
            return ()
        target_prompts = self.prompts if self.target_prompts is None else self.target_prompts
        return tuple(self.attention_norm(target_prompts if lay.is_target else self.prompts) for lay in layouts)

    def _added(
        self, xs: States, branches: States, layouts: Layouts, scale_D: Tensor | None, noise: Key, rows: Rows
    ) -> States:
        return tuple(
            x + self._scaled(rows.leave(branch), layouts[index].shared_B, scale_D, noise, index, len(branch), rows)
            for index, (x, branch) in enumerate(zip(xs, branches, strict=True))
        )

    def _scaled(
        self,
        branch: Tensor,
        shared_B: Tensor | None,
        scale_D: Tensor | None,
        noise: Key,
        index: int,
        batch: int,
        rows: Rows,
    ) -> Tensor:
        if scale_D is not None:
            branch = branch * scale_D
        if noise is None or not self.drop_path:
            return branch
        key = derive(noise, index) if shared_B is None else noise
        keep_B11 = uniform(key, (batch, 1, 1), branch, shared_B) >= self.drop_path
        return branch * rows.each(keep_B11, index) / (1 - self.drop_path)


def _deciding(xs: States, rows: Rows) -> States:
    """Tokens as a router sees them."""
    return tuple(rows.deciding(x) for x in xs)
