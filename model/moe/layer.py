"""The sparse layer's two paths: a decision is made once, then applied to both linears of its pair.

    router --> GroupRouting --> MergePath    --> MergeDecision    .apply(bank, x)   weights travel, tokens stay
           --> TokenRouting --> DispatchPath --> DispatchDecision .apply(bank, x)   tokens travel, weights stay

A decision also carries what it reports; nothing is stored in a module, so recomputation counts nothing twice.
Legend: B rows, L positions, D width, T valid tokens, E experts, K choices, G groups, S expert ranks.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from model.config import ExpertConfig
from model.layout import SequenceLayout
from model.moe.experts import ExpertLinear
from model.moe.losses import importance
from model.moe.router import ROUTERS
from model.noise import Key
from parallel.collectives import all_gather, copy_to_axis
from parallel.dispatch import DispatchPlan, combine, dispatch, plan_dispatch
from parallel.kernels import Kernels
from parallel.mesh import Mesh

MAX_GROUPS = 2
"""Groups of one pass, padded to this many so that ranks with different tasks exchange equal shapes."""


@dataclasses.dataclass(frozen=True)
class RoutingReport:
    """load_E: share of the (token, choice) pairs that went to each expert; sums to 1 less the dropped share.
    loss: weighted auxiliary loss, a scalar."""

    load_E: Tensor
    loss: Tensor


@dataclasses.dataclass(frozen=True)
class MergeDecision:
    """Group weights of every expert rank, and the spans of this rank's groups."""

    gathered_SGE: Tensor
    layout: SequenceLayout
    report: RoutingReport

    def apply(self, bank: ExpertLinear, x_BLI: Tensor) -> Tensor:
        """Merge the bank once a group, then run dense linears over the spans."""
        weight_GOI, bias_GO = bank.merged(self.gathered_SGE)
        parts = [
            bank.linear(x_BLI[:, span.start : span.end], weight_GOI[span.group], bias_GO[span.group])
            for span in self.layout.spans
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclasses.dataclass(frozen=True)
class DispatchDecision:
    """Expert ids and weights of this rank's valid tokens, and the exchange that they lead to."""

    weights_TK: Tensor
    plan: DispatchPlan
    layout: SequenceLayout
    report: RoutingReport

    def apply(self, bank: ExpertLinear, x_BLI: Tensor) -> Tensor:
        """Padded positions come out as zero."""
        valid_BL = self.layout.valid_BL
        y_RO = bank.grouped(dispatch(x_BLI[valid_BL], self.plan), self.plan.counts)
        # A column bank computes a part of the features, so the weights' gradients are partial sums over tensor ranks.
        weights_TK = copy_to_axis(self.weights_TK, bank.tensor) if bank.side == "column" else self.weights_TK
        y_TO = combine(y_RO, weights_TK, self.plan)
        return y_TO.new_zeros(*valid_BL.shape, y_TO.shape[-1]).masked_scatter(valid_BL.unsqueeze(-1), y_TO)


Decision = MergeDecision | DispatchDecision | None


class MergePath(nn.Module):
    """A router that sees no data, so that all tokens of a group share experts and linear experts can be merged."""

    def __init__(self, width: int, config: ExpertConfig, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.expert = mesh.expert
        self.top_k = config.top_k
        self.router = ROUTERS[config.router](width, config, kernels)

    def forward(self, x_BLD: Tensor, layout: SequenceLayout, noise: Key) -> MergeDecision:
        weights_GE = self.router(layout.attributes_GA, noise).weights_GE
        num_groups, num_experts = weights_GE.shape
        if num_groups > MAX_GROUPS:
            raise ValueError(
                f"{num_groups} different attribute vectors in one pass; at most {MAX_GROUPS} are exchanged"
            )
        padded_GE = torch.cat([weights_GE, weights_GE.new_zeros(MAX_GROUPS - num_groups, num_experts)])
        tokens_G = torch.stack(
            [
                sum((layout.valid_BL[:, s.start : s.end].sum() for s in layout.spans if s.group == g), torch.tensor(0))
                for g in range(num_groups)
            ]
        ).to(weights_GE)
        load_E = tokens_G @ (weights_GE.detach() > 0).to(weights_GE) / (tokens_G.sum() * self.top_k)
        report = RoutingReport(load_E, weights_GE.new_zeros(()))
        return MergeDecision(all_gather(padded_GE, self.expert), layout, report)


class DispatchPath(nn.Module):
    """A router that decides for every token; tokens go to the ranks that hold their experts."""

    def __init__(self, width: int, config: ExpertConfig, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.config, self.expert = config, mesh.expert
        self.router = ROUTERS[config.router](width, config, kernels)

    def forward(self, x_BLD: Tensor, layout: SequenceLayout, noise: Key) -> DispatchDecision:
        routing = self.router(x_BLD[layout.valid_BL], noise)
        kept_TK = routing.weights_TK.detach() > 0
        num_experts = self.config.num_experts
        plan = plan_dispatch(routing.expert_ids_TK, kept_TK, num_experts, self.expert)
        chosen_N = routing.expert_ids_TK[kept_TK]
        load_E = torch.bincount(chosen_N, minlength=num_experts) / max(1, kept_TK.numel())
        loss = self.config.importance_weight * importance(routing.probs_TE)
        return DispatchDecision(routing.weights_TK, plan, layout, RoutingReport(load_E.to(loss), loss))


PATHS = {"attribute": MergePath, "token": DispatchPath}
"""Which path runs which router's decisions."""
