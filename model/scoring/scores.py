"""How alike read-outs and candidates are, and the cross-entropy over candidates.

Tensor ranks hold the same features; each scores a part of the candidates, and the softmax is put together from one number per
read-out and rank. On one rank the part is the whole.
Legend: Q read-outs, C candidates, c candidates of this tensor rank, W width of the compared features.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from parallel.collectives import Axis, copy_to_axis, gathered, maximum, reduce_from_axis, total

LEFT_OUT = -1e9
"""Beside logits of 100 at most it adds exactly nothing to a softmax, and unlike -inf it makes no NaN where a rank has nothing else."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Logits [Q, c] of candidates start ... start + c - 1 of `total`; the other ranks of the axis have the others.

    excluded_Qc    candidates that a read-out is not compared with; their logits are LEFT_OUT. Never the right one
    """

    logits_Qc: Tensor
    start: int
    total: int
    axis: Axis
    excluded_Qc: Tensor | None = None

    def plus(self, addend: Tensor) -> Scores:
        """With [C] or [Q, C] added, which all ranks of the axis hold."""
        assert addend.shape[-1] == self.total, f"{addend.shape[-1]} numbers for {self.total} candidates"
        mine = copy_to_axis(addend, self.axis)[..., self.start : self.start + self.logits_Qc.shape[1]]
        return dataclasses.replace(self, logits_Qc=self.logits_Qc + mine)

    def times(self, factor: Tensor) -> Scores:
        return dataclasses.replace(self, logits_Qc=self.logits_Qc * copy_to_axis(factor, self.axis))

    def without(self, excluded_QC: Tensor) -> Scores:
        """Some candidates of some read-outs left out; the same [Q, C] on all ranks of the axis. The last thing to be done to scores."""
        mine_Qc = excluded_QC[:, self.start : self.start + self.logits_Qc.shape[1]]
        return dataclasses.replace(self, logits_Qc=self.logits_Qc.masked_fill(mine_Qc, LEFT_OUT), excluded_Qc=mine_Qc)

    def cross_entropy(self, labels_Q: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean over read-outs of -(1 - s) log p[label] - s mean_C(log p), the same scalar on all ranks of the axis. Candidates that are
        left out are in neither."""
        if self.axis.size == 1 and not (smoothing and self.excluded_Qc is not None):  # torch's own rounds less
            return cross_entropy(self.logits_Qc, labels_Q, label_smoothing=smoothing)
        sum_Q = self.logits_Qc.logsumexp(dim=1)
        highest_Q = maximum(sum_Q, self.axis)
        log_sum_Q = reduce_from_axis((sum_Q - highest_Q).exp(), self.axis).log() + highest_Q
        place_Q = labels_Q - self.start
        last = self.logits_Qc.shape[1] - 1
        found_Q = self.logits_Qc.gather(1, place_Q.clamp(0, last)[:, None]).squeeze(1)
        wanted_Q = (1 - smoothing) * found_Q * ((place_Q >= 0) & (place_Q <= last))
        if smoothing:
            wanted_Q = wanted_Q + smoothing * self._sum_of_compared_Q() / self._num_compared_Q()
        return (log_sum_Q - reduce_from_axis(wanted_Q, self.axis)).mean()

    def _sum_of_compared_Q(self) -> Tensor:
        """Of the logits of this rank's candidates."""
        if self.excluded_Qc is None:
            return self.logits_Qc.sum(dim=1)
        return self.logits_Qc.masked_fill(self.excluded_Qc, 0.0).sum(dim=1)

    def _num_compared_Q(self) -> Tensor | int:
        """Candidates of all ranks."""
        if self.excluded_Qc is None:
            return self.total
        return self.total - total(self.excluded_Qc.sum(dim=1), self.axis)

    def best_Q(self) -> Tensor:
        """The likeliest candidate of each read-out, the first of equal ones."""
        return best_of(*self.logits_Qc.detach().max(dim=1), self.start, self.axis)


def compare(features_QW: Tensor, candidates_CW: Tensor, scale: Tensor, axis: Axis) -> Scores:
    """Scaled cosine in fp32 (papers.md 1.3). All arguments are the same on all ranks of the axis."""
    count = len(candidates_CW)
    features_QW, mine_cW, scale, start, axis = parted(features_QW, candidates_CW, scale, axis)
    return Scores(scale * features_QW @ mine_cW.T, start, count, axis)


def parted(
    features_QW: Tensor, candidates_CW: Tensor, scale: Tensor, axis: Axis
) -> tuple[Tensor, Tensor, Tensor, int, Axis]:
    """-> (normalised read-outs, this rank's normalised candidates, scale, number of the first of them, axis); gradients of what all ranks
    have are summed over them."""
    count = len(candidates_CW)
    if count < axis.size:  # a rank without a candidate would have an empty softmax: each scores them all
        axis = Axis(axis.name)
    start, end = (count * rank // axis.size for rank in (axis.rank, axis.rank + 1))
    features_QW = copy_to_axis(normalize(features_QW, dim=-1), axis)
    mine_cW = copy_to_axis(normalize(candidates_CW, dim=-1), axis)[start:end]
    return features_QW, mine_cW, copy_to_axis(scale, axis), start, axis


def best_of(value_Q: Tensor, place_Q: Tensor, start: int, axis: Axis) -> Tensor:
    """The likeliest candidate of each read-out from each rank's own likeliest, the first of equal ones."""
    if axis.size == 1:
        return place_Q
    values_RQ, places_RQ = gathered(value_Q, axis), gathered(place_Q + start, axis)
    return places_RQ.gather(0, values_RQ.argmax(dim=0, keepdim=True)).squeeze(0)
