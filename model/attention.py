"""Multi-head self-attention with dense or sparse projections. Legend: B rows, L positions, D width, H heads, d head width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from model.config import ModelConfig
from model.layout import SequenceLayout
from model.moe.layer import Decision
from model.moe.router import Layouts, Passed
from model.projection import projection
from parallel.mesh import Mesh


class Attention(nn.Module):
    """Rows of the fused QKV weight are ordered (head, q | k | v, d), so that a cut over tensor ranks gives whole heads."""

    def __init__(self, config: ModelConfig, sparse: bool, mesh: Mesh) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.qkv = projection(config, config.width, 3 * config.width, "column", sparse, mesh)
        self.out = projection(config, config.width, config.width, "row", sparse, mesh)

    def forward(self, xs: Passed, layouts: Layouts, decision: Decision) -> Passed:
        fused = self.qkv(xs, decision)
        ys = tuple(self._attend(qkv_BLF, layout) for qkv_BLF, layout in zip(fused, layouts, strict=True))
        return self.out(ys, decision)

    def _attend(self, qkv_BLF: Tensor, layout: SequenceLayout) -> Tensor:
        batch, length, _ = qkv_BLF.shape
        qkv = qkv_BLF.view(batch, length, -1, 3, self.head_width)
        q_BHLd, k_BHLd, v_BHLd = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        mask = None if layout.mask_BLL is None else layout.mask_BLL.unsqueeze(1)
        y_BHLd = scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, attn_mask=mask)
        return y_BHLd.transpose(1, 2).reshape(batch, length, -1)
