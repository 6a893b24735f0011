"""How alike read-outs and candidates are, and the cross-entropy over candidates.

Tensor ranks hold the same features; each scores a part of the candidates, and the softmax is put together from one number per
read-out and rank. On one rank the part is the whole.
Legend: Q read-outs, C candidates, c candidates of this tensor rank, W width of the compared features.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from parallel.collectives import Axis, copy_to_axis, gathered, maximum, reduce_from_axis


@dataclasses.dataclass(frozen=True)
class Scores:
    """Logits [Q, c] of candidates start ... start + c - 1 of `total`; the other ranks of the axis have the others."""

    logits_Qc: Tensor
    start: int
    total: int
    axis: Axis

    def plus(self, addend: Tensor) -> Scores:
        """With [C] or [Q, C] added, which all ranks of the axis hold."""
        mine = copy_to_axis(addend, self.axis)[..., self.start : self.start + self.logits_Qc.shape[1]]
        return dataclasses.replace(self, logits_Qc=self.logits_Qc + mine)

    def times(self, factor: Tensor) -> Scores:
        return dataclasses.replace(self, logits_Qc=self.logits_Qc * copy_to_axis(factor, self.axis))

    def cross_entropy(self, labels_Q: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean over read-outs of -(1 - s) log p[label] - s mean_C(log p), the same scalar on all ranks of the axis."""
        if self.axis.size == 1:  # torch's own rounds less
            return cross_entropy(self.logits_Qc, labels_Q, label_smoothing=smoothing)
        sum_Q = self.logits_Qc.logsumexp(dim=1)
        highest_Q = maximum(sum_Q, self.axis)
        log_sum_Q = reduce_from_axis((sum_Q - highest_Q).exp(), self.axis).log() + highest_Q
        place_Q = labels_Q - self.start
        last = self.logits_Qc.shape[1] - 1
        found_Q = self.logits_Qc.gather(1, place_Q.clamp(0, last)[:, None]).squeeze(1)
        wanted_Q = (1 - smoothing) * found_Q * ((place_Q >= 0) & (place_Q <= last))
        if smoothing:
            wanted_Q = wanted_Q + smoothing / self.total * self.logits_Qc.sum(dim=1)
        return (log_sum_Q - reduce_from_axis(wanted_Q, self.axis)).mean()

    def best_Q(self) -> Tensor:
        """The likeliest candidate of each read-out, the first of equal ones."""
        value_Q, place_Q = self.logits_Qc.detach().max(dim=1)
        if self.axis.size == 1:
            return place_Q
        values_RQ, places_RQ = gathered(value_Q, self.axis), gathered(place_Q + self.start, self.axis)
        return places_RQ.gather(0, values_RQ.argmax(dim=0, keepdim=True)).squeeze(0)


def compare(features_QW: Tensor, candidates_CW: Tensor, scale: Tensor, axis: Axis) -> Scores:
    """Scaled cosine in fp32 (papers.md 1.3). All arguments are the same on all ranks of the axis."""
    total = candidates_CW.shape[0]
    if total < axis.size:  # a rank without a candidate would have an empty softmax: each scores them all
        axis = Axis(axis.name)
    start, end = (total * rank // axis.size for rank in (axis.rank, axis.rank + 1))
    features_QW = copy_to_axis(normalize(features_QW, dim=-1), axis)
    mine_cW = copy_to_axis(normalize(candidates_CW, dim=-1), axis)[start:end]
    return Scores(copy_to_axis(scale, axis) * features_QW @ mine_cW.T, start, total, axis)
