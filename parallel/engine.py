"""The one import of DeepSpeed's engine: build it, run backward passes, step, and give access to the optimizer's fragments.

Gradients are accumulated on each rank over all micro-batches of a step and reduced once, in the order of the parameter
list. Reducing during the backward pass instead would follow the order in which gradients become ready, and that differs
between ranks that drew different tasks: DeepSpeed would then add up different parameters without a word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from parallel.checkpoint import Fragment
from parallel.config import OptimizerConfig
from parallel.kernels import Kernels
from parallel.mesh import MegatronUnit, Mesh
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS, Placement, placement_of


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """grad_norm: global norm before clipping. applied: False if a non-finite gradient made all ranks skip the update."""

    grad_norm: float
    lr: float
    applied: bool


class Engine:
    """Drives one module whose call returns an object with a `total` loss."""

    def __init__(
        self, module: nn.Module, mesh: Mesh, config: OptimizerConfig, deepspeed_config: dict[str, Any], kernels: Kernels
    ) -> None:
        import deepspeed

        self.module, self.mesh = module, mesh
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        if mesh.expert.size > 1:
            _tag_experts(module, mesh)
        optimizer = kernels.adam(
            parameter_groups(module, config.weight_decay, mesh), lr=config.lr, betas=config.betas, eps=config.eps
        )
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=_with_expert_marker(module, mesh),
            optimizer=optimizer,
            config=deepspeed_config,
            mpu=MegatronUnit(),
            dist_init_required=False,
        )

    def __call__(self, *args: Any) -> Any:
        return self._engine(*args)

    @contextlib.contextmanager
    def accumulation(self) -> Iterator[None]:
        """Everything between two steps: backward passes inside add up locally and are averaged over data ranks at the end.

        After an error inside, the engine cannot be used any more.
        """
        with self._engine.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                # DeepSpeed reduces on this way out too. The other ranks are elsewhere: this one would wait for them instead of
                # reporting its error, and they for it.
                self._engine._flush_coalesced_reduction_zero12 = lambda optimizer: None
                raise
            # A parameter that this rank's tasks did not use takes part with zero, as all ranks must reduce the same list.
            for parameter in self._names:
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, lr: float) -> StepInfo:
        for group in self._zero.param_groups:
            group["lr"] = lr
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return StepInfo(norm, lr, applied=math.isfinite(norm) and norm >= 0)

    @property
    def optimizer_step(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them."""
        for index, group in enumerate(self._zero.optimizer.param_groups):
            state = self._zero.optimizer.state.get(self._zero.single_partition_of_fp32_groups[index], {})
            return int(group["step"] if "step" in group else state.get("step", 0))
        return 0

    # -- the optimizer's memory, for checkpoints ------------------------------------------------------------------

    def fragments(self) -> Iterator[Fragment]:
        """What goes into a checkpoint: the optimizer's memory, and the weights that are not tuned."""
        yield from self._tuned_fragments()
        yield from self._frozen_fragments()

    def _frozen_fragments(self) -> Iterator[Fragment]:
        for parameter, name in self._names.items():
            if parameter.requires_grad:
                continue
            placement = placement_of(parameter)
            copies = self.mesh.expert_data if placement.is_cut_along(EXPERT_AXIS) else self.mesh.data
            yield Fragment(
                name=name,
                placement=placement,
                start=0,
                owned=copies.rank == 0 and self._holds_own_part(placement),
                tensors={"weight": parameter.detach().view(-1)},
            )

    def _holds_own_part(self, placement: Placement) -> bool:
        """Of a parameter that is whole on all tensor ranks only the first one's counts."""
        return placement.is_cut_along(TENSOR_AXIS) or self.mesh.tensor.rank == 0

    def _tuned_fragments(self) -> Iterator[Fragment]:
        """Views of what this rank owns: fp32 master weights and moments of slices of flattened local parameters.

        Under ZeRO each data rank owns a different slice; parameters that are whole on all tensor ranks are given by the
        first tensor rank alone when `owned`.
        """
        for index, group in enumerate(self._zero.bit16_groups):
            flat = self._zero.single_partition_of_fp32_groups[index]
            state = self._zero.optimizer.state.get(flat, {})
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is None:
                    continue
                where, source = mapping.hp_fragment_address, mapping.lp_fragment_address
                tensors = {"weight": flat, **{key: state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}}
                placement = placement_of(parameter)
                yield Fragment(
                    name=self._names[parameter],
                    placement=placement,
                    start=source.start,
                    owned=self._holds_own_part(placement),
                    tensors={
                        kind: tensor.detach().narrow(0, where.start, where.numel) for kind, tensor in tensors.items()
                    },
                )

    def prepare_restore(self, optimizer_step: int) -> None:
        """Create the moments that the first step would create, so that fragments can be written into."""
        for index, group in enumerate(self._zero.optimizer.param_groups):
            flat = self._zero.single_partition_of_fp32_groups[index]
            state = self._zero.optimizer.state[flat]
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
            if "step" in group:  # apex counts steps in the group
                group["step"] = optimizer_step
            else:
                state["step"] = torch.tensor(float(optimizer_step), device=flat.device)

    def finish_restore(self) -> None:
        """Spread the restored master weights to the parameters of all ranks."""
        self._zero.update_lp_params()


def parameter_groups(module: nn.Module, weight_decay: float, mesh: Mesh) -> list[dict[str, Any]]:
    """Optimizer groups by (family, decay); every trainable parameter is in exactly one."""
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        expert = placement_of(parameter).is_cut_along(EXPERT_AXIS)
        decay = decays(name, parameter)
        label = f"{'expert' if expert else 'dense'}-{'decay' if decay else 'plain'}"
        group = groups.setdefault(
            label, {"params": [], "name": label, "weight_decay": weight_decay if decay else 0.0, "moe": expert}
        )
        group["params"].append(parameter)
    for group in groups.values():
        if group["moe"]:
            group["name"] = mesh.expert_group_name  # DeepSpeed looks its process group up under this name
    return list(groups.values())


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay applies to matrices of linears and experts, not to embeddings and routers (papers.md 9)."""
    table = ".embedding." in name and ".patches." not in name
    return name.endswith(".weight") and parameter.dim() >= 2 and not table and ".router." not in name


def _tag_experts(module: nn.Module, mesh: Mesh) -> None:
    """DeepSpeed reduces tagged parameters over the ranks that hold the same experts, and divides by all data ranks."""
    for parameter in module.parameters():
        if placement_of(parameter).is_cut_along(EXPERT_AXIS):
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = mesh.expert_group_name  # type: ignore[attr-defined]


def _with_expert_marker(module: nn.Module, mesh: Mesh) -> nn.Module:
    """DeepSpeed treats a model as sparse if one of its modules is an instance of its MoE class. One empty instance is
    enough; so the layers themselves need no import of DeepSpeed."""
    if mesh.expert.size == 1:
        return module
    from deepspeed.moe.layer import MoE

    class ExpertMarker(MoE):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.num_experts = mesh.expert.size

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
            """The mesh has made the groups."""

    class MarkedModule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module
            self.marker = ExpertMarker()

        def forward(self, *args: Any) -> Any:
            return self.inner(*args)

    return MarkedModule()
