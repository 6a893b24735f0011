"""The grid of ranks: world = tensor x data, and expert parallelism divides the data ranks.

The only place that creates process groups: tensor and data groups through megatron-core where tensors are cut, expert groups through
DeepSpeed (so that its gradient rules find them). A `Mesh` is handed to constructors; there is no global mesh of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import sys
import warnings
from typing import Any

from parallel.collectives import Axis
from parallel.launch import (
    MeetingError,
    await_first_rank,
    check_interfaces,
    check_port,
    device_number,
    launched_rank,
    launched_world_size,
    replaced_variable,
    tell_accelerator,
)
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS
from parallel.traffic import Traffic


@dataclasses.dataclass(frozen=True)
class Mesh:
    """This rank's place on every axis. `Mesh()` is one process without any group.

    expert_data is the axis of the ranks that hold the same experts: data = expert x expert_data. sequence is the tensor axis where
    the rows of the residual stream are cut over it, else of size 1.
    """

    tensor: Axis = dataclasses.field(default_factory=lambda: Axis(TENSOR_AXIS))
    sequence: Axis = dataclasses.field(default_factory=lambda: Axis("sequence"))
    data: Axis = dataclasses.field(default_factory=lambda: Axis("data"))
    expert: Axis = dataclasses.field(default_factory=lambda: Axis(EXPERT_AXIS))
    expert_data: Axis = dataclasses.field(default_factory=lambda: Axis("expert_data"))
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """True on the one rank that prints, logs and writes shared files."""
        return self.data.rank == 0 and self.tensor.rank == 0

    @property
    def expert_group_name(self) -> str:
        """DeepSpeed's name of the expert groups of this size."""
        return f"ep_size_{self.expert.size}"


class ModelParallelUnit:
    """What DeepSpeed asks about ranks, as it would ask megatron-core's parallel state: `mpu` in its words.

    It offers nothing of sequence parallelism on purpose: DeepSpeed would take the mere presence of those methods as a wish.
    """

    def __init__(self, tensor: Axis, data: Axis) -> None:
        self._tensor, self._data = tensor, data

    def get_model_parallel_world_size(self) -> int:
        return self._tensor.size

    def get_model_parallel_rank(self) -> int:
        return self._tensor.rank

    def get_model_parallel_group(self) -> Any:
        return self._tensor.group

    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_pipeline_model_parallel_world_size(self) -> int:
        return 1

    def get_pipeline_model_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_world_size(self) -> int:
        return self._data.size

    def get_data_parallel_rank(self) -> int:
        return self._data.rank

    def get_data_parallel_group(self) -> Any:
        return self._data.group

    def get_data_parallel_group_ranks(self) -> list[int]:
        import torch.distributed as dist

        return dist.get_process_group_ranks(self._data.group)


def create_mesh(tensor: int = 1, expert: int = 1, timeout_s: float = 1800.0, sequence: bool = False) -> Mesh:
    """Join the other ranks and lay out the groups. `sequence`: cut the rows of the residual stream over tensor ranks.

    Works under the deepspeed launcher, torchrun, or none (then the world is this one process, which still gets real
    groups because DeepSpeed needs them). Sizes must have been checked against the world size before. Raises PreflightError where
    there are fewer GPUs than ranks, and MeetingError where ranks do not meet.
    """
    import torch
    import torch.distributed as dist

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0" if launched_world_size() == 1 else "29500")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")

    tell_accelerator(torch.cuda.is_available())
    with warnings.catch_warnings(action="ignore"):
        import deepspeed
        from deepspeed.utils import groups

    timeout = datetime.timedelta(seconds=timeout_s)
    cuda = torch.cuda.is_available()
    device = f"cuda:{device_number(torch.cuda.device_count())}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        check_port()
        check_interfaces("nccl" if cuda else "gloo")
        await_first_rank(timeout_s)
        try:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout)
        except dist.DistError as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise MeetingError(
                f"rank {launched_rank()} did not meet the others at {place}: {str(error).splitlines()[0]}"
            ) from error
    # DeepSpeed takes 69 MB of shared memory per rank for an all-reduce that we never call, where it knows from LOCAL_SIZE that all
    # ranks are on one machine, and leaves them behind when it ends.
    with replaced_variable("LOCAL_SIZE", None), contextlib.redirect_stdout(None):  # it prints that it has built an op
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    tensor_group, data_group = _tensor_and_data_groups(tensor)
    tensor_axis, data_axis = (
        _axis(TENSOR_AXIS, tensor_group, timeout, device),
        _axis("data", data_group, timeout, device),
    )
    groups.mpu = ModelParallelUnit(tensor_axis, data_axis)
    groups._create_expert_data_and_model_parallel(expert, mpu=groups.mpu)
    name = f"ep_size_{expert}"
    # A rank outside of the group made last does not wait for its members: were it done before them, the store would be gone.
    dist.barrier()
    return Mesh(
        tensor=tensor_axis,
        sequence=dataclasses.replace(tensor_axis if sequence else Axis(""), name="sequence"),
        data=data_axis,
        expert=_axis(EXPERT_AXIS, groups._get_expert_parallel_group(name), timeout, device),
        expert_data=_axis("expert_data", groups._get_expert_data_parallel_group(name), timeout, device),
        device=device,
    )


def _tensor_and_data_groups(tensor: int) -> tuple[Any, Any]:
    """megatron-core's, where it has something to cut. To load it takes longer than to load torch and DeepSpeed."""
    import torch.distributed as dist

    if tensor == 1:
        alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
        return alone, dist.new_group(list(range(dist.get_world_size())))
    with warnings.catch_warnings(action="ignore"):  # it reports every optional library that it did not find
        from megatron.core import parallel_state
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor)
    return parallel_state.get_tensor_model_parallel_group(), parallel_state.get_data_parallel_group()


def destroy_mesh() -> None:
    """Leave the process groups, so that the launcher sees a clean end."""
    import torch.distributed as dist

    if dist.is_initialized():
        if state := sys.modules.get("megatron.core.parallel_state"):
            state.destroy_model_parallel()
        dist.destroy_process_group()


def _axis(name: str, group: Any, timeout: datetime.timedelta, device: str) -> Axis:
    """megatron-core and DeepSpeed make groups that wait as long as they like: ours is set on every one."""
    import torch.distributed as dist

    dist.distributed_c10d._set_pg_timeout(timeout, group)
    return Axis(name, dist.get_world_size(group), dist.get_rank(group), group, Traffic(device))
