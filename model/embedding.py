"""Tokens of every modality into one width: text ids, image and video patches, the <SPE> prefix.

Legend: B rows, L positions, P values of a patch, D width. Follows the public code (papers.md 1.2): text is
LN(E[id] + position + type), a patch LN(linear + temporal + spatial), <SPE> LN(E[spe]); the LayerNorm is shared; spatial
positions are fixed two-dimensional sine-cosine (the code) or learned (the paper).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from data.batch import Modality, Segment, Sequences
from data.visual.normalise import normalised
from model.config import ModelConfig
from model.noise import Key, derive, uniform
from parallel.kernels import Kernels
from parallel.linear import vocabulary_embedding
from parallel.mesh import Mesh

VOCABULARY_MULTIPLE = 64
"""The table's rows are padded to a multiple of this, so that its shape does not depend on the tensor degree."""


class Embedding(nn.Module):
    def __init__(self, config: ModelConfig, vocabulary_size: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        rows = math.ceil(vocabulary_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        self.config = config
        self.spe_id = vocabulary_size - 1  # the tokenizer's convention: <SPE> is the last id
        self.tokens = vocabulary_embedding(rows, config.width, mesh)
        self.text_positions = nn.Embedding(config.max_text, config.width)
        self.text_type = nn.Parameter(torch.empty(config.width))
        self.patches = nn.Linear(config.patch_values, config.width)
        self.frames = nn.Embedding(config.max_frames, config.width)
        side = config.position_grid or config.image_size // config.patch
        learned = config.positions == "learned"
        self.spatial_positions = nn.Parameter(torch.empty(side, side, config.width)) if learned else None
        self.norm = kernels.layer_norm(config.width)
        self.spe_bias = nn.Parameter(torch.empty(config.width)) if config.prompts else None

    def forward(self, sequences: Sequences, noise: Key) -> Tensor:
        """-> x_BLD with the <SPE> token at position 0."""
        device = self.text_type.device
        spe_B1 = torch.full((sequences.num_rows, 1), self.spe_id, dtype=torch.long, device=device)
        parts = [self._lookup(spe_B1)]
        for segment in sequences.segments:
            is_text = segment.modality == Modality.TEXT
            parts.append(self._text(segment) if is_text else self._visual(segment, noise))
        return self.norm(torch.cat(parts, dim=1))

    def _text(self, segment: Segment) -> Tensor:
        length = segment.values.shape[1]
        if length > self.config.max_text:
            raise ValueError(f"a text of {length} tokens is longer than model.max_text={self.config.max_text}")
        return self._lookup(segment.values) + self.text_positions(segment.positions) + self.text_type

    def words(self, segment: Segment) -> Tensor:
        """Text tokens that join sequences whose beginning is there already: [B, L, D] without a <SPE> in front."""
        return self.norm(self._text(segment))

    def _lookup(self, ids_BL: Tensor) -> Tensor:
        x_BLD = self.tokens(ids_BL)
        return x_BLD if self.spe_bias is None else x_BLD + (ids_BL == self.spe_id).unsqueeze(-1) * self.spe_bias

    def _visual(self, segment: Segment, noise: Key) -> Tensor:
        frame_BL, grid_BL2 = segment.positions[..., 0], segment.positions[..., 1:]
        num_frames = int(frame_BL.max()) + 1
        if num_frames > self.config.max_frames:
            raise ValueError(f"a clip of {num_frames} frames is longer than model.max_frames={self.config.max_frames}")
        if noise is not None:
            # One random temporal offset per pass, for images too, so that every temporal position is trained.
            free = self.config.max_frames - num_frames
            frame_BL = frame_BL + int(uniform(derive(noise, "frames"), (1,), segment.values).item() * (free + 1))
        scale = self.config.position_scale
        if self.spatial_positions is None:
            spatial = sine_cosine(grid_BL2, self.config.width, scale)
        else:
            spatial = interpolated(self.spatial_positions.float(), grid_BL2 * scale)
        dtype = self.patches.weight.dtype
        values = normalised(segment.values, segment.modality)
        return self.patches(values.to(dtype)) + self.frames(frame_BL) + spatial.to(dtype)


def interpolated(table_RCD: Tensor, grid_BL2: Tensor) -> Tensor:
    """Rows of a [rows, columns, D] table at (row, column) coordinates, bilinear between entries; clamped to the table."""
    limit_2 = torch.tensor([side - 1 for side in table_RCD.shape[:2]], device=grid_BL2.device)
    at_BL2 = torch.minimum(grid_BL2.float(), limit_2)
    low_BL2 = at_BL2.long()
    high_BL2 = torch.minimum(low_BL2 + 1, limit_2)
    share_BL21 = (at_BL2 - low_BL2).unsqueeze(-1)
    top_BLD, bottom_BLD = (
        torch.lerp(table_RCD[row_BL, low_BL2[..., 1]], table_RCD[row_BL, high_BL2[..., 1]], share_BL21[..., 1, :])
        for row_BL in (low_BL2[..., 0], high_BL2[..., 0])
    )
    return torch.lerp(top_BLD, bottom_BLD, share_BL21[..., 0, :])


def sine_cosine(grid_BL2: Tensor, width: int, scale: float = 1.0) -> Tensor:
    """[B, L, 2] (row, column) -> [B, L, D]: [sin(row w), cos(row w), sin(column w), cos(column w)], w_i = 10000^(-i / (D/4))."""
    quarter = width // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device=grid_BL2.device) / quarter)
    angle_BL2Q = grid_BL2.to(torch.float64).unsqueeze(-1) * scale * omega
    both = torch.cat([angle_BL2Q.sin(), angle_BL2Q.cos()], dim=-1)  # [B, L, 2, D/2]
    return both.flatten(-2).to(torch.float32)
