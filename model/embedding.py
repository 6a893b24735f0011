"""Tokens of every modality into one width: text ids, image and video patches, the <SPE> prefix.

Legend: T tokens of sequences, V valid tokens of a segment, P values of a patch, D width. Follows the public code (papers.md 1.2): text is
LN(E[id] + position + type), a patch LN(linear + temporal + spatial), <SPE> LN(E[spe]); the LayerNorm is shared; spatial
positions are fixed two-dimensional sine-cosine (the code) or learned (the paper).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from data.batch import Modality, Segment, Sequences
from data.visual.normalise import normalised
from model.config import ModelConfig
from model.layout import SequenceLayout, take_tokens
from model.noise import Key, derive
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
        self.register_buffer("waves_CH", None if learned else waves(side, config.width, config.position_scale), False)
        self.norm = kernels.layer_norm(config.width)
        self.spe_bias = nn.Parameter(torch.empty(config.width)) if config.prompts else None

    def forward(self, sequences: Sequences, layout: SequenceLayout) -> Tensor:
        """-> x_TD, <SPE> first in each row."""
        return self.of_pass((sequences,), (layout,))

    def of_pass(self, sequences: tuple[Sequences, ...], layouts: tuple[SequenceLayout, ...]) -> Tensor:
        """-> x_TD of all, one after another. The table is asked once: each time its gradient would be as large as the table."""
        ids: list[Tensor] = []
        for of_one, layout in zip(sequences, layouts, strict=True):
            ids.append(torch.full((layout.tokens.rows,), self.spe_id, dtype=torch.long, device=self.text_type.device))
            for segment, valid_V in zip(of_one.segments, layout.tokens.of_segments, strict=True):
                if segment.modality == Modality.TEXT:
                    ids.append(_only(segment.values, valid_V))
        found = iter(self._lookup(torch.cat(ids)).split([len(of_one) for of_one in ids]))
        xs = [self._joined(*pair, found) for pair in zip(sequences, layouts, strict=True)]
        return self.norm(torch.cat(xs) if len(xs) > 1 else xs[0])

    def _joined(self, sequences: Sequences, layout: SequenceLayout, found: Iterator[Tensor]) -> Tensor:
        """found: rows of the table for <SPE> and for each text. -> [T, D], not normalised."""
        tokens = layout.tokens
        parts = [next(found)]
        for index, (segment, valid_V) in enumerate(zip(sequences.segments, tokens.of_segments, strict=True)):
            if segment.modality == Modality.TEXT:
                parts.append(self._text(segment, next(found), valid_V))
            else:
                frames = int(tokens.parts[index].frames_B.max())
                parts.append(self._visual(segment, valid_V, frames, derive(layout.noise, "frames", index)))
        return take_tokens(torch.cat(parts), layout.ordered(tokens.from_parts_T))

    def _text(self, segment: Segment, found_VD: Tensor, valid_V: Tensor | None = None) -> Tensor:
        length = segment.values.shape[1]
        if length > self.config.max_text:
            raise ValueError(f"a text of {length} tokens is longer than model.max_text={self.config.max_text}")
        return found_VD + self.text_positions(_only(segment.positions, valid_V)) + self.text_type

    def words(self, segment: Segment) -> Tensor:
        """Text tokens that join sequences whose beginning is there already: [B x L, D] without a <SPE> in front."""
        return self.norm(self._text(segment, self._lookup(segment.values.flatten())))

    def _lookup(self, ids_V: Tensor) -> Tensor:
        x_VD = self.tokens(ids_V)
        return x_VD if self.spe_bias is None else x_VD + (ids_V == self.spe_id).unsqueeze(-1) * self.spe_bias

    def _visual(self, segment: Segment, valid_V: Tensor | None, frames: int, noise: Key) -> Tensor:
        values_VP, positions_V3 = (_only(x, valid_V) for x in (segment.values, segment.positions))
        frame_V, grid_V2 = positions_V3[:, 0], positions_V3[:, 1:]
        if frames > self.config.max_frames:
            raise ValueError(f"a clip of {frames} frames is longer than model.max_frames={self.config.max_frames}")
        if noise is not None:
            # One random temporal offset per pass, for images too, so that every temporal position is trained.
            frame_V = frame_V + temporal_offset(noise, self.config.max_frames - frames)
        if self.spatial_positions is None:
            assert isinstance(self.waves_CH, Tensor)
            spatial_VD = self.waves_CH[grid_V2].flatten(1)
        else:
            spatial_VD = interpolated(self.spatial_positions.float(), grid_V2 * self.config.position_scale)
        values_VP = normalised(values_VP, segment.modality).to(self.patches.weight.dtype)
        return self.patches(values_VP) + self.frames(frame_V) + spatial_VD


def temporal_offset(noise: int, free: int) -> int:
    """0 ... free."""
    return noise % (free + 1)


def _only(x: Tensor, valid_V: Tensor | None) -> Tensor:
    """[B, L, ...] -> [V, ...]."""
    flat = x.flatten(0, 1)
    return flat if valid_V is None else flat.index_select(0, valid_V)


def interpolated(table_RCD: Tensor, grid_X2: Tensor) -> Tensor:
    """Rows of a [rows, columns, D] table at (row, column) coordinates, bilinear between entries; clamped to the table. -> [..., D]."""
    (low_rX, high_rX, share_rX1), (low_cX, high_cX, share_cX1) = (
        _between(grid_X2[..., axis].float(), side - 1) for axis, side in enumerate(table_RCD.shape[:2])
    )
    top_XD, bottom_XD = (
        torch.lerp(table_RCD[row_X, low_cX], table_RCD[row_X, high_cX], share_cX1) for row_X in (low_rX, high_rX)
    )
    return torch.lerp(top_XD, bottom_XD, share_rX1)


def _between(at_X: Tensor, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> (entry below, entry above, share of the one above [..., 1])."""
    at_X = at_X.clamp(max=last)
    low_X = at_X.long()
    return low_X, (low_X + 1).clamp(max=last), (at_X - low_X).unsqueeze(-1)


def sine_cosine(grid_X2: Tensor, width: int, scale: float = 1.0) -> Tensor:
    """[..., 2] (row, column) -> [..., D]: [sin(row w), cos(row w), sin(column w), cos(column w)], w_i = 10000^(-i / (D / 4))."""
    return waves(int(grid_X2.max()) + 1, width, scale)[grid_X2].flatten(-2)


def waves(side: int, width: int, scale: float) -> Tensor:
    """[side, D / 2]: [sin(x w), cos(x w)] of each coordinate x."""
    quarter = width // 4
    omega_Q = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle_CQ = torch.arange(side, dtype=torch.float64)[:, None] * scale * omega_Q
    return torch.cat([angle_CQ.sin(), angle_CQ.cos()], dim=-1).float()
