"""The one objective: every task is "which candidate does this read-out mean?" by scaled cosine similarity.

encode inputs, read out --project, normalise--> q [Q, D]
encode candidates, read out at <SPE> --------> c [C, D]      logits [Q, C] = min(exp(s), 100) q c^T
Legend: Q read-outs, C candidates, B rows, L positions, D width, E experts. Source: papers.md 1.1, 1.3, 1.5.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from data.batch import Sequences, TaskBatch
from model.config import ModelConfig
from model.embedding import Embedding
from model.encoder import Encoder
from model.layout import layout_of
from model.moe.layer import RoutingReport
from model.noise import Key, derive
from parallel.kernels import Kernels
from parallel.mesh import Mesh

MAX_LOGIT_SCALE = 100.0


@dataclasses.dataclass(frozen=True)
class Losses:
    """total: what is optimised, weights and auxiliary losses included. The rest is for reports, detached.

    loss        unweighted loss of the task
    correct     number of read-outs whose best candidate is the right one
    load_ME     expert load of each decision of the input pass, [M, E]
    """

    total: Tensor
    loss: Tensor
    correct: Tensor
    load_ME: Tensor


class Objective(nn.Module):
    def __init__(self, config: ModelConfig, vocabulary_size: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config, vocabulary_size, mesh, kernels)
        self.encoder = Encoder(config, mesh, kernels)
        self.output_norm = kernels.layer_norm(config.width)
        self.output = nn.Linear(config.width, config.width)
        # One element, not a scalar: DeepSpeed cannot broadcast a tensor without dimensions.
        self.log_scales = nn.ParameterDict({name: nn.Parameter(torch.empty(1)) for name in config.temperatures})

    def forward(self, batch: TaskBatch, noise: Key = None) -> Losses:
        """Two encoder passes for every task, so that all ranks issue the same collectives whatever each drew."""
        features_QD, routing = self.encode(batch.inputs, batch.read_Q2, derive(noise, "inputs"))
        candidates_CD, more_routing = self.encode_candidates(batch.candidates, derive(noise, "candidates"))
        logits_QC = self.logits(features_QD, candidates_CD, batch.temperature)
        if batch.candidate_log_weights_C is not None:
            logits_QC = logits_QC + batch.candidate_log_weights_C
        loss = cross_entropy(logits_QC, batch.labels_Q, label_smoothing=batch.label_smoothing)
        if batch.symmetric:
            back_Q = torch.empty_like(batch.labels_Q)
            back_Q[batch.labels_Q] = torch.arange(back_Q.shape[0], device=back_Q.device)
            loss = loss + cross_entropy(logits_QC.T, back_Q, label_smoothing=batch.label_smoothing)
        auxiliary = sum((report.loss for report in routing + more_routing), loss.new_zeros(()))
        empty = loss.new_zeros(0, self.config.experts.num_experts)
        return Losses(
            total=batch.weight * loss + auxiliary,
            loss=loss.detach(),
            correct=(logits_QC.detach().argmax(dim=1) == batch.labels_Q).sum(),
            load_ME=torch.stack([report.load_E for report in routing]) if routing else empty,
        )

    def encode(
        self, sequences: Sequences, read_Q2: Tensor, noise: Key = None
    ) -> tuple[Tensor, tuple[RoutingReport, ...]]:
        """-> (unit features [Q, D] at the given (row, position) pairs, routing reports)."""
        x_BLD, routing = self.encoder(
            self.embedding(sequences, derive(noise, "embedding")), layout_of(sequences), noise
        )
        read_QD = x_BLD[read_Q2[:, 0], read_Q2[:, 1]]
        features_QD = self.output(self.output_norm(read_QD)).float()
        return normalize(features_QD, dim=-1), routing

    def encode_candidates(self, candidates: Sequences, noise: Key = None) -> tuple[Tensor, tuple[RoutingReport, ...]]:
        """-> (unit features [C, D], read out at <SPE>; routing reports)."""
        rows_C = torch.arange(candidates.num_rows, device=candidates.segments[0].valid_BL.device)
        return self.encode(candidates, torch.stack([rows_C, torch.zeros_like(rows_C)], dim=1), noise)

    def logits(self, features_QD: Tensor, candidates_CD: Tensor, temperature: str) -> Tensor:
        """Scaled cosine [Q, C] in fp32; at the cap the scale gets no gradient, as in the public code."""
        scale = self.log_scales[temperature].float().exp().clamp(max=MAX_LOGIT_SCALE)
        return scale * features_QD @ candidates_CD.T
