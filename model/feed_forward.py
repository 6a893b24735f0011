"""The feed-forward branch: two linears with GELU (erf) between them, dense, of linear experts, or a bank of whole networks."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn
from torch.nn.functional import gelu

from model.config import ModelConfig
from model.moe.experts import ExpertLinear, ExpertMLP
from model.moe.layer import Decision, DispatchDecision, SlotDecision
from model.projection import SparseProjection, banks_of, lora_of, projection
from model.recompute import Computed, computed, kept
from parallel.dispatch_plan import RowGroups
from parallel.mesh import Mesh


class FeedForward(nn.Module):
    """Dense, or each of the two linears a bank of experts."""

    def __init__(self, config: ModelConfig, sparse: bool, mesh: Mesh) -> None:
        super().__init__()
        self.up = projection(config, "up", config.width, config.ffn, sparse, mesh)
        self.down = projection(config, "down", config.ffn, config.width, sparse, mesh)
        self.computed = computed(config.activation_checkpointing)

    @property
    def banks(self) -> tuple[ExpertLinear, ...]:
        """What a decision is for."""
        return banks_of(self.up, self.down)

    def forward(self, x_TD: Tensor, decision: Decision) -> Tensor:
        if isinstance(decision, DispatchDecision) and decision.is_single:
            assert isinstance(self.up, SparseProjection) and isinstance(self.down, SparseProjection)
            return decision.apply(LinearPair(self.up.bank, self.down.bank, self.computed), x_TD)
        with self.computed(gelu, self.up(x_TD, decision)) as hidden_TF:
            y_TD: Tensor = self.down(hidden_TF, decision)
            return y_TD


@dataclasses.dataclass(frozen=True)
class LinearPair:
    """Two banks of linears, one after the other on the same rank: tokens with one expert need not come home in between."""

    up: ExpertLinear
    down: ExpertLinear
    computed: Computed = kept

    def grouped(self, x_RI: Tensor, groups: RowGroups, scale_R: Tensor | None = None) -> Tensor:
        with self.computed(gelu, self.up.grouped(x_RI, groups, scale_R)) as hidden_RF:
            return self.down.grouped(hidden_RF, groups, scale_R)


class SparseFeedForward(nn.Module):
    """An expert is a whole network (V-MoE, LIMoE); tokens travel once."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        again = computed(config.activation_checkpointing)
        loras = (lora_of(config, "up"), lora_of(config, "down"))
        self.experts = ExpertMLP(config.width, config.ffn, config.experts.num_experts, mesh, again, loras)

    def forward(self, x_TD: Tensor, decision: Decision) -> Tensor:
        assert isinstance(decision, DispatchDecision | SlotDecision), "whole networks cannot be merged"
        return decision.apply(self.experts, x_TD)


def feed_forward(config: ModelConfig, sparse: bool, mesh: Mesh) -> nn.Module:
    if sparse and config.experts.unit == "mlp":
        return SparseFeedForward(config, mesh)
    return FeedForward(config, sparse, mesh)
