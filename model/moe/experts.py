"""Banks of linear experts, stacked [E_local, out, in], and the two ways of using them.

Legend: E experts, e local experts, O out, I in (local parts under tensor parallelism), C groups (padded), G groups
that there are, R rows, S expert ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from model.config import LoraConfig
from model.moe.grouped import grouped_linear
from model.moe.merge import Merging, plan_merge, start_merge
from model.recompute import Computed, kept
from model.tuning.lora import LowRankUpdate
from parallel.collectives import Axis, copy_to_axis, reduce_from_axis
from parallel.dispatch_plan import Blocks, RowGroups
from parallel.mesh import Mesh
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS, Cut, Placement, place
from parallel.precision import lowered
from parallel.sequence_parallel import only_first


class ExpertLinear(nn.Module):
    """E linear experts of shape in -> out, cut over the expert axis and, as `side` says, over the tensor axis.

    side "column" cuts the outputs (QKV, FFN 1), "row" the inputs (attention output, FFN 2); as in dense layers a column
    bank feeds a row bank, whose results are summed over tensor ranks.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int,
        side: Literal["column", "row"],
        mesh: Mesh,
        lora: LoraConfig | None = None,
    ) -> None:
        super().__init__()
        self.side, self.tensor, self.expert = side, mesh.tensor, mesh.expert
        self.leaves_sums = mesh.sequence.size > 1
        self.num_experts = num_experts
        experts = Cut(0, EXPERT_AXIS, mesh.expert.rank, mesh.expert.size)
        column = Cut(1, TENSOR_AXIS, mesh.tensor.rank, mesh.tensor.size)
        row = Cut(2, TENSOR_AXIS, mesh.tensor.rank, mesh.tensor.size)
        weight = Placement((num_experts, out_features, in_features), (experts, column if side == "column" else row))
        bias = Placement((num_experts, out_features), (experts, column) if side == "column" else (experts,))
        self.weight = place(nn.Parameter(torch.empty(weight.local_shape)), weight)
        self.bias = place(nn.Parameter(torch.empty(bias.local_shape)), bias)
        self.lora = LowRankUpdate(lora, weight, mesh.tensor) if lora else None
        self._shared: tuple[Tensor, Tensor] | None = None

    def updated_weight(self) -> Tensor:
        """[e, O, I] in fp32, with its low-rank update where there is one."""
        return self.weight if self.lora is None else self.lora(self.weight)

    def summands(self, gathered_SCE: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(gates, weights) and (gates, biases) of this rank's experts, from the gates of every expert rank."""
        local = self.weight.shape[0]
        gate_SCe = gathered_SCE
        if self.expert.size > 1:
            gate_SCe = gathered_SCE[..., self.expert.rank * local : (self.expert.rank + 1) * local]
        weight_gate_SCe = copy_to_axis(gate_SCe, self.tensor)  # each tensor rank sees only a part of the matrices
        bias_gate_SCe = weight_gate_SCe if self.side == "column" else gate_SCe
        return (weight_gate_SCe, self.updated_weight()), (bias_gate_SCe, self.bias)

    def grouped(self, x_RI: Tensor, groups: RowGroups, scale_R: Tensor | None = None) -> Tensor:
        """Rows by local expert -> [R, O], each expert's W x + b times the row's scale.

        An expert without rows takes part with none, so its gradient is zero and not missing.
        """
        return self.linear(x_RI, groups, *(self._shared or self._lowered()), scale_R)

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside, calls of `grouped` share what is made of the whole bank."""
        self._shared = self._lowered()
        try:
            yield
        finally:
            self._shared = None

    def _lowered(self) -> tuple[Tensor, Tensor]:
        return lowered(self.updated_weight()), lowered(self.bias)

    def linear(
        self,
        x_RI: Tensor,
        groups: RowGroups | Blocks,
        weight_COI: Tensor,
        bias_CO: Tensor,
        scale_R: Tensor | None = None,
    ) -> Tensor:
        """scale (W x + b) over this rank's part of the weights, communicating as megatron-core's column / row layers do, or
        leaving sums over tensor ranks to the block, as parallel/linear.py does where rows are cut."""
        x_RI = lowered(x_RI)
        if self.tensor.size == 1:
            return grouped_linear(x_RI, groups, weight_COI, bias_CO, scale_R)
        # Each tensor rank multiplies by a part of the weight, so the gradient of the scale is a part too.
        part_R = None if scale_R is None else copy_to_axis(scale_R, self.tensor)
        if self.leaves_sums:
            term_CO = bias_CO if self.side == "column" else only_first(bias_CO, self.tensor)
            return grouped_linear(x_RI, groups, weight_COI, term_CO, part_R)
        if self.side == "column":
            return grouped_linear(copy_to_axis(x_RI, self.tensor), groups, weight_COI, bias_CO, part_R)
        # The bias first: recomputation ends with what is saved last, and need not repeat the sum.
        if isinstance(groups, RowGroups):
            bias_RO = bias_CO[groups.expert_R]
        else:
            bias_RO = torch.cat([bias_CO[index].expand(end - start, -1) for start, end, index in groups])
        if scale_R is not None:
            bias_RO = bias_RO * scale_R[:, None].to(bias_RO.dtype)
        return reduce_from_axis(grouped_linear(x_RI, groups, weight_COI, None, part_R), self.tensor) + bias_RO


@dataclasses.dataclass(frozen=True)
class Merges:
    """One decision for several banks, under way."""

    banks: tuple[ExpertLinear, ...]
    merging: Merging

    def totals(self) -> MergedWeights:
        """To be called once."""
        totals = self.merging.totals()
        return {bank: (totals[2 * index], totals[2 * index + 1]) for index, bank in enumerate(self.banks)}


MergedWeights = dict[ExpertLinear, tuple[Tensor, Tensor]]
"""Weights [C, O, I] and biases [C, O] of the groups, by bank."""


def start_merges(
    banks: tuple[ExpertLinear, ...], gathered_SCE: Tensor, has: list[list[list[bool]]], num_groups: int, axis: Axis
) -> Merges:
    """gathered_SCE: the gates of every expert rank's groups, padded; has: who needs whom (model/moe/gates.py); num_groups: this rank's."""
    plan = plan_merge(has, num_groups, axis)
    gates, tensors = zip(*(pair for bank in banks for pair in bank.summands(gathered_SCE)), strict=True)
    return Merges(banks, start_merge(gates, tensors, plan))


class ExpertMLP(nn.Module):
    """E whole feed-forward networks, down(gelu(up(x))): the expert of V-MoE and LIMoE. Cannot be merged."""

    def __init__(
        self,
        width: int,
        hidden: int,
        num_experts: int,
        mesh: Mesh,
        computed: Computed = kept,
        loras: tuple[LoraConfig | None, LoraConfig | None] = (None, None),
    ) -> None:
        super().__init__()
        self.up = ExpertLinear(width, hidden, num_experts, "column", mesh, loras[0])
        self.down = ExpertLinear(hidden, width, num_experts, "row", mesh, loras[1])
        self.computed = computed

    def grouped(self, x_RI: Tensor, groups: RowGroups, scale_R: Tensor | None = None) -> Tensor:
        """Rows by local expert -> [R, O]."""
        with self.computed(nn.functional.gelu, self.up.grouped(x_RI, groups)) as hidden_RF:
            return self.down.grouped(hidden_RF, groups, scale_R)
