"""What the optimizer holds of each parameter on this rank, in one form for every ZeRO stage.

A *piece* is a slice of a parameter's flattened local part with its fp32 master weight, averaged gradient and moments.
Checkpoints, gradient norms and clipping are written over pieces alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from parallel.checkpoints.spans import AVERAGE
from parallel.mesh import Mesh
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS, Placement, placement_of

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (*MOMENTS, AVERAGE)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Elements [start, start + numel) of the parameter's flattened local part; all tensors are flat views.

    owned     exactly one rank of the world owns an element of the logical tensor
    gradient  mean over data ranks between the reduction and the step, times the loss scale; None at other times
    moments   of Adam, by torch's names, and the average of the weights where there is one; empty before the first step, and
              without moments for other optimizers
    """

    parameter: nn.Parameter
    start: int
    owned: bool
    weight: Tensor
    gradient: Tensor | None
    moments: dict[str, Tensor]


class OptimizerState(Protocol):
    """The optimizer's memory on this rank."""

    def pieces(self) -> Iterator[Piece]: ...

    @property
    def updates(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them."""
        ...

    def prepare_restore(self, updates: int, averages: bool) -> None:
        """Create the moments that the first step would create, and averages, so that pieces can be written into."""
        ...

    def masters(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """fp32 weights as the optimizer holds them, and its state of each."""
        ...

    def finish_restore(self) -> None:
        """Bring restored master weights to the parameters of all ranks."""
        ...


class PartitionedState:
    """DeepSpeed's ZeRO-1 and 2: every rank of a group of copies holds another slice of the flattened parameters."""

    def __init__(self, zero: Any, mesh: Mesh) -> None:
        self._zero, self._mesh = zero, mesh

    def pieces(self) -> Iterator[Piece]:
        for index, group in enumerate(self._zero.bit16_groups):
            flat = self._zero.single_partition_of_fp32_groups[index]
            state = self._zero.optimizer.state.get(flat, {})
            gradients = self._gradients(index)
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is None:
                    continue
                where = mapping.hp_fragment_address
                held = {"weight": flat, **{key: state[key] for key in KINDS if key in state}}
                views = {kind: tensor.detach().narrow(0, where.start, where.numel) for kind, tensor in held.items()}
                yield Piece(
                    parameter=parameter,
                    start=mapping.lp_fragment_address.start,
                    owned=_holds_own_part(placement_of(parameter), self._mesh),
                    weight=views.pop("weight"),
                    gradient=gradients.get(parameter),
                    moments=views,
                )

    def _gradients(self, index: int) -> dict[nn.Parameter, Tensor]:
        """Slices of the averaged gradients of a group, flat."""
        zero = self._zero
        if zero.cpu_offload:
            zero._wait_for_offload_copies()  # to the host: its own step would wait only after ours has looked
            flat = zero.single_partition_of_fp32_groups[index].grad
            addresses = {p: p._hp_mapping.hp_fragment_address for p in zero.params_in_partition[index]}
            return {p: flat.narrow(0, at.start, at.numel) for p, at in addresses.items()} if flat is not None else {}
        slices = [g for g in zero.averaged_gradients.get(index) or () if not getattr(g, "_zero_padding", False)]
        return {p: g.detach().view(-1) for p, g in zip(zero.params_in_partition[index], slices, strict=False)}

    @property
    def updates(self) -> int:
        for group, flat in self._groups():
            return _updates(group, self._zero.optimizer.state.get(flat, {}))
        return 0

    def prepare_restore(self, updates: int, averages: bool) -> None:
        for group, flat in self._groups():
            _make_moments(group, self._zero.optimizer.state[flat], flat, updates, averages)

    def masters(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for _, flat in self._groups():
            yield flat.detach(), self._zero.optimizer.state[flat]

    def finish_restore(self) -> None:
        self._zero.update_lp_params()

    def _groups(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        yield from zip(self._zero.optimizer.param_groups, self._zero.single_partition_of_fp32_groups, strict=True)


class WholeState:
    """ZeRO-0: every rank holds all of its parameters' optimizer state; the copies take turns in owning parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer, mesh: Mesh) -> None:
        self._optimizer, self._mesh = optimizer, mesh

    def pieces(self) -> Iterator[Piece]:
        for index, parameter in enumerate(self._parameters()):
            state = self._optimizer.state.get(parameter, {})
            yield Piece(
                parameter=parameter,
                start=0,
                owned=owns_copy(parameter, index, self._mesh),
                weight=parameter.detach().view(-1),
                gradient=None if parameter.grad is None else parameter.grad.detach().view(-1),
                moments={key: state[key].view(-1) for key in KINDS if key in state},
            )

    @property
    def updates(self) -> int:
        for group in self._optimizer.param_groups:
            return _updates(group, self._optimizer.state.get(group["params"][0], {}))
        return 0

    def prepare_restore(self, updates: int, averages: bool) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                _make_moments(group, self._optimizer.state[parameter], parameter.detach(), updates, averages)

    def masters(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for parameter in self._parameters():
            yield parameter.detach(), self._optimizer.state[parameter]

    def finish_restore(self) -> None:
        """Pieces are the parameters themselves."""

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self._optimizer.param_groups:
            yield from group["params"]


def owns_copy(parameter: nn.Parameter, index: int, mesh: Mesh) -> bool:
    """Of the ranks that hold copies of a whole local part, the `index`-th one, counted around, owns it."""
    placement = placement_of(parameter)
    copies = mesh.expert_data if placement.is_cut_along(EXPERT_AXIS) else mesh.data
    return index % copies.size == copies.rank and _holds_own_part(placement, mesh)


def _holds_own_part(placement: Placement, mesh: Mesh) -> bool:
    """Of a parameter that is whole on all tensor ranks only the first one's counts."""
    return placement.is_cut_along(TENSOR_AXIS) or mesh.tensor.rank == 0


def _updates(group: dict[str, Any], state: dict[str, Any]) -> int:
    """apex counts in the group and torch in the state. After a restore both are there, and only the optimizer's own moves on."""
    return max(int(group.get("step", 0)), int(state.get("step", 0)))


def average_weights(state: OptimizerState, decay: float, updates: int) -> None:
    """Move the averages towards the weights; the first time they are the weights. updates: applied so far, this one included."""
    share = 1 - min(decay, (1 + updates) / (10 + updates))
    masters = list(state.masters())
    averaged = [(weight, held[AVERAGE]) for weight, held in masters if AVERAGE in held]
    if averaged:
        torch._foreach_lerp_([average for _, average in averaged], [weight for weight, _ in averaged], share)
    for weight, held in masters:
        if AVERAGE not in held:
            held[AVERAGE] = weight.clone()


def swap_averages(state: OptimizerState) -> None:
    """Weights take the places of averages, and averages those of weights, on all ranks; to the last bit the same after two times."""
    for weight, held in state.masters():
        if AVERAGE in held:
            kept = weight.clone()
            weight.copy_(held[AVERAGE])
            held[AVERAGE].copy_(kept)
    state.finish_restore()


def _make_moments(group: dict[str, Any], state: dict[str, Any], like: Tensor, updates: int, averages: bool) -> None:
    for key in KINDS if averages else MOMENTS:
        state[key] = torch.zeros_like(like)
    # Before its first step nothing tells where an optimizer counts, and each ignores the other's place.
    group["step"] = updates
    state["step"] = torch.tensor(float(updates), device=like.device)
