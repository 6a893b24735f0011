"""Banks of linear experts, stacked [E_local, out, in], and the two ways of using them.

Legend: E experts, e local experts, O out, I in (local parts under tensor parallelism), G groups, R rows, S expert ranks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from parallel.collectives import copy_to_axis, reduce_from_axis, reduce_scatter
from parallel.mesh import Mesh
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS, Cut, Placement, place


class ExpertLinear(nn.Module):
    """E linear experts of shape in -> out, cut over the expert axis and, as `side` says, over the tensor axis.

    side "column" cuts the outputs (QKV, FFN 1), "row" the inputs (attention output, FFN 2); as in dense layers a column
    bank feeds a row bank, whose results are summed over tensor ranks.
    """

    def __init__(
        self, in_features: int, out_features: int, num_experts: int, side: Literal["column", "row"], mesh: Mesh
    ) -> None:
        super().__init__()
        self.side, self.tensor, self.expert = side, mesh.tensor, mesh.expert
        self.num_experts = num_experts
        experts = Cut(0, EXPERT_AXIS, mesh.expert.rank, mesh.expert.size)
        column = Cut(1, TENSOR_AXIS, mesh.tensor.rank, mesh.tensor.size)
        row = Cut(2, TENSOR_AXIS, mesh.tensor.rank, mesh.tensor.size)
        weight = Placement((num_experts, out_features, in_features), (experts, column if side == "column" else row))
        bias = Placement((num_experts, out_features), (experts, column) if side == "column" else (experts,))
        self.weight = place(nn.Parameter(torch.empty(weight.local_shape)), weight)
        self.bias = place(nn.Parameter(torch.empty(bias.local_shape)), bias)

    def merged(self, gathered_SGE: Tensor) -> tuple[Tensor, Tensor]:
        """Merged weights [G, O, I] and biases [G, O] of this rank's groups (papers.md 2.3).

        `gathered_SGE` are the decisions of every expert rank. Each rank sums over its own experts for every peer, and
        a reduce-scatter gives each rank the total of its own groups: weights travel instead of tokens.
        """
        num_ranks, num_groups, _ = gathered_SGE.shape
        local = self.weight.shape[0]
        first = self.expert.rank * local
        gate_Ne = gathered_SGE.flatten(0, 1)[:, first : first + local]
        weight_gate_Ne = copy_to_axis(gate_Ne, self.tensor)  # each tensor rank sees only a part of the matrices
        partial_W = weight_gate_Ne.to(self.weight.dtype) @ self.weight.flatten(1)
        bias_gate_Ne = weight_gate_Ne if self.side == "column" else gate_Ne
        partial_b = bias_gate_Ne.to(self.bias.dtype) @ self.bias
        both = torch.cat([partial_W, partial_b], dim=1).view(num_ranks, num_groups, -1)
        total_GX = reduce_scatter(both, self.expert)
        split = self.weight[0].numel()
        return total_GX[:, :split].reshape(num_groups, *self.weight.shape[1:]), total_GX[:, split:]

    def grouped(self, x_RI: Tensor, counts: list[int]) -> Tensor:
        """Rows sorted by local expert -> [R, O] with each expert's own weight and bias.

        An expert without rows takes part with none, so its gradient is zero and not missing.
        """
        return torch.cat([self.linear(rows, self.weight[e], self.bias[e]) for e, rows in enumerate(x_RI.split(counts))])

    def linear(self, x: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        """x W^T + b over this rank's part of the weight, communicating as megatron-core's column / row layers do."""
        if self.side == "column":
            return nn.functional.linear(copy_to_axis(x, self.tensor), weight_OI, bias_O)
        return reduce_from_axis(nn.functional.linear(x, weight_OI), self.tensor) + bias_O


class ExpertMLP(nn.Module):
    """E whole feed-forward networks, down(gelu(up(x))): the expert of V-MoE and LIMoE. Cannot be merged."""

    side = "row"

    def __init__(self, width: int, hidden: int, num_experts: int, mesh: Mesh) -> None:
        super().__init__()
        self.tensor = mesh.tensor
        self.up = ExpertLinear(width, hidden, num_experts, "column", mesh)
        self.down = ExpertLinear(hidden, width, num_experts, "row", mesh)

    def grouped(self, x_RI: Tensor, counts: list[int]) -> Tensor:
        """Rows sorted by local expert -> [R, O]."""
        return self.down.grouped(nn.functional.gelu(self.up.grouped(x_RI, counts)), counts)
