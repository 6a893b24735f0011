"""The sigmoid loss of pairs (SigLIP, arXiv 2303.15343): every read-out and candidate is a yes or a no of its own.

loss = -1 / Q sum_qc log sigmoid(s_qc (scale cos_qc + bias)),   s = 1 for the right pair and -1 for the others
Its sum over data ranks covers every pair once, so there is no other direction, and no softmax that would need all logits together: they
are made for a part of the candidates at a time and made again for the gradient.
Legend: Q read-outs, C candidates, c candidates of a part, W width of the compared features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize
from torch.utils.checkpoint import checkpoint

PART = 1024
"""Candidates whose logits are held at a time."""


def sigmoid_loss(
    features_QW: Tensor,
    candidates_CW: Tensor,
    labels_Q: Tensor,
    scale: Tensor,
    bias: Tensor,
    alike_Q2: Tensor | None = None,
    alike_C2: Tensor | None = None,
    part: int = PART,
) -> tuple[Tensor, Tensor]:
    """-> (loss, best candidate of each read-out [Q]).

    alike_Q2, alike_C2: numbers of both sides of the rows (data/batch.py); pairs that share one and are not the right one do not count.
    """
    features_QW, candidates_CW = normalize(features_QW, dim=-1), normalize(candidates_CW, dim=-1)
    total = features_QW.new_zeros(())
    best = torch.full_like(features_QW[:, 0], -torch.inf)
    best_Q = torch.zeros_like(labels_Q)
    for start in range(0, len(candidates_CW), part):
        part_cW = candidates_CW[start : start + part]
        alike_c2 = None if alike_C2 is None else alike_C2[start : start + part]
        losses, value_Q, place_Q = checkpoint(
            _part,
            features_QW,
            part_cW,
            labels_Q - start,
            alike_Q2,
            alike_c2,
            scale,
            bias,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        total = total + losses
        best_Q = torch.where(value_Q > best, place_Q + start, best_Q)
        best = torch.maximum(best, value_Q)
    return total / len(features_QW), best_Q


def _part(
    features_QW: Tensor,
    part_cW: Tensor,
    places_Q: Tensor,
    alike_Q2: Tensor | None,
    alike_c2: Tensor | None,
    scale: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> (sum of losses, highest logit of each read-out, its place in the part). Nothing of [Q, c] comes from outside: what a checkpoint is
    given is kept for the gradient, and all parts together would be [Q, C]."""
    logits_Qc = scale * features_QW @ part_cW.T + bias
    right_Qc = places_Q[:, None] == torch.arange(len(part_cW), device=places_Q.device)
    losses_Qc = -logsigmoid(torch.where(right_Qc, logits_Qc, -logits_Qc))
    if alike_Q2 is not None and alike_c2 is not None:
        left_out_Qc = (alike_Q2[:, None] == alike_c2[None]).any(dim=2) & ~right_Qc
        losses_Qc = losses_Qc.masked_fill(left_out_Qc, 0.0)
        logits_Qc = logits_Qc.masked_fill(left_out_Qc, -torch.inf)
    value_Q, place_Q = logits_Qc.detach().max(dim=1)
    return losses_Qc.sum(), value_Q, place_Q
