"""Multi-head self-attention with dense or sparse projections.

Attention itself is computed for each of a pass's sequences in its places [B, L]; everything else holds tokens alone.
Legend: T tokens, B rows, L places, D width, H heads, d head width, F = 3 D, P prompts, S places that are there already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model.config import ModelConfig
from model.layout import PassLayout, SequenceLayout
from model.moe.experts import ExpertLinear
from model.moe.layer import Decision, for_blocks
from model.products_attention import attention
from model.projection import banks_of, projection
from model.reading import ReadTokens
from parallel.kernels import Kernels
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

    def __init__(self, config: ModelConfig, sparse: bool, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.packed_attention = kernels.packed_attention
        self.head_width = config.width // config.heads
        self.qkv = projection(config, "qkv", config.width, 3 * config.width, sparse, mesh)
        self.out = projection(config, "out", config.width, config.width, sparse, mesh)

    @property
    def banks(self) -> tuple[ExpertLinear, ...]:
        """What a decision is for."""
        return banks_of(self.qkv, self.out)

    def forward(
        self,
        x_TD: Tensor,
        layout: PassLayout,
        decision: Decision,
        prompts: tuple[Tensor, ...] = (),
        past: KeysValues | None = None,
        reads: ReadTokens | None = None,
    ) -> tuple[Tensor, tuple[KeysValues | None, ...]]:
        """-> (y_TD, keys and values of the tokens and prompts of each sequence, [B, H, L, d]; none of packed ones).

        prompts: [P, D] for each sequence, or none; with the experts of its first token. past: what the tokens of a single sequence
        see besides themselves; its mask then has S more places in front. reads: the tokens for which y is wanted, [R, D], in place of all.
        """
        of_prompts: Sequence[Tensor | None] = [None] * len(layout.sequences)
        if prompts:
            lengths = [len(prompts_PD) for prompts_PD in prompts]
            joined = self.qkv(torch.cat([x_TD, *prompts]), decision and decision.with_more(lengths))
            qkv_TF, *of_prompts = joined.split([len(x_TD), *lengths])
        else:
            qkv_TF = self.qkv(x_TD, decision)
        heads = _Heads.apply(qkv_TF, self.head_width, [_Places.of(sequence) for sequence in layout.sequences])
        ys, all_new = [], list[KeysValues | None]()
        for index, (prompts_qkv, sequence) in enumerate(zip(of_prompts, layout.sequences, strict=True)):
            q, k, v = heads[3 * index : 3 * index + 3]
            if sequence.is_packed:
                assert self.packed_attention is not None
                y_THd = self.packed_attention(q, k, v, sequence.tokens.starts_X, sequence.tokens.length)
                y, new = y_THd.flatten(1), None
            else:
                y, new = self._attend((q, k, v), prompts_qkv, sequence, past)
            ys.append(y)
            all_new.append(new)
        y_TD = torch.cat(ys) if len(ys) > 1 else ys[0]
        if reads is not None:
            y_TD, decision = y_TD.index_select(0, reads.token_R), for_blocks(decision, reads.blocks)
        return self.out(y_TD, decision), tuple(all_new)

    def _attend(
        self,
        heads: tuple[Tensor, Tensor, Tensor],
        prompts_PF: Tensor | None,
        sequence: SequenceLayout,
        past: KeysValues | None,
    ) -> tuple[Tensor, KeysValues]:
        """All tokens of a sequence ask."""
        q_BHLd, k_BHLd, v_BHLd = heads
        new = KeysValues(k_BHLd, v_BHLd)
        bias = sequence.attention_bias(q_BHLd.dtype)
        if prompts_PF is not None:
            _, k_1HPd, v_1HPd = _Heads.apply(prompts_PF, self.head_width, [_Places(1, len(prompts_PF))])
            batch = q_BHLd.shape[0]
            new = KeysValues(k_1HPd.expand(batch, -1, -1, -1), v_1HPd.expand(batch, -1, -1, -1)).joined(new)
            bias = None if bias is None else pad(bias, (len(prompts_PF), 0))
        seen = past.joined(new) if past else new
        y_BHLd = attention(q_BHLd, seen.keys, seen.values, bias)
        return sequence.taken(y_BHLd.transpose(1, 2).flatten(2)), new


@dataclasses.dataclass(frozen=True)
class _Places:
    """Rows and places of a sequence, and in which of [B x L] its tokens stand; None: in all, in order. A packed sequence is one row
    of all its tokens, which attention is given without it."""

    rows: int
    length: int
    place_T: Tensor | None = None
    is_packed: bool = False

    @classmethod
    def of(cls, sequence: SequenceLayout) -> _Places:
        if sequence.is_packed:
            return cls(1, sequence.tokens.num_tokens, is_packed=True)
        return cls(sequence.tokens.rows, sequence.tokens.length, None if sequence.is_plain else sequence.place_T)

    @property
    def num_tokens(self) -> int:
        return self.rows * self.length if self.place_T is None else len(self.place_T)


class _Heads(torch.autograd.Function):
    """[T, (H, 3, d)] -> q, k, v of one sequence after another, [B, H, L, d], or [T, H, d] of packed ones; views where all places are
    tokens. The gradients of all are written where they belong in one pass."""

    @staticmethod
    def forward(ctx, qkv_TF, head_width, all_places):
        ctx.all_places, ctx.heads = all_places, qkv_TF.shape[1] // (3 * head_width)
        found: list[Tensor] = []
        parts = qkv_TF.split([places.num_tokens for places in all_places])
        for places, qkv_PF in zip(all_places, parts, strict=True):
            if places.place_T is not None:
                zeros_PF = qkv_PF.new_zeros(places.rows * places.length, qkv_PF.shape[1])
                qkv_PF = zeros_PF.index_copy_(0, places.place_T, qkv_PF)
            if places.is_packed:
                found += qkv_PF.view(places.length, -1, 3, head_width).unbind(2)
                continue
            qkv_BLH3d = qkv_PF.view(places.rows, places.length, -1, 3, head_width)
            found += qkv_BLH3d.permute(3, 0, 2, 1, 4).unbind(0)
        return tuple(found)

    @staticmethod
    def backward(ctx, *grads_BHLd):
        heads, width = ctx.heads, grads_BHLd[0].shape[-1]
        counts = [places.num_tokens for places in ctx.all_places]
        dqkv_TH3d = grads_BHLd[0].new_empty(sum(counts), heads, 3, width)
        for index, (places, out_TH3d) in enumerate(zip(ctx.all_places, dqkv_TH3d.split(counts), strict=True)):
            grads = grads_BHLd[3 * index : 3 * index + 3]
            if places.is_packed:
                torch.stack(grads, dim=2, out=out_TH3d)
                continue
            of_each = [grad_BHLd.transpose(1, 2) for grad_BHLd in grads]
            if places.place_T is None:
                torch.stack(of_each, dim=3, out=out_TH3d.view(places.rows, places.length, heads, 3, width))
            else:
                placed_PH3d = torch.stack(of_each, dim=3).flatten(0, 1)
                torch.index_select(placed_PH3d, 0, places.place_T, out=out_TH3d)
        return dqkv_TH3d.flatten(1), None, None
