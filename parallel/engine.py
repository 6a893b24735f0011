"""The one import of DeepSpeed's engine: build it, run backward passes, step, and give access to the optimizer's fragments.

Gradients are accumulated on each rank over all micro-batches of a step and reduced once, in the order of the parameter
list. Reducing during the backward pass instead would follow the order in which gradients become ready, and that differs
between ranks that drew different tasks: DeepSpeed would then add up different parameters without a word.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parallel.checkpoints import Checkpoint, Fragment, restore
from parallel.config import OptimizerConfig
from parallel.kernels import Kernels
from parallel.launch import local_rank_of
from parallel.mesh import Mesh, ModelParallelUnit
from parallel.norms import GradientNorms, clip_gradients, gradient_norms
from parallel.optimizer_state import (
    OptimizerState,
    PartitionedState,
    Piece,
    WholeState,
    average_weights,
    owns_copy,
    swap_averages,
)
from parallel.placement import EXPERT_AXIS, has_partial_gradient, placement_of
from parallel.precision import LossScale, PrecisionName, allow_tf32, computing, dtype_of
from parallel.sequence_parallel import sum_gradients

BLOCK = re.compile(r"\.encoder\.blocks\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """applied: False if a non-finite gradient made all ranks skip the update."""

    norms: GradientNorms
    lr: float
    applied: bool


class Engine:
    """Drives one module whose call returns an object with a `total` loss."""

    def __init__(
        self,
        module: nn.Module,
        mesh: Mesh,
        config: OptimizerConfig,
        deepspeed_config: dict[str, Any],
        kernels: Kernels,
        precision: PrecisionName = "fp32",
    ) -> None:
        """precision: of products; the module's parameters are fp32. Raises PreflightError where the device has none such."""
        import deepspeed

        self.module, self.mesh, self.dtype = module, mesh, dtype_of(precision, mesh.device)
        self._scale = LossScale.of(self.dtype)
        if self.dtype != torch.float32:
            allow_tf32()
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        if mesh.expert.size > 1:
            _tag_experts(module, mesh)
        optimizer = kernels.adam(
            parameter_groups(module, config, mesh), lr=config.lr, betas=config.betas, eps=config.eps
        )
        # Clipping is ours (parallel/norms.py): one rule for all stages, layouts and precisions.
        self._clip, self._ema = config.clip, config.ema
        self._updates: int | None = None
        with local_rank_of(mesh.device):
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=_driven(module, mesh, self.dtype),
                optimizer=optimizer,
                config={
                    **for_ranks(deepspeed_config, mesh.data.size),
                    "gradient_clipping": 0.0,
                },  # without a word it clips at 1
                mpu=ModelParallelUnit(mesh.tensor, mesh.data),
                dist_init_required=False,
            )
        self._is_partitioned = self._engine.zero_optimization_stage() > 0
        self._state: OptimizerState = (PartitionedState if self._is_partitioned else WholeState)(self._optimizer, mesh)

    def __call__(self, *args: Any) -> Any:
        return self._engine(*args)

    @contextlib.contextmanager
    def accumulation(self) -> Iterator[None]:
        """Everything between two steps: backward passes inside add up locally and are averaged over data ranks at the end.

        After an error inside, the engine cannot be used any more.
        """
        engine = self._engine
        with engine.coalesce_grad_reduction() if self._is_partitioned else engine.no_sync():
            try:
                yield
            except BaseException:
                # DeepSpeed reduces on this way out too. The other ranks are elsewhere: this one would wait for them instead of
                # reporting its error, and they for it.
                engine._flush_coalesced_reduction_zero12 = lambda optimizer: None
                raise
            # A parameter that this rank's tasks did not use takes part with zero, as all ranks must reduce the same list.
            for parameter in self._names:
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            sum_gradients(filter(has_partial_gradient, self._names), self.mesh.tensor)
        if (
            not self._is_partitioned and self.mesh.data.size > 1
        ):  # DeepSpeed would copy all gradients there and back for one rank
            engine.allreduce_gradients()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self._scale.value if self._scale.is_dynamic else loss)

    def step(self, lr: float) -> StepInfo:
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        norms = self._clipped()
        finite = math.isfinite(norms.total)
        if not finite and not self._is_partitioned:
            self._engine.zero_grad()
            self._scale.update(applied=False)
            return StepInfo(norms, lr, applied=False)
        # ZeRO finds the same non-finite gradient by itself, and leaves the update out.
        self._engine.step()
        applied = finite and self._engine.was_step_applied()
        self._scale.update(applied)
        if applied and self._ema:
            # The count lies on the device, which is asked once.
            self._updates = self.optimizer_step if self._updates is None else self._updates + 1
            average_weights(self._state, self._ema, self._updates)
        return StepInfo(norms, lr, applied)

    def _clipped(self) -> GradientNorms:
        """Before clipping, which leaves gradients alone that are not finite."""
        named = list(self._named_pieces())  # let go on return, as the update frees gradients on its way
        norms = gradient_norms(named, self.mesh.device, self.loss_scale)
        if math.isfinite(norms.total):
            clip_gradients([piece for _, piece in named], norms.total, self._clip, self.loss_scale)
        return norms

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Collective. Inside, the network has the averages of its weights, if there are any."""
        if not self._ema:
            yield
            return
        swap_averages(self._state)
        try:
            yield
        finally:
            swap_averages(self._state)

    # -- the optimizer's memory, for checkpoints ------------------------------------------------------------------

    @property
    def optimizer_step(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them."""
        return self._state.updates

    @property
    def loss_scale(self) -> float:
        """fp16's factor of the loss, which is found while training; 1 in other precisions."""
        return self._scale.value

    @property
    def good_updates(self) -> int:
        """In a row since the factor was last halved; after so many it doubles."""
        return self._scale.good

    def fragments(self) -> Iterator[Fragment]:
        """What goes into a checkpoint: the optimizer's memory, and the weights that are not tuned."""
        for name, piece in self._named_pieces():
            tensors = {"weight": piece.weight, **piece.moments}
            yield Fragment(name, placement_of(piece.parameter), piece.start, piece.owned, tensors)
        frozen = [(name, p) for p, name in self._names.items() if not p.requires_grad]
        for index, (name, parameter) in enumerate(frozen):
            owned = owns_copy(parameter, index, self.mesh)
            yield Fragment(name, placement_of(parameter), 0, owned, {"weight": parameter.detach().view(-1)})

    def gradients(self) -> Iterator[Fragment]:
        """Averaged gradients, between `accumulation` and `step`."""
        for name, piece in self._named_pieces():
            if piece.gradient is not None:
                unscaled = {"gradient": piece.gradient.float() / self.loss_scale}
                yield Fragment(name, placement_of(piece.parameter), piece.start, piece.owned, unscaled)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Collective. Weights and moments of a checkpoint of any layout; its state has the `optimizer_step`, and `loss_scale` and
        `good_updates` if they were saved: without a scale, or with another precision's 1, fp16 looks for its own again."""
        updates = checkpoint.state["optimizer_step"]
        if updates:  # before the first one there were no moments to save
            # The moments that the first step would create, so that there is something to write into.
            self._state.prepare_restore(updates, bool(self._ema) and checkpoint.has_averages)
        restore(checkpoint, self.fragments())
        self._state.finish_restore()
        self._updates = None
        scale = float(checkpoint.state.get("loss_scale", 1.0))
        if scale != 1.0 and self._scale.is_dynamic:
            self._scale.value, self._scale.good = scale, int(checkpoint.state.get("good_updates", 0))

    def _named_pieces(self) -> Iterator[tuple[str, Piece]]:
        for piece in self._state.pieces():
            yield self._names[piece.parameter], piece


