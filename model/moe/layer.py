"""The sparse layer's two paths: a decision is made once, then applied to both linears of its pair.

    GroupRouter --> MergePath    --> MergeDecision    .apply(bank, xs)     weights travel, tokens stay
    TokenRouter --> DispatchPath --> DispatchDecision .apply(experts, xs)  tokens travel, weights stay

A pass is a tuple of sequences that go through the encoder together (inputs and candidates): they share one exchange, and
tokens of both compete for the same slots. A decision also carries what it reports; nothing is stored in a module, so
recomputation counts nothing twice.
Legend: B rows, L positions, D width, T valid tokens, E experts, K choices, C condition groups, S expert ranks, M modalities.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from data.batch import Modality
from model.config import ExpertConfig
from model.moe.experts import ExpertLinear, ExpertMLP
from model.moe.router import GROUP_ROUTERS, TOKEN_ROUTERS, Layouts, Passed
from model.noise import Key
from parallel.collectives import all_gather, copy_to_axis
from parallel.dispatch import DispatchPlan, combine, dispatch, plan_dispatch
from parallel.kernels import Kernels
from parallel.mesh import Mesh

MAX_GROUPS = 4
"""Condition groups of one pass, padded to this many so that ranks with different tasks exchange equal shapes."""


@dataclasses.dataclass(frozen=True)
class RoutingReport:
    """accepted_ME: (token, choice) pairs that expert e took from modality m; asked_M: all such pairs of the modality.
    losses: auxiliary losses by name, unweighted and detached; loss: their weighted sum, a scalar with gradient."""

    accepted_ME: Tensor
    asked_M: Tensor
    losses: dict[str, Tensor]
    loss: Tensor


@dataclasses.dataclass(frozen=True)
class MergeDecision:
    """Group weights of every expert rank, and the spans of this rank's groups."""

    gathered_SCE: Tensor
    layouts: Layouts
    report: RoutingReport

    def apply(self, bank: ExpertLinear, xs: Passed) -> Passed:
        """Merge the bank once a group, then run dense linears over the spans."""
        weight_COI, bias_CO = bank.merged(self.gathered_SCE)
        results, first = [], 0
        for x_BLI, layout in zip(xs, self.layouts, strict=True):
            parts = [
                bank.linear(
                    x_BLI[:, span.start : span.end], weight_COI[first + span.group], bias_CO[first + span.group]
                )
                for span in layout.spans
            ]
            results.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
            first += layout.modality_G.shape[0]
        return tuple(results)


@dataclasses.dataclass(frozen=True)
class DispatchDecision:
    """Expert ids and weights of this rank's valid tokens, and the exchange that they lead to."""

    weights_TK: Tensor
    plan: DispatchPlan
    layouts: Layouts
    report: RoutingReport

    def apply(self, experts: ExpertLinear | ExpertMLP, xs: Passed) -> Passed:
        """Padded positions come out as zero."""
        masks = [layout.valid_BL for layout in self.layouts]
        x_TI = torch.cat([x_BLI[valid_BL] for x_BLI, valid_BL in zip(xs, masks, strict=True)])
        y_RO = experts.grouped(dispatch(x_TI, self.plan), self.plan.counts)
        # A column bank computes a part of the features, so the weights' gradients are partial sums over tensor ranks.
        partial = experts.side == "column"
        weights_TK = copy_to_axis(self.weights_TK, experts.tensor) if partial else self.weights_TK
        y_TO = combine(y_RO, weights_TK, self.plan)
        parts = y_TO.split([x_BLI.shape[0] * x_BLI.shape[1] for x_BLI in xs]) if _all_valid(masks, y_TO) else None
        if parts is not None:
            return tuple(y.view(*valid_BL.shape, -1) for y, valid_BL in zip(parts, masks, strict=True))
        results, first = [], 0
        for valid_BL in masks:
            blank_BLO = y_TO.new_zeros(*valid_BL.shape, y_TO.shape[-1])
            results.append(blank_BLO.masked_scatter(valid_BL.unsqueeze(-1), y_TO[first:]))
            first += int(valid_BL.sum())
        return tuple(results)


Decision = MergeDecision | DispatchDecision | None


class MergePath(nn.Module):
    """A router that sees no data, so that all tokens of a group share experts and linear experts can be merged."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.expert = mesh.expert
        self.router = GROUP_ROUTERS[config.router](width, config, num_tasks, kernels)

    def forward(self, xs: Passed, layouts: Layouts, noise: Key) -> MergeDecision:
        weights_CE = self.router(layouts, noise)
        num_groups, num_experts = weights_CE.shape
        if num_groups > MAX_GROUPS:
            raise ValueError(f"{num_groups} groups of tokens in one pass; at most {MAX_GROUPS} are exchanged")
        padded_CE = torch.cat([weights_CE, weights_CE.new_zeros(MAX_GROUPS - num_groups, num_experts)])
        chosen_CE = (weights_CE.detach() > 0).to(weights_CE)
        tokens_C = torch.stack(
            [_tokens(layout, group) for layout in layouts for group in range(len(layout.modality_G))]
        )
        pairs_CE = tokens_C.to(chosen_CE)[:, None] * chosen_CE
        modality_C = torch.cat([layout.modality_G for layout in layouts])
        accepted_ME = pairs_CE.new_zeros(len(Modality), num_experts).index_add(0, modality_C, pairs_CE)
        report = RoutingReport(accepted_ME, accepted_ME.sum(dim=1), {}, weights_CE.new_zeros(()))
        return MergeDecision(all_gather(padded_CE, self.expert), layouts, report)


class DispatchPath(nn.Module):
    """A router that decides for every token; tokens go to the ranks that hold their experts."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.num_experts, self.expert = config.num_experts, mesh.expert
        self.router = TOKEN_ROUTERS[config.router](width, config, num_tasks, kernels)

    def forward(self, xs: Passed, layouts: Layouts, noise: Key) -> DispatchDecision:
        routing = self.router(xs, layouts, noise)
        plan = plan_dispatch(routing.expert_ids_TK, routing.kept_TK, self.num_experts, self.expert)
        modality_T = torch.cat([layout.modality_BL[layout.valid_BL] for layout in layouts])
        cell_TK = routing.expert_ids_TK + self.num_experts * modality_T[:, None]
        cells = len(Modality) * self.num_experts
        accepted_ME = torch.bincount(cell_TK[routing.kept_TK], minlength=cells).view(len(Modality), -1)
        asked_M = torch.bincount(modality_T, minlength=len(Modality)) * cell_TK.shape[1]
        report = RoutingReport(accepted_ME.to(routing.loss), asked_M.to(routing.loss), routing.losses, routing.loss)
        return DispatchDecision(routing.weights_TK, plan, layouts, report)


def make_path(
    width: int, config: ExpertConfig, num_tasks: int, mesh: Mesh, kernels: Kernels
) -> MergePath | DispatchPath:
    path = DispatchPath if config.decides_per_token else MergePath
    return path(width, config, num_tasks, mesh, kernels)


def _tokens(layout, group: int) -> Tensor:
    """Valid tokens of a group, a scalar tensor."""
    counts = [layout.valid_BL[:, span.start : span.end].sum() for span in layout.spans if span.group == group]
    return torch.stack(counts).sum()


def _all_valid(masks: list[Tensor], y_TO: Tensor) -> bool:
    """Known from shapes alone: asking the device would stop it."""
    return sum(mask.numel() for mask in masks) == y_TO.shape[0]
