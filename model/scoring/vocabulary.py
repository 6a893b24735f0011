"""Cross-entropy over a vocabulary without all logits at a time: those of some read-outs are made, used for loss and gradients, and let go.

The loss is a mean, so the gradient of every logit is known where the logit is: forward already sums those of read-outs and candidates,
and backward scales them. A chunk of logits becomes its own exponentials, softmax and gradient in place.
Legend: Q read-outs, q of a chunk, C candidates, c candidates of this tensor rank, W width of the compared features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.scoring.scores import best_of, parted
from parallel.collectives import Axis, maximum, total

MAX_LOGITS = 1 << 26
"""Of a chunk: 256 MiB."""


def vocabulary_loss(
    features_QW: Tensor,
    candidates_CW: Tensor,
    labels_Q: Tensor,
    scale: Tensor,
    axis: Axis,
    smoothing: float = 0.0,
    log_weights_C: Tensor | None = None,
    most: int = MAX_LOGITS,
) -> tuple[Tensor, Tensor]:
    """-> (mean over read-outs of -(1 - s) log p[label] - s mean_C(log p), best candidate of each read-out [Q]), as `Scores` gives them.

    log_weights: added to the logits. most: logits of a chunk. All arguments are the same on all ranks of the axis.
    """
    count = len(candidates_CW)
    features_QW, mine_cW, scale, start, axis = parted(features_QW, candidates_CW, scale, axis)
    mine_c = None if log_weights_C is None else log_weights_C[start : start + len(mine_cW)]
    rows = max(1, most // -(-count // axis.size))  # of the largest part, so that all ranks cut the same chunks
    found: tuple[Tensor, Tensor] = _Chunked.apply(
        features_QW, mine_cW, scale, labels_Q, mine_c, smoothing, (start, count, axis), rows
    )
    return found


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features_QW, mine_cW, scale, labels_Q, log_weights_c, smoothing, place, rows):
        learns = any(ctx.needs_input_grad)
        dfeatures_QW, dmine_cW = torch.empty_like(features_QW), torch.zeros_like(mine_cW)
        loss, best = features_QW.new_zeros(()), []
        for chunk in range(0, len(features_QW), rows):
            features_qW = features_QW[chunk : chunk + rows]
            logits_qc = features_qW * scale @ mine_cW.T
            if log_weights_c is not None:
                logits_qc += log_weights_c
            losses_q, best_q = _to_gradient(logits_qc, labels_Q[chunk : chunk + rows], smoothing, place)
            loss += losses_q.sum()
            best.append(best_q)
            if learns:
                torch.mm(logits_qc, mine_cW, out=dfeatures_QW[chunk : chunk + rows])
                dmine_cW.addmm_(logits_qc.T, features_qW)
            del logits_qc  # before there are others
        ctx.save_for_backward(features_QW, scale, dfeatures_QW, dmine_cW)
        best_Q = torch.cat(best)
        ctx.mark_non_differentiable(best_Q)
        return loss / len(features_QW), best_Q

    @staticmethod
    def backward(ctx, dloss, _):
        features_QW, scale, dfeatures_QW, dmine_cW = ctx.saved_tensors
        dloss = dloss / len(features_QW)
        factor = scale * dloss
        dscale = (features_QW * dfeatures_QW).sum() * dloss
        return dfeatures_QW * factor, dmine_cW * factor, dscale.view_as(scale), None, None, None, None, None


def _to_gradient(
    logits_qc: Tensor, labels_q: Tensor, smoothing: float, place: tuple[int, int, Axis]
) -> tuple[Tensor, Tensor]:
    """Turns logits into the gradients of their losses, p - (1 - s) [label] - s / C, in place -> (losses, best candidates)."""
    start, count, axis = place
    highest_q, place_q = logits_qc.max(dim=1)
    best_q, highest_q = best_of(highest_q, place_q, start, axis), maximum(highest_q, axis)
    label_q1 = labels_q[:, None] - start
    is_mine_q1 = (label_q1 >= 0) & (label_q1 < logits_qc.shape[1])
    label_q1 = label_q1.clamp(0, logits_qc.shape[1] - 1)
    wanted_q = (1 - smoothing) * (logits_qc.gather(1, label_q1) * is_mine_q1).squeeze(1)
    if smoothing:
        wanted_q += smoothing / count * logits_qc.sum(1)
    logits_qc.sub_(highest_q[:, None]).exp_()
    sum_q = total(logits_qc.sum(1), axis)
    logits_qc.div_(sum_q[:, None])
    if smoothing:
        logits_qc -= smoothing / count
    logits_qc.scatter_add_(1, label_q1, (smoothing - 1) * is_mine_q1)
    return sum_q.log() + highest_q - total(wanted_q, axis), best_q