def for_ranks(deepspeed_config: dict[str, Any], data_ranks: int) -> dict[str, Any]:
    """Without stages of ZeRO where there is nobody to share with: its flat copies would cost a sixth of a step and save nothing.
    Offloading needs them."""
    zero = deepspeed_config.get("zero_optimization", {})
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    if data_ranks > 1 or offloads:
        return deepspeed_config
    return {**deepspeed_config, "zero_optimization": {"stage": 0}}


def parameter_groups(module: nn.Module, config: OptimizerConfig, mesh: Mesh) -> list[dict[str, Any]]:
    """Optimizer groups by (family, decay, rate); every trainable parameter is in exactly one. rate: factor of the learning rate."""
    rates = layer_rates([name for name, _ in module.named_parameters()], config.layer_decay)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        expert = placement_of(parameter).is_cut_along(EXPERT_AXIS)
        decay = decays(name, parameter)
        label = f"{'expert' if expert else 'dense'}-{'decay' if decay else 'plain'}-{rates[name]:g}"
        weight_decay = config.weight_decay if decay else 0.0
        group = groups.setdefault(
            label, {"params": [], "name": label, "weight_decay": weight_decay, "moe": expert, "rate": rates[name]}
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


def layer_rates(names: Sequence[str], decay: float) -> dict[str, float]:
    """Factors of the learning rate by name: 1 behind the blocks, less by `decay` from block to block towards the input."""
    places = {name: BLOCK.search(name) for name in names}
    depths = collections.Counter()  # type: collections.Counter[str]
    for name, place in places.items():
        if place:
            tower = name[: place.start()]
            depths[tower] = max(depths[tower], int(place[1]) + 1)

    def distance(name: str) -> int:
        place = places[name]
        if place:
            return depths[name[: place.start()]] - int(place[1])
        return depths[name.partition(".embedding.")[0]] + 1 if ".embedding." in name else 0

    return {name: decay ** distance(name) for name in names}


def _tag_experts(module: nn.Module, mesh: Mesh) -> None:
    """DeepSpeed reduces tagged parameters over the ranks that hold the same experts, and divides by all data ranks."""
    for parameter in module.parameters():
        if placement_of(parameter).is_cut_along(EXPERT_AXIS):
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = mesh.expert_group_name  # type: ignore[attr-defined]


def _tunes_own_experts(module: nn.Module, mesh: Mesh) -> bool:
    """Does the optimizer have a group of experts that only some ranks hold? DeepSpeed insists on one in a sparse model."""
    tuned = (parameter for parameter in module.parameters() if parameter.requires_grad)
    return mesh.expert.size > 1 and any(placement_of(parameter).is_cut_along(EXPERT_AXIS) for parameter in tuned)


def _driven(module: nn.Module, mesh: Mesh, dtype: torch.dtype) -> nn.Module:
    """What DeepSpeed calls: the module, with products in `dtype`.

    DeepSpeed treats a model as sparse if one of its modules is an instance of its MoE class. One empty instance is enough; so the
    layers themselves need no import of DeepSpeed.
    """
    from deepspeed.moe.layer import MoE

    class ExpertMarker(MoE):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.num_experts = mesh.expert.size

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
            """The mesh has made the groups."""

    class Driven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module
            if _tunes_own_experts(module, mesh):
                self.marker = ExpertMarker()

        def forward(self, *args: Any) -> Any:
            with computing(mesh.device, dtype):
                return self.inner(*args)

    return Driven()
