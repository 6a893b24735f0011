"""A tower: embedding, encoder, read-out and projection. One serves every modality; text may have one of its own.

Legend: T tokens of a pass, Q read-outs, D width, W width of the space in which inputs and candidates are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.batch import Sequences
from model.config import ModelConfig
from model.embedding import Embedding
from model.encoder import Encoder
from model.layout import PassLayout, SequenceLayout, layout_of
from model.moe.report import RoutingReport
from model.noise import Key, Keys, both, derive
from model.reading import Reading, read_tokens
from parallel.kernels import Kernels
from parallel.mesh import Mesh
from parallel.precision import is_lowering


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
        embedded_TD = self.embedding.of_pass(sequences, layout.sequences)
        if self.config.readout == "mean":
            x_TD, reports = self.encoder(embedded_TD, layout)
            each = zip(layout.each(x_TD), layout.sequences, readings, strict=True)
            all_read = tuple(self._mean(x_SD, of_one, reading) for x_SD, of_one, reading in each)
        else:
            reads = read_tokens(readings, layout.sequences)
            x_RD, reports = self.encoder(embedded_TD, layout, reads)
            all_read = reads.of_each(self.output_norm(x_RD))
        pairs = zip(all_read, readings, strict=True)
        return tuple(self._features(read_QD, reading) for read_QD, reading in pairs), reports

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
                    packs=self.encoder.packs and is_lowering(reading.read_Q2.device),  # it takes no fp32
                    task=task if reading.task is None else reading.task,
                    is_target=reading.is_target,
                    noise=key,
                    rows_B=reading.rows_B,
                )
            )
        return PassLayout(tuple(found))

    def _mean(self, x_SD: Tensor, layout: SequenceLayout, reading: Reading) -> Tensor:
        """Over the S tokens of each row."""
        placed_BLD = layout.placed(self.output_norm(x_SD))
        lengths_B1 = layout.placed(torch.ones_like(x_SD[:, :1])).sum(dim=1)
        return (placed_BLD.sum(dim=1) / lengths_B1)[reading.read_Q2[:, 0]]

    def _features(self, read_QD: Tensor, reading: Reading) -> Tensor:
        return self._project(read_QD, reading.is_text) if reading.projected else read_QD.float()

    def read_last(self, x_BLD: Tensor, is_text: bool) -> Tensor:
        """Features [B, W] of sequences at their last position, not normalised. is_text: they begin with text."""
        return self._project(self.output_norm(x_BLD[:, -1]), is_text)

    def _project(self, read_QD: Tensor, is_text: bool) -> Tensor:
        kind = "shared" if "shared" in self.output else "text" if is_text else "visual"
        return self.output[kind](read_QD).float()
