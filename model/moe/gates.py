"""Gates of all decisions of a pass that merge experts, before the first block: they look at no data.

    routers of all blocks --one product--> weights [N, C, E] --one all-gather--> those of every expert rank, and what the host must know
                                                                                 of them (who sends what), asked for once a pass
Legend: N decisions of a pass, C condition groups, E experts, F gate features, S expert ranks, M modalities, X numbers of a report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from data.batch import Modality
from model.layout import PassLayout
from model.moe.report import RoutingReport
from model.moe.router import AttributeRouter, GroupRouter, ModalityRouter, TaskRouter, weights_of
from model.moe.use import ExpertUse, unpacked
from model.noise import WIDEST, Key, derive, each
from model.reading import BatchError
from parallel.collectives import Axis, all_gather
from parallel.kernels import LAYER_NORM_EPS
from parallel.precision import exact_linear, exactly


@dataclasses.dataclass(frozen=True)
class Gates:
    """Of one decision.

    weights_CE    zero outside the top k
    gathered_SCE  of all expert ranks, padded to equally many groups
    has           has[s][c][r]: group c of rank s has chosen an expert of rank r; empty on one rank
    """

    weights_CE: Tensor
    gathered_SCE: Tensor
    has: list[list[list[bool]]]
    report: RoutingReport


def gates_of(
    routers: Sequence[GroupRouter], layout: PassLayout, noise: Key, axis: Axis, max_groups: int
) -> list[Gates]:
    """Collective, once a pass. In the order of the routers. Raises BatchError for more groups than can be exchanged."""
    num_groups = len(layout.tokens_C)
    if axis.size > 1 and num_groups > max_groups:
        raise BatchError(f"{num_groups} groups of tokens in one pass: raise model.experts.max_groups={max_groups}")
    with exactly(layout.device):
        weights_NCE, entropy_NC = _weights(routers, layout, noise)
    padded_NCE = weights_NCE
    if axis.size > 1:
        padded_NCE = torch.nn.functional.pad(weights_NCE, (0, 0, 0, max_groups - num_groups))
    gathered_SNCE = all_gather(padded_NCE, axis)
    has: list[list[list[list[bool]]]] = [[] for _ in routers]
    if axis.size > 1:
        has = (gathered_SNCE.detach().transpose(0, 1).unflatten(-1, (axis.size, -1)) != 0).any(dim=-1).tolist()
    reports = _reports(weights_NCE.detach(), entropy_NC, layout)
    parts = zip(weights_NCE.unbind(), gathered_SNCE.unbind(1), has, reports, strict=True)
    return [Gates(*of_one) for of_one in parts]


def _weights(routers: Sequence[GroupRouter], layout: PassLayout, noise: Key) -> tuple[Tensor, Tensor]:
    """-> (weights_NCE, entropy_NC)."""
    first = routers[0]
    together = (AttributeRouter, ModalityRouter, TaskRouter)
    if any(type(router) is not type(first) or type(router) not in together for router in routers):
        return _one_by_one(routers, layout, noise)
    draws = len(routers) * first.config.num_experts
    if first.config.noise == "jitter" or (noise is not None and draws > WIDEST):
        return _one_by_one(routers, layout, noise)
    if isinstance(first, AttributeRouter):
        x_NCD = exact_linear(layout.attributes_CA.expand(len(routers), -1, -1), _stacked(routers, "embed.weight"))
        x_NCD = layer_norm(x_NCD + _stacked(routers, "embed.bias")[:, None], x_NCD.shape[-1:], eps=LAYER_NORM_EPS)
        features_NCF = x_NCD * _stacked(routers, "norm.weight")[:, None] + _stacked(routers, "norm.bias")[:, None]
    else:
        condition_C = layout.modality_C if isinstance(first, ModalityRouter) else layout.task_C
        features_NCF = _stacked(routers, "embed.weight").index_select(1, condition_C)
    logits_NCE = exact_linear(features_NCF, _stacked(routers, "gate.weight"))
    counter = None
    if noise is not None:
        counter = each(layout.counter_C, len(routers)).t()[..., None]
        counter = counter + torch.arange(logits_NCE.shape[-1], device=counter.device) * len(routers)
    return weights_of(logits_NCE, first.config, noise, counter)


def _one_by_one(routers: Sequence[GroupRouter], layout: PassLayout, noise: Key) -> tuple[Tensor, Tensor]:
    found = [router(layout, derive(noise, index)) for index, router in enumerate(routers)]
    return torch.stack([weights for weights, _ in found]), torch.stack([entropy for _, entropy in found])


def _stacked(routers: Sequence[GroupRouter], name: str) -> Tensor:
    return torch.stack([router.get_parameter(name).float() for router in routers])


def _reports(weights_NCE: Tensor, entropy_NC: Tensor, layout: PassLayout) -> list[RoutingReport]:
    tokens_C1 = layout.count_C.to(weights_NCE)[:, None]
    pairs_NCE = tokens_C1 * (weights_NCE > 0)
    asked_NC = pairs_NCE.sum(dim=2)
    unasked_NC = torch.zeros_like(asked_NC)
    use_NCX = ExpertUse(pairs_NCE, tokens_C1 * weights_NCE, asked_NC, unasked_NC, asked_NC * entropy_NC).packed()
    empty_NMX = use_NCX.new_zeros(len(use_NCX), len(Modality), use_NCX.shape[2])
    use_NMX = empty_NMX.index_add(1, layout.modality_C, use_NCX)
    return [RoutingReport(unpacked(use_MX), {}) for use_MX in use_NMX.unbind()]
