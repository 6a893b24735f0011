"""The sparse layer's two paths: a decision is made once, then applied to both linears of its pair.

    gates of the pass --> MergePath.start ... --> MergeDecision .apply(bank, x) weights travel, tokens stay
    TokenRouter       --> DispatchPath --> DispatchDecision .apply(experts, x)  tokens travel, weights stay
                      --> DeepSpeedPath --> SlotDecision    .apply(experts, x)  the same, sent by DeepSpeed's layer

All tokens of a pass (of inputs and candidates) share one exchange, and compete for the same slots. A decision also carries what it
reports; nothing is stored in a module, so recomputation counts nothing twice.
Legend: T tokens, D width, E experts, K choices, C condition groups, S expert ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from model.layout import PassLayout
from model.moe.config import ExpertConfig
from model.moe.experts import ExpertLinear, MergedWeights, start_merges
from model.moe.gates import Gates
from model.moe.report import RoutingReport
from model.moe.router import GROUP_ROUTERS, TOKEN_ROUTERS
from model.moe.routing import TokenRouting
from model.noise import Key
from parallel.deepspeed_moe import SlotPlan, plan_slots, through_deepspeed
from parallel.dispatch import combine, dispatch, dispatch_weights, there_and_back
from parallel.dispatch_plan import Blocks, DispatchPlan, RowGroups, plan_dispatch, plan_in_slots, plan_parts
from parallel.kernels import Kernels
from parallel.mesh import Mesh
from parallel.precision import lowered


@dataclasses.dataclass(frozen=True)
class MergeDecision:
    """The merged weights and biases of a pair of banks. blocks: the tokens of each group. firsts: of each sequence the group of its first
    token."""

    merged: MergedWeights
    blocks: Blocks
    firsts: tuple[int, ...]
    report: RoutingReport

    def apply(self, bank: ExpertLinear, x_TI: Tensor) -> Tensor:
        """A dense linear for each group."""
        return bank.linear(x_TI, self.blocks, *self.merged[bank])

    def of_tokens(self, layout: PassLayout) -> MergeDecision:
        """For other tokens of the same groups."""
        return dataclasses.replace(self, blocks=layout.blocks, firsts=layout.first_groups)

    def with_more(self, lengths: list[int]) -> MergeDecision:
        """For rows behind the tokens: some for each sequence, in the group of its first token."""
        blocks = list(self.blocks)
        for length, group in zip(lengths, self.firsts, strict=True):
            blocks.append((blocks[-1][1], blocks[-1][1] + length, group))
        return dataclasses.replace(self, blocks=tuple(blocks))


class Grouped(Protocol):
    """Experts that take rows sorted by expert, with the row's weight."""

    def grouped(self, x_RI: Tensor, groups: RowGroups, scale_R: Tensor | None = None) -> Tensor: ...


class Pair(Grouped, Protocol):
    """Two banks, one behind the other."""

    @property
    def up(self) -> ExpertLinear: ...

    @property
    def down(self) -> ExpertLinear: ...


@dataclasses.dataclass(frozen=True)
class DispatchDecision:
    """For each part of the tokens the weights of the rows that this rank's experts receive, and the exchange that brings the rows."""

    scales: tuple[Tensor, ...]
    plans: tuple[DispatchPlan, ...]
    report: TokenRouting

    @classmethod
    def of(cls, weights_TK: Tensor, plans: tuple[DispatchPlan, ...], report: TokenRouting) -> DispatchDecision:
        parts = (weights_TK,) if len(plans) == 1 else weights_TK.split([len(plan.firsts_T) for plan in plans])
        return cls(tuple(dispatch_weights(*part) for part in zip(parts, plans, strict=True)), plans, report)

    def apply(self, experts: ExpertLinear | Pair, x_TI: Tensor) -> Tensor:
        x_TI = lowered(x_TI)
        if len(self.plans) > 1:
            with contextlib.ExitStack() as stack:
                for bank in (experts,) if isinstance(experts, ExpertLinear) else (experts.up, experts.down):
                    stack.enter_context(bank.sharing())
                return there_and_back(x_TI, self.plans, functools.partial(self._computed, experts))
        (plan,) = self.plans
        return combine(self._computed(experts, dispatch(x_TI, plan), 0), plan)

    def _computed(self, experts: Grouped, rows_RI: Tensor, part: int) -> Tensor:
        return experts.grouped(rows_RI, self.plans[part].groups, self.scales[part])

    def with_more(self, lengths: list[int]) -> DispatchDecision:
        raise AssertionError("model/config.py refuses prompts that a router would have to send")

    @property
    def is_single(self) -> bool:
        """Every token has one expert, so a pair of linears can be applied where the token is."""
        return self.plans[0].num_choices == 1


