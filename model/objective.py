"""The one objective: every task is "which candidate does this read-out mean?" by scaled cosine similarity.

encode inputs, read out, project, normalise --> q [Q, W]
encode candidates, the same at their <SPE> --> c [C, W]      logits [Q, C] = min(exp(s), 100) q c^T
Candidates may be those of all data ranks, or of sets that ranks encode together (data/batch.py: Scope; model/shared_candidates.py);
features are then gathered with their gradient, whose sum over ranks is the gradient of the sum of the ranks' losses.
Legend: Q read-outs, C candidates, W width of the compared features, E experts, N decisions, M modalities.
Source: papers.md 1.1, 1.3, 1.5.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from data.batch import Modality, Scope, Sequences, TaskBatch
from model.config import ModelConfig
from model.encoder import recomputed
from model.moe.report import RoutingReport, nothing_routed
from model.moe.use import ExpertUse, added, stacked, unused
from model.noise import Key, derive, derive_own
from model.reading import Reading
from model.scoring.pairwise import sigmoid_loss
from model.scoring.scores import Scores, compare
from model.scoring.vocabulary import MAX_LOGITS, vocabulary_loss
from model.shared_candidates import shared_parts
from model.tower import Tower
from parallel.collectives import Axis, all_gather
from parallel.kernels import Kernels
from parallel.mesh import Mesh
from parallel.precision import exactly

MAX_LOGIT_SCALE = 100.0


class NotFiniteError(Exception):
    """The network answers with numbers that are not finite."""

    of_one_rank = True


@dataclasses.dataclass(frozen=True)
class Losses:
    """total: what is optimised, weights and auxiliary losses included. The rest is for reports, detached.

    loss          unweighted loss of the task
    correct       number of read-outs whose best candidate is the right one
    use           of the experts, by decision
    auxiliary     auxiliary losses by name, unweighted, summed over decisions
    """

    total: Tensor
    loss: Tensor
    correct: Tensor
    use: ExpertUse
    auxiliary: dict[str, Tensor]


class Objective(nn.Module):
    def __init__(self, config: ModelConfig, vocabulary_size: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.data, self.tensor = mesh.data, mesh.tensor
        self.tower = Tower(config, vocabulary_size, mesh, kernels)
        text = config.text_tower_config()
        self.text_tower = Tower(text, vocabulary_size, mesh, kernels) if text else None
        classes = config.head_classes
        self.head = nn.Linear(config.space_width, classes) if classes else None
        self.similarity_weight = nn.Parameter(torch.empty(1)) if classes else None
        # One element, not a scalar: DeepSpeed cannot broadcast a tensor without dimensions.
        self.log_scales = nn.ParameterDict({name: nn.Parameter(torch.empty(1)) for name in config.temperatures})
        self.logit_biases = nn.ParameterDict({name: nn.Parameter(torch.empty(1)) for name in config.logit_biases})

    def forward(self, batch: TaskBatch, noise: Key = None) -> Losses:
        """Inputs and candidates go through the encoder in one pass for every task, so that all ranks issue the same
        collectives whatever each drew."""
        own = () if batch.scope == Scope.SHARDED else (Reading.of_targets(batch.candidates),)
        parts = shared_parts(batch.shared, self.data, self.config.task_id, self.config.chunks)
        readings = (Reading(batch.inputs, batch.read_Q2, host_Q2=batch.read_host_Q2), *own, *parts.readings)
        (features_QW, *rest), reports = self._encode(readings, noise, batch.task)
        nothing = features_QW.new_zeros(())
        if batch.shared:
            shared_NRW = parts.gathered(rest[len(own) :])
            # In the graph on every rank, also where it is not needed: the gather's backward pass is a collective, too.
            nothing = 0 * shared_NRW.sum() if own else nothing
        own_CW = rest[0] if own else parts.of_set(shared_NRW, batch.own)
        candidates_CW, labels_Q = own_CW, batch.labels_Q
        if batch.scope == Scope.GLOBAL:
            candidates_CW = self._of_all_ranks(own_CW)
            labels_Q = labels_Q + self.data.rank * len(own_CW)
        compare_all = self._pairwise if batch.pairwise else self._softmax
        with exactly(features_QW.device):
            loss, best_Q = compare_all(batch, features_QW, own_CW, candidates_CW, labels_Q)
        auxiliary = _summed_up(reports)
        weights = self.config.experts.auxiliary
        extra = sum((getattr(weights, name) * value for name, value in auxiliary.items()), nothing)
        uses = [report.use for report in reports]
        return Losses(
            total=batch.weight * loss + extra,
            loss=loss.detach(),
            correct=(best_Q == labels_Q).sum(),
            use=stacked(uses) if uses else unused(self.config.experts.num_experts, len(Modality), loss.detach()),
            auxiliary={name: value.detach() for name, value in auxiliary.items()},
        )

    def _softmax(
        self, batch: TaskBatch, features_QW: Tensor, own_CW: Tensor, candidates_CW: Tensor, labels_Q: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy over candidates -> (loss, best candidate of each read-out [Q])."""
        if self._is_vocabulary(batch, features_QW, candidates_CW):
            scale, log_weights_C = self._scale(batch.temperature), batch.candidate_log_weights_C
            smoothing = batch.label_smoothing
            return vocabulary_loss(features_QW, candidates_CW, labels_Q, scale, self.tensor, smoothing, log_weights_C)
        scores = self._scores(features_QW, candidates_CW, batch.temperature, self.tensor)
        if batch.candidate_log_weights_C is not None:
            scores = scores.plus(batch.candidate_log_weights_C)
        alike_QC = self._alike_QC(batch)
        if alike_QC is not None:
            scores = scores.without(alike_QC)
        loss = scores.cross_entropy(labels_Q, batch.label_smoothing)
        if batch.second_labels_Q is not None:
            other = scores.cross_entropy(batch.second_labels_Q, batch.label_smoothing)
            loss = torch.lerp(loss, other, batch.second_share)
        if batch.symmetric:
            loss = loss + self._reverse(features_QW, own_CW, batch, alike_QC)
        return loss, scores.best_Q()

    def _pairwise(
        self, batch: TaskBatch, features_QW: Tensor, own_CW: Tensor, candidates_CW: Tensor, labels_Q: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A yes or no for every pair -> (loss, best candidate of each read-out [Q])."""
        alike_Q2 = alike_C2 = batch.alike_Q2
        if alike_C2 is not None and batch.scope == Scope.GLOBAL:
            alike_C2 = self._of_all_ranks(alike_C2)
        scale, bias = self._scale(batch.temperature), self.logit_biases[batch.temperature].float()
        return sigmoid_loss(features_QW, candidates_CW, labels_Q, scale, bias, alike_Q2, alike_C2)

    def encode(
        self,
        sequences: Sequences,
        read_Q2: Tensor,
        noise: Key = None,
        task: str | None = None,
        projected: bool = True,
    ) -> tuple[Tensor, tuple[RoutingReport, ...]]:
        """-> (features [Q, W] at the given (row, position) pairs, not normalised, routing reports); not projected: [Q, D], what the last
        LayerNorm gives."""
        (features_QW,), reports = self._encode((Reading(sequences, read_Q2, projected=projected),), noise, task)
        return features_QW, reports

    def encode_candidates(
        self, candidates: Sequences, noise: Key = None, task: str | None = None
    ) -> tuple[Tensor, tuple[RoutingReport, ...]]:
        """-> (features [C, W], read out at <SPE>, not normalised; routing reports)."""
        (features_CW,), reports = self._encode((Reading.of_targets(candidates),), noise, task)
        return features_CW, reports

    def logits(self, features_QW: Tensor, candidates_CW: Tensor, temperature: str) -> Tensor:
        """Scaled cosine [Q, C] in fp32 of all candidates, and the linear head where there is one."""
        return self._scores(features_QW, candidates_CW, temperature, Axis("one")).logits_Qc

    def _scores(self, features_QW: Tensor, candidates_CW: Tensor, temperature: str, axis: Axis) -> Scores:
        scores = compare(features_QW, candidates_CW, self._scale(temperature), axis)
        if self.head is None:
            return scores
        assert self.similarity_weight is not None
        return scores.times(self.similarity_weight).plus(self.head(features_QW.to(self.head.weight.dtype)))

    def _is_vocabulary(self, batch: TaskBatch, features_QW: Tensor, candidates_CW: Tensor) -> bool:
        """Too many logits to hold, and one answer each."""
        plain = self.head is None and batch.alike_Q2 is None and batch.second_labels_Q is None and not batch.symmetric
        return plain and len(features_QW) * len(candidates_CW) > self.tensor.size * MAX_LOGITS

    def _scale(self, temperature: str) -> Tensor:
        """At the cap the scale gets no gradient, as in the public code."""
        return self.log_scales[temperature].float().exp().clamp(max=MAX_LOGIT_SCALE)

    def _alike_QC(self, batch: TaskBatch) -> Tensor | None:
        """Which candidates are no wrong answers to which rows, since one of their sides is the row's own; never the right one. Pairs
        have one order on both sides, so the same holds the other way round."""
        own_Q2, first = batch.alike_Q2, 0
        if own_Q2 is None:
            return None
        of_all_C2 = own_Q2
        if batch.scope == Scope.GLOBAL:
            of_all_C2, first = self._of_all_ranks(own_Q2), self.data.rank * len(own_Q2)
        rows_Q, rows_C = (torch.arange(len(x), device=x.device) for x in (own_Q2, of_all_C2))
        alike_QC = (own_Q2[:, None] == of_all_C2[None]).any(dim=2)
        return alike_QC & (rows_Q[:, None] + first != rows_C[None])

    def _reverse(self, features_QW: Tensor, own_CW: Tensor, batch: TaskBatch, alike_QC: Tensor | None) -> Tensor:
        """The other direction of a symmetric loss: which read-out does each candidate of this batch mean?"""
        back_C = torch.empty_like(batch.labels_Q)
        back_C[batch.labels_Q] = torch.arange(len(back_C), device=back_C.device)
        if batch.scope == Scope.GLOBAL:
            back_C = back_C + self.data.rank * len(features_QW)
            features_QW = self._of_all_ranks(features_QW)
        scores = compare(own_CW, features_QW, self._scale(batch.temperature), self.tensor)
        if alike_QC is not None:
            scores = scores.without(alike_QC)
        return scores.cross_entropy(back_C, batch.label_smoothing)

    def _of_all_ranks(self, features_QW: Tensor) -> Tensor:
        return all_gather(features_QW, self.data).flatten(0, 1)

    def _encode(
        self, readings: tuple[Reading, ...], noise: Key, task: str | None
    ) -> tuple[tuple[Tensor, ...], tuple[RoutingReport, ...]]:
        """In `chunks` parts, of which only the features stay in memory (BASIC's contrastive batches, exact gradient)."""
        task_id = self.config.task_id(task)
        chunks = self.config.chunks if torch.is_grad_enabled() else 1
        if chunks == 1:
            return self._encode_part(readings, noise, task_id)
        parts, all_reports = [], []
        for index in range(chunks):
            part = tuple(reading.chunk(index, chunks) for reading in readings)
            features, reports = recomputed(self._encode_part)(part, derive_own(noise, "chunk", index), task_id)
            parts.append(features)
            all_reports.append(reports)
        joined = tuple(torch.cat(of_one) for of_one in zip(*parts, strict=True))
        return joined, tuple(_mean_report(of_one) for of_one in zip(*all_reports, strict=True))

    def _encode_part(
        self, readings: tuple[Reading, ...], noise: Key, task_id: int
    ) -> tuple[tuple[Tensor, ...], tuple[RoutingReport, ...]]:
        if self.text_tower is None:
            return self.tower(readings, noise, task_id)
        features: dict[int, Tensor] = {}
        all_reports: tuple[RoutingReport, ...] = ()
        for name, tower, is_text in (("visual", self.tower, False), ("text", self.text_tower, True)):
            mine = [index for index, reading in enumerate(readings) if reading.is_text == is_text]
            if mine:
                found, reports = tower(tuple(readings[i] for i in mine), derive(noise, name), task_id)
                features |= dict(zip(mine, found, strict=True))
                all_reports += reports
            else:  # figures of decisions stand in the order of both towers
                all_reports += nothing_routed(tower.config, self.tower.embedding.text_type.device)
        return tuple(features[index] for index in range(len(readings))), all_reports


def _summed_up(reports: tuple[RoutingReport, ...]) -> dict[str, Tensor]:
    """Auxiliary losses of all decisions by name, unweighted."""
    names = sorted({name for report in reports for name in report.losses})
    return {name: torch.stack([r.losses[name] for r in reports if name in r.losses]).sum() for name in names}


def _mean_report(reports: tuple[RoutingReport, ...]) -> RoutingReport:
    """Reports of the same decision over the chunks of a batch: counts add up, losses are averaged."""
    return RoutingReport(
        use=added([r.use for r in reports]),
        losses={name: torch.stack([r.losses[name] for r in reports]).mean() for name in reports[0].losses},
    )
