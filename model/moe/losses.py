"""Auxiliary losses on router probabilities: pure functions, unweighted.

Legend: T tokens, E experts, G routing groups. V-MoE computes its losses a routing group and averages over groups
(papers.md 3.5); `group_T` numbers each token's group, None where there is one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def importance(probs_TE: Tensor, group_T: Tensor | None, num_groups: int) -> Tensor:
    """(std / mean)^2 over experts of the summed noise-free probabilities, population std."""
    return _squared_variation(_sum_by_group(probs_TE, group_T, num_groups)).mean()


def load(
    logits_TE: Tensor, noisy_logits_TE: Tensor, k: int, noise_std: float, group_T: Tensor | None, num_groups: int
) -> Tensor:
    """(std / mean)^2 over experts of the chance that another draw of the noise keeps the expert among the top k.

    `noise_std` is the standard deviation of the noise on the logits. The threshold is the k-th largest noisy logit.
    """
    threshold_T1 = torch.topk(noisy_logits_TE, k, dim=-1).values[:, -1:]
    chance_TE = 0.5 * torch.erfc((threshold_T1 - logits_TE) / (noise_std * math.sqrt(2.0)))
    return _squared_variation(_sum_by_group(chance_TE, group_T, num_groups)).mean()


def z_loss(logits_TE: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the logits (ST-MoE)."""
    return torch.logsumexp(logits_TE, dim=-1).square().mean() if logits_TE.shape[0] else logits_TE.sum()


def switch(probs_TE: Tensor, first_choice_T: Tensor, group_T: Tensor | None, num_groups: int) -> Tensor:
    """E * sum_e (share of tokens whose first choice is e) * (mean probability of e): 1 when balanced.

    Switch computes it over the batch, GShard a group (its E^2 * mean over experts is the same number).
    """
    num_experts = probs_TE.shape[1]
    tokens_G1 = _sum_by_group(torch.ones_like(probs_TE[:, :1]), group_T, num_groups).clamp(min=1)
    chosen_TE = torch.nn.functional.one_hot(first_choice_T, num_experts).to(probs_TE)
    share_GE = _sum_by_group(chosen_TE, group_T, num_groups) / tokens_G1
    mean_GE = _sum_by_group(probs_TE, group_T, num_groups) / tokens_G1
    return num_experts * (share_GE * mean_GE).sum(dim=1).mean()


def local_entropy(probs_TE: Tensor, mask_T: Tensor) -> Tensor:
    """Mean entropy in nats of the masked tokens' probabilities; 0 without such tokens (LIMoE, papers.md 4.2)."""
    return (_entropy(probs_TE) * mask_T).sum() / mask_T.sum().clamp(min=1)


def global_entropy(probs_TE: Tensor, mask_T: Tensor, threshold: float) -> Tensor:
    """max(0, threshold - H(mean probability of the masked tokens)), H in nats; 0 without such tokens (LIMoE).

    With threshold = log S it is 0 once the modality uses the equivalent of S experts.
    """
    mean_E = (probs_TE * mask_T[:, None]).sum(dim=0) / mask_T.sum().clamp(min=1)
    return (threshold - _entropy(mean_E)).clamp(min=0.0) * mask_T.any()


def _entropy(probs_XE: Tensor) -> Tensor:
    """In nats. The clamp keeps the gradient of a probability that underflowed to 0 finite."""
    return -(probs_XE * probs_XE.clamp_min(1e-30).log()).sum(dim=-1)


def _sum_by_group(values_TE: Tensor, group_T: Tensor | None, num_groups: int) -> Tensor:
    if group_T is None:
        return values_TE.sum(dim=0, keepdim=True)
    return values_TE.new_zeros(num_groups, values_TE.shape[1]).index_add(0, group_T, values_TE)


def _squared_variation(total_GE: Tensor) -> Tensor:
    """A group without tokens counts as balanced."""
    return total_GE.var(dim=1, unbiased=False) / total_GE.mean(dim=1).square().clamp_min(1e-18)
