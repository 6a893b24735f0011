"""Multi-head self-attention with dense or sparse projections.

Legend: B rows, L positions, D width, H heads, d head width, P prompts, S positions that are there already.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from model.config import ModelConfig
from model.layout import SequenceLayout, position_major
from model.moe.experts import ExpertLinear
from model.moe.layer import Decision, MergeDecision
from model.moe.router import Layouts, States
from model.projection import banks_of, projection
from model.recompute import computed
from parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class KeysValues:
    """Keys and values of one layer, [B, H, S, d], prompts included."""

    keys: Tensor
    values: Tensor

    def joined(self, later: KeysValues) -> KeysValues:
        return KeysValues(torch.cat([self.keys, later.keys], 2), torch.cat([self.values, later.values], 2))

    def rows(self, rows_N: Tensor) -> KeysValues:
        return KeysValues(self.keys[rows_N], self.values[rows_N])


class Attention(nn.Module):
    """Rows of the fused QKV weight are ordered (head, q | k | v, d), so that a cut over tensor ranks gives whole heads."""

    def __init__(self, config: ModelConfig, sparse: bool, mesh: Mesh) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.qkv = projection(config, "qkv", config.width, 3 * config.width, sparse, mesh)
        self.out = projection(config, "out", config.width, config.width, sparse, mesh)
        self.computed = computed(config.activation_checkpointing)

    @property
    def banks(self) -> tuple[ExpertLinear, ...]:
        """What a decision is for."""
        return banks_of(self.qkv, self.out)

    def forward(
        self,
        xs: States,
        layouts: Layouts,
        decision: Decision,
        prompts: tuple[Tensor, ...] = (),
        past: KeysValues | None = None,
    ) -> tuple[States, tuple[KeysValues, ...]]:
        """-> (ys, keys and values of the tokens and prompts of this pass).

        prompts: [P, D] for each sequence, or none. past: what the tokens of a single sequence see besides themselves; its
        mask then has S more columns in front.
        """
        joined, seen = xs, layouts
        if prompts:
            joined = tuple(
                torch.cat([p_PD.expand(x.shape[0], -1, -1), x], 1) for p_PD, x in zip(prompts, xs, strict=True)
            )
            seen = tuple(layout.with_prompts(len(p_PD)) for layout, p_PD in zip(layouts, prompts, strict=True))
        fused = self.qkv(joined, decision if decision is None else dataclasses.replace(decision, layouts=seen))
        ys, all_new = [], []
        for qkv_BLF, layout, x_BLD in zip(fused, seen, xs, strict=True):
            y_BLD, new = self._attend(qkv_BLF, layout, x_BLD.shape[1], past)
            ys.append(y_BLD)
            all_new.append(new)
        if not isinstance(decision, MergeDecision):
            return self.out(tuple(ys), decision), tuple(all_new)
        with self.computed(position_major, ys) as stored:  # a copy of what attention keeps itself
            return self.out(stored, decision), tuple(all_new)

    def _attend(
        self, qkv_BLF: Tensor, layout: SequenceLayout, queries: int, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """The last `queries` positions ask."""
        batch, length, _ = qkv_BLF.shape
        q_BHLd, k_BHLd, v_BHLd = _SplitHeads.apply(qkv_BLF, self.head_width)
        new = KeysValues(k_BHLd, v_BHLd)
        all_ = past.joined(new) if past else new
        mask = None if layout.mask_BLL is None else layout.mask_BLL.unsqueeze(1)
        q_BHLd = q_BHLd[:, :, length - queries :]
        y_BHLd = scaled_dot_product_attention(q_BHLd, all_.keys, all_.values, attn_mask=mask)
        return y_BHLd.transpose(1, 2).reshape(batch, queries, -1), new


class _SplitHeads(torch.autograd.Function):
    """[B, L, (H, 3, d)] -> views q, k, v [B, H, L, d]; the gradients are joined in one pass, in the input's order in memory."""

    @staticmethod
    def forward(ctx, qkv_BLF, head_width):
        ctx.position_major = qkv_BLF.transpose(0, 1).is_contiguous()
        return qkv_BLF.unflatten(2, (-1, 3, head_width)).permute(3, 0, 2, 1, 4).unbind(0)

    @staticmethod
    def backward(ctx, *grads_BHLd):
        batch, heads, length, head_width = grads_BHLd[0].shape
        rows, columns = (length, batch) if ctx.position_major else (batch, length)
        joined = grads_BHLd[0].new_empty(rows, columns, heads, 3, head_width)
        view = joined.transpose(0, 1) if ctx.position_major else joined
        for index, grad_BHLd in enumerate(grads_BHLd):
            view[:, :, :, index] = grad_BHLd.transpose(1, 2)
        return view.flatten(2), None
