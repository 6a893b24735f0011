"""Auxiliary losses on router probabilities: pure functions, unweighted.

Legend: T tokens, E experts, G routing groups, M modalities. V-MoE computes its losses a routing group and averages over groups
(papers.md 3.5); `group_T` numbers each token's group, None where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.moe.config import ExpertConfig
from parallel.precision import exact_linear


def auxiliary_losses(
    config: ExpertConfig,
    logits_TE: Tensor,
    noisy_TE: Tensor,
    ids_TK: Tensor,
    share_T2: Tensor | None,
    group_T: Tensor | None,
    num_groups: int,
) -> tuple[Tensor, ...]:
    """Those that have a weight, in the order of AuxiliaryConfig.names. share_T2: of text and of visual tokens, for LIMoE's."""
    weights = config.auxiliary
    found: list[Tensor] = []
    probs_TE = logits_TE.softmax(dim=-1)
    if weights.importance:
        found.append(importance(probs_TE, group_T, num_groups))
    if weights.load:
        std = config.noise_std / config.num_experts
        found.append(load(logits_TE, noisy_TE, config.top_k, std, group_T, num_groups))
    if weights.z:
        found.append(z_loss(logits_TE))
    if weights.switch:
        found.append(switch(probs_TE, ids_TK[:, 0], group_T, num_groups))
    if weights.local_text or weights.local_visual:
        assert share_T2 is not None
        text, visual = local_entropy(probs_TE, share_T2).unbind()
        found += [text] * bool(weights.local_text) + [visual] * bool(weights.local_visual)
    if weights.global_text or weights.global_visual:
        assert share_T2 is not None
        thresholds = (math.log(weights.experts_text), math.log(weights.experts_visual))
        text, visual = global_entropy(probs_TE, share_T2, thresholds)
        found += [text] * bool(weights.global_text) + [visual] * bool(weights.global_visual)
    return tuple(found)


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


def local_entropy(probs_TE: Tensor, share_TM: Tensor) -> Tensor:
    """[M]: mean entropy in nats of each modality's tokens, which have a share of it each; 0 without such tokens (LIMoE, papers.md 4.2)."""
    return (share_TM * _entropy(probs_TE)[:, None]).sum(dim=0)


def global_entropy(probs_TE: Tensor, share_TM: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, ...]:
    """Of each modality max(0, threshold - H(mean probability of its tokens)), H in nats; 0 without such tokens (LIMoE).

    With threshold = log S it is 0 once the modality uses the equivalent of S experts.
    """
    mean_ME = (share_TM[:, :, None] * probs_TE[:, None]).sum(dim=0)
    is_there_M = share_TM.any(dim=0)
    below = zip(thresholds, _entropy(mean_ME).unbind(), is_there_M.unbind(), strict=True)
    return tuple((threshold - entropy).clamp(min=0.0) * is_there for threshold, entropy, is_there in below)


def _entropy(probs_XE: Tensor) -> Tensor:
    """In nats. The clamp keeps the gradient of a probability that underflowed to 0 finite."""
    return torch.special.entr(probs_XE.clamp_min(1e-30)).sum(dim=-1)


def adds_in_any_order(x: Tensor) -> bool:
    """Whether `index_add` gives other last bits each time. Tensor ranks decide alike, and must have equal gradients."""
    return x.is_cuda


def _sum_by_group(values_TE: Tensor, group_T: Tensor | None, num_groups: int) -> Tensor:
    if group_T is None:
        return values_TE.sum(dim=0, keepdim=True)
    if adds_in_any_order(values_TE):
        is_of_GT = group_T == torch.arange(num_groups, device=group_T.device)[:, None]
        return exact_linear(is_of_GT.to(values_TE.dtype), values_TE.mT)
    return values_TE.new_zeros(num_groups, values_TE.shape[1]).index_add(0, group_T, values_TE)


def _squared_variation(total_GE: Tensor) -> Tensor:
    """A group without tokens counts as balanced."""
    return total_GE.var(dim=1, unbiased=False) / total_GE.mean(dim=1).square().clamp_min(1e-18)
