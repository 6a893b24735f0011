"""A tower: embedding, encoder, read-out and projection. One serves every modality; text may have one of its own.

Legend: T tokens of a pass, Q read-outs, D width, W width of the space in which inputs and candidates are compared.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from data.batch import Modality, Sequences
from model.config import ModelConfig
from model.embedding import Embedding
from model.encoder import Encoder
from model.layout import PassLayout, SequenceLayout, layout_of
from model.moe.report import RoutingReport
from model.noise import Key, Keys, both, derive
from parallel.kernels import Kernels
from parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Reading:
    """Sequences and where to read them: read_Q2 holds (row, position) pairs, sorted by row. projected: features are those of the space in
    which inputs and candidates are compared, and not the encoder's own, normalised by its last LayerNorm. rows_Q: the rows, on the host,
    where they are known there. task, rows_B: of candidates that data ranks encode together, their own task and the numbers of their rows,
    by which they draw noise."""

    sequences: Sequences
    read_Q2: Tensor
    is_target: bool = False
    projected: bool = True
    rows_Q: np.ndarray | None = None
    task: int | None = None
    rows_B: Tensor | None = None

    @classmethod
    def of_targets(cls, sequences: Sequences, task: int | None = None, rows_B: Tensor | None = None) -> Reading:
        """Candidates, every row read at its <SPE> token."""
        row_C = torch.arange(sequences.num_rows, device=sequences.segments[0].valid_BL.device)
        read_C2 = torch.stack([row_C, torch.zeros_like(row_C)], dim=1)
        rows_Q = np.arange(sequences.num_rows)
        return cls(sequences, read_C2, is_target=True, rows_Q=rows_Q, task=task, rows_B=rows_B)

    @property
    def is_text(self) -> bool:
        return self.sequences.segments[0].modality == Modality.TEXT

    def chunk(self, index: int, count: int) -> Reading:
        """The index-th of `count` parts, cut between rows."""
        rows = self.sequences.num_rows
        if rows < count:
            raise ValueError(f"model.chunks={count} is more than the {rows} rows of a batch: lower it")
        start, end = rows * index // count, rows * (index + 1) // count
        part = self.sequences.rows(slice(start, end))
        rows_Q = self.read_Q2[:, 0].cpu().numpy() if self.rows_Q is None else self.rows_Q
        first, last = (int(np.searchsorted(rows_Q, row)) for row in (start, end))
        row_Q, place_Q = self.read_Q2[first:last].unbind(1)
        read_Q2 = torch.stack([row_Q - start, place_Q], dim=1)
        rows_B = None if self.rows_B is None else self.rows_B[start:end]
        rows_Q = rows_Q[first:last] - start
        return dataclasses.replace(self, sequences=part, read_Q2=read_Q2, rows_Q=rows_Q, rows_B=rows_B)


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
        self, readings: tuple[Reading, ...], noise: int | Keys | None, task: int
    ) -> tuple[tuple[Tensor, ...], tuple[RoutingReport, ...]]:
        """-> (features [Q, W] of each reading in fp32, not normalised, routing reports of all together)."""
        sequences = tuple(reading.sequences.located() for reading in readings)
        layout = self._layout(sequences, readings, both(noise), task)
        x_TD, reports = self.encoder(self.embedding.of_pass(sequences, layout.sequences), layout)
        features = tuple(
            self._read(x_TD, of_one, reading) for of_one, reading in zip(layout.sequences, readings, strict=True)
        )
        return features, reports

    def _layout(
        self, sequences: tuple[Sequences, ...], readings: tuple[Reading, ...], noise: Keys | None, task: int
    ) -> PassLayout:
        found: list[SequenceLayout] = []
        for index, (located, reading) in enumerate(zip(sequences, readings, strict=True)):
            key: Key = None
            if noise is not None:
                key = derive(noise.own, "sequences", index) if reading.rows_B is None else noise.shared
            found.append(
                layout_of(
                    located,
                    start=found[-1].end if found else 0,
                    by_group=self.encoder.merges,
                    task=task if reading.task is None else reading.task,
                    is_target=reading.is_target,
                    noise=key,
                    rows_B=reading.rows_B,
                )
            )
        return PassLayout(tuple(found))

    def _read(self, x_TD: Tensor, layout: SequenceLayout, reading: Reading) -> Tensor:
        row_Q, place_Q = reading.read_Q2.unbind(1)
        if self.config.readout == "mean":
            placed_BLD = layout.placed(self.output_norm(x_TD[layout.start : layout.end]))
            lengths_B1 = layout.placed(torch.ones_like(x_TD[layout.start : layout.end, :1])).sum(dim=1)
            read_QD = (placed_BLD.sum(dim=1) / lengths_B1)[row_Q]
        else:
            read_QD = self.output_norm(x_TD[layout.tokens_at(row_Q * layout.tokens.length + place_Q)])
        return self._project(read_QD, reading.is_text) if reading.projected else read_QD.float()

    def read_last(self, x_BLD: Tensor, is_text: bool) -> Tensor:
        """Features [B, W] of sequences at their last position, not normalised. is_text: they begin with text."""
        return self._project(self.output_norm(x_BLD[:, -1]), is_text)

    def _project(self, read_QD: Tensor, is_text: bool) -> Tensor:
        kind = "shared" if "shared" in self.output else "text" if is_text else "visual"
        return self.output[kind](read_QD).float()
