"""A tower: embedding, encoder, read-out and projection. One serves every modality; text may have one of its own.

Legend: B rows, L positions, Q read-outs, D width, W width of the space in which inputs and candidates are compared.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from data.batch import Modality, Sequences
from model.config import ModelConfig
from model.embedding import Embedding
from model.encoder import Encoder
from model.layout import SequenceLayout, layout_of
from model.moe.layer import RoutingReport
from model.noise import Key, derive
from parallel.kernels import Kernels
from parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Reading:
    """Sequences and where to read them: read_Q2 holds (row, position) pairs, sorted by row. projected: features are those of the space in
    which inputs and candidates are compared, and not the encoder's own, normalised by its last LayerNorm. task, shared_B: of candidates
    that data ranks encode together, their own task and the numbers of their rows (model/layout.py); these come last in a pass."""

    sequences: Sequences
    read_Q2: Tensor
    is_target: bool = False
    projected: bool = True
    task: int | None = None
    shared_B: Tensor | None = None

    @property
    def is_text(self) -> bool:
        return self.sequences.segments[0].modality == Modality.TEXT

    def chunk(self, index: int, count: int) -> Reading:
        """The index-th of `count` parts, cut between rows."""
        rows = self.sequences.num_rows
        if rows < count:
            raise ValueError(f"model.chunks={count} is more than the {rows} rows of a batch: lower it")
        start, end = rows * index // count, rows * (index + 1) // count
        mine_Q = (self.read_Q2[:, 0] >= start) & (self.read_Q2[:, 0] < end)
        offset_2 = torch.tensor([start, 0], device=self.read_Q2.device)
        part = self.sequences.rows(slice(start, end))
        shared_B = None if self.shared_B is None else self.shared_B[start:end]
        return dataclasses.replace(self, sequences=part, read_Q2=self.read_Q2[mine_Q] - offset_2, shared_B=shared_B)

    def layout(self, task: int) -> SequenceLayout:
        """task: of the pass."""
        return layout_of(self.sequences, task if self.task is None else self.task, self.is_target, self.shared_B)


class Tower(nn.Module):
    def __init__(self, config: ModelConfig, vocabulary_size: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config, vocabulary_size, mesh, kernels)
        self.encoder = Encoder(config, mesh, kernels)
        self.output_norm = kernels.layer_norm(config.width)
        kinds = ("visual", "text") if config.output == "per_modality" else ("shared",)
        self.output = nn.ModuleDict({kind: nn.Linear(config.width, config.space_width) for kind in kinds})

    def forward(
        self, readings: tuple[Reading, ...], noise: Key, task: int
    ) -> tuple[tuple[Tensor, ...], tuple[RoutingReport, ...]]:
        """-> (features [Q, W] of each reading in fp32, not normalised, routing reports of all together)."""
        xs = tuple(
            self.embedding(reading.sequences, derive(noise, "embedding", index))
            for index, reading in enumerate(readings)
        )
        layouts = tuple(reading.layout(task) for reading in readings)
        xs, reports = self.encoder(xs, layouts, noise)
        features = tuple(
            self._read(x_BLD, layout, reading) for x_BLD, layout, reading in zip(xs, layouts, readings, strict=True)
        )
        return features, reports

    def _read(self, x_BLD: Tensor, layout: SequenceLayout, reading: Reading) -> Tensor:
        rows_Q, positions_Q = reading.read_Q2[:, 0], reading.read_Q2[:, 1]
        if self.config.readout == "mean":
            valid_BL1 = layout.valid_BL.unsqueeze(-1)
            mean_BD = (self.output_norm(x_BLD) * valid_BL1).sum(dim=1) / valid_BL1.sum(dim=1)
            read_QD = mean_BD[rows_Q]
        else:
            read_QD = self.output_norm(x_BLD[rows_Q, positions_Q])
        return self._project(read_QD, reading.is_text) if reading.projected else read_QD.float()

    def read_last(self, x_BLD: Tensor, is_text: bool) -> Tensor:
        """Features [B, W] of sequences at their last position, not normalised. is_text: they begin with text."""
        return self._project(self.output_norm(x_BLD[:, -1]), is_text)

    def _project(self, read_QD: Tensor, is_text: bool) -> Tensor:
        kind = "shared" if "shared" in self.output else "text" if is_text else "visual"
        return self.output[kind](read_QD).float()
