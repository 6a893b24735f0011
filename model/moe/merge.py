"""Merging a bank of linear experts into one weight for each group of tokens, over the expert axis (papers.md 2.3).

Legend: E experts, e local experts, S expert ranks, C condition groups, N = S x C groups of all expert ranks, O out, I in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.collectives import Axis, gathered, scattered_sum


def merge_experts(
    weight_gate_SCe: Tensor, bias_gate_SCe: Tensor, weight_eOI: Tensor, bias_eO: Tensor, axis: Axis
) -> tuple[Tensor, Tensor]:
    """Weights [C, O, I] and biases [C, O] of this rank's groups: sum over all experts of gate x expert.

    The gates are those of every expert rank's groups for this rank's experts. Each rank sums over its own experts for every
    peer, and one reduce-scatter gives each rank the totals of its own groups: weights travel instead of tokens.
    """
    return _Merge.apply(weight_gate_SCe, bias_gate_SCe, weight_eOI, bias_eO, axis)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight_gate_SCe, bias_gate_SCe, weight_eOI, bias_eO, axis):
        ctx.axis = axis
        ctx.save_for_backward(weight_gate_SCe, bias_gate_SCe, weight_eOI, bias_eO)
        ranks, groups, _ = weight_gate_SCe.shape
        split = weight_eOI[0].numel()
        both_NX = weight_eOI.new_empty(ranks * groups, split + bias_eO.shape[1])
        _mix(weight_gate_SCe.flatten(0, 1), weight_eOI.flatten(1), both_NX[:, :split])
        _mix(bias_gate_SCe.flatten(0, 1), bias_eO, both_NX[:, split:])
        total_CX = both_NX if axis.size == 1 else scattered_sum(both_NX.view(ranks, groups, -1), axis)
        return total_CX[:, :split].unflatten(1, weight_eOI.shape[1:]), total_CX[:, split:]

    @staticmethod
    def backward(ctx, dweight_COI, dbias_CO):
        weight_gate_SCe, bias_gate_SCe, weight_eOI, bias_eO = ctx.saved_tensors
        dweight_NX, dbias_NX = dweight_COI.flatten(1), dbias_CO
        if ctx.axis.size > 1:
            split = dweight_NX.shape[1]
            both_NX = gathered(torch.cat([dweight_NX, dbias_NX], dim=1), ctx.axis).flatten(0, 1)
            dweight_NX, dbias_NX = both_NX[:, :split], both_NX[:, split:]
        dweight_gate, dweight_eX = _mix_backward(weight_gate_SCe.flatten(0, 1), weight_eOI.flatten(1), dweight_NX)
        dbias_gate, dbias_eO = _mix_backward(bias_gate_SCe.flatten(0, 1), bias_eO, dbias_NX)
        return (
            dweight_gate.view_as(weight_gate_SCe),
            dbias_gate.view_as(bias_gate_SCe),
            dweight_eX.view_as(weight_eOI),
            dbias_eO,
            None,
        )


def _mix(gate_Ne: Tensor, bank_eX: Tensor, out_NX: Tensor) -> None:
    """out = gate @ bank. On the CPU, where memory is the limit, experts with a zero gate are not read; asking a GPU which
    they are would cost more than reading them."""
    if gate_Ne.device.type != "cpu":
        out_NX.copy_(gate_Ne.to(bank_eX.dtype) @ bank_eX)
        return
    for gates, out_X in zip(gate_Ne.tolist(), out_NX, strict=True):
        chosen = [(gate, expert_X) for gate, expert_X in zip(gates, bank_eX, strict=True) if gate]
        if not chosen:
            out_X.zero_()
        for position, (gate, expert_X) in enumerate(chosen):
            if position:
                out_X.add_(expert_X, alpha=gate)
            else:
                torch.mul(expert_X, gate, out=out_X)


def _mix_backward(gate_Ne: Tensor, bank_eX: Tensor, dout_NX: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and bank. A gate of zero was not chosen: no router lets a gradient through it."""
    if gate_Ne.device.type != "cpu":
        gate_in = gate_Ne.to(bank_eX.dtype)
        return (dout_NX @ bank_eX.t()).to(gate_Ne.dtype), gate_in.t() @ dout_NX
    dgate_Ne, dbank_eX = torch.zeros_like(gate_Ne), torch.empty_like(bank_eX)
    gates_Ne = gate_Ne.tolist()
    for expert in range(bank_eX.shape[0]):
        chosen = [(row, gates[expert]) for row, gates in enumerate(gates_Ne) if gates[expert]]
        if not chosen:
            dbank_eX[expert].zero_()
        for position, (row, gate) in enumerate(chosen):
            dgate_Ne[row, expert] = torch.dot(dout_NX[row], bank_eX[expert])
            if position:
                dbank_eX[expert].add_(dout_NX[row], alpha=gate)
            else:
                torch.mul(dout_NX[row], gate, out=dbank_eX[expert])
    return dgate_Ne, dbank_eX