@dataclasses.dataclass(frozen=True)
class SlotDecision:
    """A slot of an expert for every choice, and DeepSpeed's layer, which brings rows there and back."""

    plan: SlotPlan
    report: TokenRouting

    def apply(self, experts: Grouped, x_TD: Tensor) -> Tensor:
        return through_deepspeed(lowered(x_TD), self.plan, experts.grouped)

    def with_more(self, lengths: list[int]) -> SlotDecision:
        raise AssertionError("experts are whole networks: attention has no decision")


Decision = MergeDecision | DispatchDecision | SlotDecision | None


def for_blocks(decision: Decision, blocks: Blocks) -> MergeDecision | None:
    """The decision for some of its tokens, whose groups these are; none where there is none."""
    assert decision is None or isinstance(decision, MergeDecision), "tokens compete for experts, read or not"
    return decision and dataclasses.replace(decision, blocks=blocks)


class MergePath(nn.Module):
    """A router that sees no data (model/moe/gates.py asks it), so that all tokens of a group share experts and linear experts can be
    merged."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.expert = mesh.expert
        self.router = GROUP_ROUTERS[config.router](width, config, num_tasks, kernels)

    def forward(self, banks: tuple[ExpertLinear, ...], layout: PassLayout, gates: Gates) -> Callable[[], MergeDecision]:
        """Starts to merge the banks that the decision is for -> what waits for the decision, to be called once."""
        merges = start_merges(banks, gates.gathered_SCE, gates.has, len(gates.weights_CE), self.expert)
        return lambda: MergeDecision(merges.totals(), layout.blocks, layout.first_groups, gates.report)


class DispatchPath(nn.Module):
    """A router that decides for every token; tokens go to the ranks that hold their experts."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.num_experts, self.expert = config.num_experts, mesh.expert
        self.exchange_parts = config.exchange_parts
        self.router = TOKEN_ROUTERS[config.router](width, config, num_tasks, kernels)

    def forward(
        self, x_TD: Tensor, layout: PassLayout, noise: Key, drawn_TE: Tensor | None = None
    ) -> DispatchDecision | SlotDecision:
        """drawn_TE: the numbers of the gate's noise, where all decisions of the pass have drawn theirs together."""
        return self.sent(self.router(x_TD, layout, noise, drawn_TE), layout.slots_S)

    def sent(self, routing: TokenRouting, slots_S: tuple[int, ...]) -> DispatchDecision | SlotDecision:
        ids_TK, kept_TK = routing.expert_ids_TK, routing.kept_TK
        plans: tuple[DispatchPlan, ...]
        if slots_S:
            assert kept_TK is not None
            plans = (plan_in_slots(ids_TK, kept_TK, self.num_experts, self.expert, slots_S),)
        elif self.expert.size > 1:
            plans = plan_parts(ids_TK, kept_TK, self.num_experts, self.expert, self.exchange_parts)
        else:
            plans = (plan_dispatch(ids_TK, kept_TK, self.num_experts, self.expert, routing.most_kept),)
        return DispatchDecision.of(routing.weights_TK, plans, routing)


class DeepSpeedPath(DispatchPath):
    """The same router, and DeepSpeed's layer in place of our exchange."""

    def sent(self, routing: TokenRouting, slots_S: tuple[int, ...]) -> SlotDecision:
        slots = None if routing.most_kept is None else routing.most_kept // self.num_experts
        ids_TK, weights_TK, kept_TK = routing.expert_ids_TK, routing.weights_TK, routing.kept_TK
        return SlotDecision(plan_slots(ids_TK, weights_TK, kept_TK, self.num_experts, self.expert, slots), routing)


def make_path(
    width: int, config: ExpertConfig, num_tasks: int, mesh: Mesh, kernels: Kernels
) -> MergePath | DispatchPath:
    if not config.decides_per_token:
        return MergePath(width, config, num_tasks, mesh, kernels)
    path = DeepSpeedPath if config.backend == "deepspeed" else DispatchPath
    return path(width, config, num_tasks, mesh, kernels)
